#pragma once
/// A model, type-erased: any torch::nn module (whose forward is not virtual), or a callable without parameters.

#include <concepts>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <c10/core/Device.h>

#include <torchbus/batch.hpp>

namespace torchbus {

using NamedTensor = std::pair<std::string, at::Tensor>;

/// What torchbus needs of a model. Implement it for a model that is no torch::nn module.
class ModelInterface {
public:
    virtual ~ModelInterface() = default;
    virtual Output forward(const Batch& batch) = 0;
    virtual std::vector<NamedTensor> named_parameters() const = 0;
    virtual std::vector<NamedTensor> named_buffers() const = 0;
    virtual void set_training(bool training) = 0;  ///< dropout and batch statistics on or off
    virtual void to(c10::Device device) = 0;       ///< moves parameters and buffers, in place
    /// The same for one layer, by its name. Returns whether the model has such a layer; set_training() sets all anew.
    virtual bool set_layer_training(const std::string& /*layer*/, bool /*training*/) { return false; }
};

namespace detail {

template <class T>
concept IsModuleHolder = requires(const T& holder) { holder.ptr()->named_parameters(); };

/// Calls only what `Module` has, so that this header needs no torch::nn header.
template <class Module>
class ModuleModel final : public ModelInterface {
public:
    explicit ModuleModel(std::shared_ptr<Module> module) : module_(std::move(module)) {}
    Output forward(const Batch& batch) override {
        // Inputs first: the forward of torch::nn::Sequential claims to take anything.
        if constexpr (requires { { module_->forward(batch.inputs) } -> std::convertible_to<Output>; })
            return module_->forward(batch.inputs);
        else
            return module_->forward(batch);
    }
    std::vector<NamedTensor> named_parameters() const override { return items(module_->named_parameters()); }
    std::vector<NamedTensor> named_buffers() const override { return items(module_->named_buffers()); }
    void set_training(bool training) override { module_->train(training); }
    void to(c10::Device device) override { module_->to(device); }
    bool set_layer_training(const std::string& layer, bool training) override {
        if constexpr (requires { module_->named_modules(); })
            for (const auto& item : module_->named_modules())
                if (item.key() == layer) return item.value()->train(training), true;
        return false;
    }

private:
    template <class Dict>
    static std::vector<NamedTensor> items(const Dict& dict) {
        std::vector<NamedTensor> result;
        for (const auto& item : dict) result.emplace_back(item.key(), item.value());
        return result;
    }
    std::shared_ptr<Module> module_;
};

template <class Call>
class CallableModel final : public ModelInterface {
public:
    explicit CallableModel(Call call) : call_(std::move(call)) {}
    Output forward(const Batch& batch) override { return call_(batch); }
    std::vector<NamedTensor> named_parameters() const override { return {}; }
    std::vector<NamedTensor> named_buffers() const override { return {}; }
    void set_training(bool) override {}
    void to(c10::Device) override {}

private:
    Call call_;
};

}  // namespace detail

/// A handle: copies refer to the same model.
class Model {
public:
    Model() = default;
    template <std::derived_from<ModelInterface> Interface>
    Model(std::shared_ptr<Interface> model) : model_(std::move(model)) {}  // NOLINT

    /// Any torch::nn module: `forward(batch.inputs)` is called, or `forward(batch)` where it takes a Batch.
    template <class Module>
        requires(!std::derived_from<Module, ModelInterface>) && requires(Module module) { module.named_parameters(); }
    Model(std::shared_ptr<Module> module)  // NOLINT
        : model_(std::make_shared<detail::ModuleModel<Module>>(std::move(module))) {}

    /// A module holder as TORCH_MODULE makes it, torch::nn::Sequential included.
    template <detail::IsModuleHolder Holder>
    Model(const Holder& holder) : Model(holder.ptr()) {}  // NOLINT

    /// A callable of a batch, without parameters.
    template <class Call>
        requires(!detail::IsModuleHolder<Call> && std::is_invocable_r_v<Output, Call, const Batch&>)
    Model(Call call) : model_(std::make_shared<detail::CallableModel<Call>>(std::move(call))) {}  // NOLINT

    explicit operator bool() const { return model_ != nullptr; }
    ModelInterface* operator->() const { return model_.get(); }

private:
    std::shared_ptr<ModelInterface> model_;
};

}  // namespace torchbus

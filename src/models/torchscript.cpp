#include <torchbus/models/torchscript.hpp>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/script.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

class TorchScriptModel final : public ModelInterface {
public:
    TorchScriptModel(torch::jit::Module module, std::string name, TorchScriptOptions options)
        : module_(std::move(module)), name_(std::move(name)), options_(std::move(options)) {}

    Output forward(const Batch& batch) override {
        std::vector<c10::IValue> arguments;
        for (const std::string& argument : options_.arguments) arguments.emplace_back(argument_of(batch, argument));
        return output_of(module_.forward(std::move(arguments)));
    }
    std::vector<NamedTensor> named_parameters() const override { return items(module_.named_parameters()); }
    std::vector<NamedTensor> named_buffers() const override { return items(module_.named_buffers()); }
    void set_training(bool training) override { module_.train(training); }
    void to(c10::Device device) override { module_.to(device); }
    bool set_layer_training(const std::string& layer, bool training) override {
        for (auto item : module_.named_modules())
            if (item.name == layer) return item.value.train(training), true;
        return false;
    }

private:
    template <class List>
    static std::vector<NamedTensor> items(const List& list) {
        std::vector<NamedTensor> result;
        for (const auto& item : list) result.emplace_back(item.name, item.value);
        return result;
    }

    at::Tensor argument_of(const Batch& batch, const std::string& argument) const {
        if (argument == "inputs") return batch.inputs;
        if (argument == "targets") return batch.targets;
        if (const at::Tensor* extra = batch.extras.find(argument)) return *extra;
        std::vector<std::string> known = {"inputs", "targets"};
        for (const auto& [name, tensor] : batch.extras) known.push_back(name);
        throw ConfigError(fmt::format("{}: forward is to be called with '{}', which the batch has not got{} (it has {})", name_, argument,
                                      did_you_mean(argument, known), fmt::join(known, ", ")));
    }

    Output output_of(const c10::IValue& value) const {
        if (value.isTensor()) return value.toTensor();
        if (value.isTuple()) return from_tuple(value.toTupleRef());
        if (value.isGenericDict()) return from_dict(value.toGenericDict());
        throw ConfigError(fmt::format("{}: forward returned a {}, expected a tensor, a tuple or a dict of tensors", name_, value.tagKind()));
    }

    Output from_tuple(const c10::ivalue::Tuple& tuple) const {
        if (tuple.elements().size() == 0 || !tuple.elements()[0].isTensor())
            throw ConfigError(fmt::format("{}: forward returned a tuple whose first entry is no tensor", name_));
        Output output(tuple.elements()[0].toTensor());
        for (std::size_t i = 1; i < tuple.elements().size(); ++i)
            if (tuple.elements()[i].isTensor()) output.extras[fmt::format("{}", i)] = tuple.elements()[i].toTensor();
        return output;
    }

    Output from_dict(const c10::impl::GenericDict& dict) const {
        const std::string wanted = options_.output.empty() ? "logits" : options_.output;
        Output output;
        std::vector<std::string> known;
        for (const auto& entry : dict) {
            if (!entry.key().isString() || !entry.value().isTensor()) continue;
            known.push_back(entry.key().toStringRef());
            (known.back() == wanted ? output.tensor : output.extras[known.back()]) = entry.value().toTensor();
        }
        if (!output.tensor.defined())
            throw ConfigError(fmt::format("{}: forward returned a dict without '{}'{} (it has {})", name_, wanted, did_you_mean(wanted, known), fmt::join(known, ", ")));
        return output;
    }

    torch::jit::Module module_;
    std::string name_;
    TorchScriptOptions options_;
};

}  // namespace

Model load_torchscript(const std::filesystem::path& path, TorchScriptOptions options) {
    if (!std::filesystem::is_regular_file(path)) throw DataError(fmt::format("{}: there is no such file; export the model with torch.jit.script(model).save(path)", path.string()));
    try {
        return std::make_shared<TorchScriptModel>(torch::jit::load(path.string()), path.string(), std::move(options));
    } catch (const c10::Error& error) {
        const std::string what = error.what_without_backtrace();
        throw DataError(fmt::format("{}: this is no TorchScript file that this LibTorch can read: {}", path.string(), what.substr(0, what.find('\n'))));
    }
}

}  // namespace torchbus

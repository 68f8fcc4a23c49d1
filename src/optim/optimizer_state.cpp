#include <torchbus/optim/optimizer_state.hpp>

#include <cstring>
#include <functional>
#include <map>
#include <sstream>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/optim.h>
#include <torch/serialize.h>

#include <torchbus/error.hpp>
#include <torchbus/optim/group_options.hpp>

namespace torchbus {
namespace {

using nlohmann::json;
using State = torch::optim::OptimizerParamState;

/// The fields of one parameter's state, by their names in LibTorch.
struct Fields {
    std::vector<std::pair<const char*, at::Tensor*>> tensors;
    std::int64_t* step = nullptr;
};

struct Kind {
    const char* name;
    std::function<bool(const torch::optim::Optimizer&)> is;
    std::function<std::unique_ptr<State>()> make;
    std::function<Fields(State&)> fields;
};

template <class Optimizer, class ParamState>
Kind kind_of(const char* name, Fields (*fields)(ParamState&)) {
    return {name, [](const torch::optim::Optimizer& optimizer) { return dynamic_cast<const Optimizer*>(&optimizer) != nullptr; },
            [] { return std::make_unique<ParamState>(); }, [fields](State& state) { return fields(static_cast<ParamState&>(state)); }};
}

template <class ParamState>
Fields adam_fields(ParamState& state) {
    return {{{"exp_avg", &state.exp_avg()}, {"exp_avg_sq", &state.exp_avg_sq()}, {"max_exp_avg_sq", &state.max_exp_avg_sq()}}, &state.step()};
}

const std::vector<Kind>& kinds() {
    using namespace torch::optim;
    static const std::vector<Kind> kKinds = {
        kind_of<SGD, SGDParamState>("sgd", [](SGDParamState& state) { return Fields{{{"momentum_buffer", &state.momentum_buffer()}}, nullptr}; }),
        kind_of<Adam, AdamParamState>("adam", adam_fields<AdamParamState>),
        kind_of<AdamW, AdamWParamState>("adamw", adam_fields<AdamWParamState>),
        kind_of<Adagrad, AdagradParamState>("adagrad", [](AdagradParamState& state) { return Fields{{{"sum", &state.sum()}}, &state.step()}; }),
        kind_of<RMSprop, RMSpropParamState>("rmsprop", [](RMSpropParamState& state) {
            return Fields{{{"square_avg", &state.square_avg()}, {"momentum_buffer", &state.momentum_buffer()}, {"grad_avg", &state.grad_avg()}}, &state.step()};
        }),
    };
    return kKinds;
}

const Kind* kind_of(const torch::optim::Optimizer& optimizer) {
    for (const Kind& kind : kinds())
        if (kind.is(optimizer)) return &kind;
    return nullptr;
}

/// The names of each group's parameters.
std::vector<std::vector<std::string>> names_of(const torch::optim::Optimizer& optimizer, const std::vector<NamedTensor>& named) {
    std::map<const void*, std::string> known;
    for (const auto& [name, tensor] : named) known.emplace(tensor.unsafeGetTensorImpl(), name);
    std::vector<std::vector<std::string>> names;
    for (const auto& group : optimizer.param_groups()) {
        auto& of_group = names.emplace_back();
        for (const at::Tensor& parameter : group.params()) {
            const auto found = known.find(parameter.unsafeGetTensorImpl());
            of_group.push_back(found != known.end() ? found->second : fmt::format("group.{}.{}", names.size() - 1, of_group.size()));
        }
    }
    return names;
}

/// Bytes as a tensor. Shapes: [count], uint8.
at::Tensor bytes_of(const std::string& text) {
    at::Tensor bytes = torch::empty({static_cast<std::int64_t>(text.size())}, at::kByte);
    if (!text.empty()) std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
    return bytes;
}

SavedState save_archive(const torch::optim::Optimizer& optimizer) {
    torch::serialize::OutputArchive archive;
    optimizer.save(archive);
    std::ostringstream stream;
    archive.save_to(stream);
    return {{{"kind", "archive"}}, {{"archive", bytes_of(stream.str())}}};
}

void load_archive(torch::optim::Optimizer& optimizer, const SavedState& state) {
    const at::Tensor bytes = state.tensors.at("archive").contiguous();
    std::istringstream stream(std::string(static_cast<const char*>(bytes.const_data_ptr()), static_cast<std::size_t>(bytes.numel())));
    torch::serialize::InputArchive archive;
    archive.load_from(stream);
    optimizer.state().clear();  // load() leaves what the archive has no entry for
    optimizer.load(archive);
}

/// What was saved of one parameter, as a state of its own; nothing where it had not been updated yet.
std::unique_ptr<State> state_from(const Kind& kind, const SavedState& saved, const std::string& name, const at::Tensor& parameter) {
    const json& known = saved.values.at("parameters");
    if (!known.contains(name)) return nullptr;
    auto state = kind.make();
    const Fields fields = kind.fields(*state);
    if (fields.step) *fields.step = known.at(name).at("step");
    for (const auto& [field, place] : fields.tensors) {
        const auto found = saved.tensors.find(name + "/" + field);
        if (found == saved.tensors.end()) continue;
        if (found->second.sizes() != parameter.sizes())
            throw CheckpointError(fmt::format("the {} of '{}' has shape [{}], the parameter has [{}]", field, name, fmt::join(found->second.sizes(), ", "), fmt::join(parameter.sizes(), ", ")));
        *place = found->second.to(parameter.device(), found->second.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
    }
    return state;
}

}  // namespace

SavedState save_optimizer(const torch::optim::Optimizer& optimizer, const std::vector<NamedTensor>& named) {
    const Kind* const kind = kind_of(optimizer);
    if (!kind) return save_archive(optimizer);
    const auto names = names_of(optimizer, named);
    json groups = json::array(), parameters = json::object();
    SavedState saved;
    const auto& states = optimizer.state();
    for (std::size_t i = 0; i < names.size(); ++i) {
        const auto& group = optimizer.param_groups()[i];
        groups.push_back({{"options", group_options(group)}, {"parameters", names[i]}});
        for (std::size_t j = 0; j < names[i].size(); ++j) {
            const auto found = states.find(group.params()[j].unsafeGetTensorImpl());
            if (found == states.end() || !found->second) continue;
            const Fields fields = kind->fields(*found->second);
            parameters[names[i][j]] = {{"step", fields.step ? *fields.step : 0}};
            for (const auto& [field, tensor] : fields.tensors)
                if (tensor->defined()) saved.tensors.emplace(names[i][j] + "/" + field, *tensor);
        }
    }
    saved.values = {{"kind", kind->name}, {"groups", std::move(groups)}, {"parameters", std::move(parameters)}};
    return saved;
}

void load_optimizer(torch::optim::Optimizer& optimizer, const std::vector<NamedTensor>& named, const SavedState& saved) {
    const std::string saved_kind = saved.values.at("kind");
    if (saved_kind == "archive") return load_archive(optimizer, saved);
    const Kind* const kind = kind_of(optimizer);
    if (!kind || kind->name != saved_kind)
        throw CheckpointError(fmt::format("it is the state of the optimizer {}, and the run has {}", saved_kind, kind ? kind->name : "another"));
    const auto names = names_of(optimizer, named);
    const json& groups = saved.values.at("groups");
    auto& own_groups = optimizer.param_groups();
    if (groups.size() != names.size()) throw CheckpointError(fmt::format("it has {} parameter groups, and the run's optimizer has {}", groups.size(), names.size()));
    std::vector<std::pair<void*, std::unique_ptr<State>>> states;  // all are made before the first is put in its place
    for (std::size_t i = 0; i < names.size(); ++i) {
        if (const auto expected = groups[i].at("parameters").get<std::vector<std::string>>(); expected != names[i])
            throw CheckpointError(fmt::format("its parameter group {} has [{}], the run's has [{}]", i, fmt::join(expected, ", "), fmt::join(names[i], ", ")));
        for (std::size_t j = 0; j < names[i].size(); ++j) {
            const at::Tensor& parameter = own_groups[i].params()[j];
            if (auto state = state_from(*kind, saved, names[i][j], parameter)) states.emplace_back(parameter.unsafeGetTensorImpl(), std::move(state));
        }
    }
    optimizer.state().clear();
    for (auto& [parameter, state] : states) optimizer.state()[parameter] = std::move(state);
    for (std::size_t i = 0; i < names.size(); ++i)
        for (const auto& [option, value] : groups[i].at("options").items()) group_option(own_groups[i], option) = value.get<double>();
}

}  // namespace torchbus

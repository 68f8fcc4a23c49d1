#include "trainer_run_state.hpp"

#include <cstring>
#include <sstream>

#include <fmt/format.h>
#include <torch/optim/optimizer.h>
#include <torch/serialize.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

std::string part_of(const Update& update) { return update.name.empty() ? "update" : "update." + update.name; }

/// Bytes as a tensor. Shapes: [count], uint8.
at::Tensor bytes_of(const std::string& text) {
    at::Tensor bytes = torch::empty({static_cast<std::int64_t>(text.size())}, at::kByte);
    if (!text.empty()) std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
    return bytes;
}

SavedState save_weights(const Model& model) {
    SavedState state;
    for (const auto& list : {model->named_parameters(), model->named_buffers()})
        for (const auto& [name, tensor] : list) state.tensors.emplace(name, tensor.detach());
    return state;
}

void load_weights(const Model& model, const SavedState& state) {
    const at::NoGradGuard no_grad;
    std::vector<std::pair<at::Tensor, at::Tensor>> copies;  // all are compared before the first is made
    for (const auto& list : {model->named_parameters(), model->named_buffers()})
        for (const auto& [name, tensor] : list) {
            const auto saved = state.tensors.find(name);
            if (saved == state.tensors.end()) throw CheckpointError(fmt::format("the saved model has no tensor '{}'; is it of another model?", name));
            if (saved->second.sizes() != tensor.sizes())
                throw CheckpointError(fmt::format("the saved tensor '{}' has another shape than the model's; is it of another model?", name));
            copies.emplace_back(tensor, saved->second);
        }
    for (auto& [tensor, saved] : copies) tensor.copy_(saved);
}

SavedState save_optimizer(const torch::optim::Optimizer& optimizer) {
    torch::serialize::OutputArchive archive;
    optimizer.save(archive);
    std::ostringstream stream;
    archive.save_to(stream);
    return {{}, {{"archive", bytes_of(stream.str())}}};
}

void load_optimizer(torch::optim::Optimizer& optimizer, const SavedState& state) {
    const at::Tensor bytes = state.tensors.at("archive").contiguous();
    std::istringstream stream(std::string(static_cast<const char*>(bytes.const_data_ptr()), static_cast<std::size_t>(bytes.numel())));
    torch::serialize::InputArchive archive;
    archive.load_from(stream);
    optimizer.state().clear();  // load() leaves what the archive has no entry for
    optimizer.load(archive);
}

SavedState save_generators() {
    SavedState state;
    at::Generator cpu = at::detail::getDefaultCPUGenerator();
    const std::lock_guard lock(cpu.mutex());
    state.tensors.emplace("cpu", cpu.get_state());
    return state;
}

void load_generators(const SavedState& state) {
    at::Generator cpu = at::detail::getDefaultCPUGenerator();
    const std::lock_guard lock(cpu.mutex());
    cpu.set_state(state.tensors.at("cpu"));
}

}  // namespace

std::vector<std::string> TrainerRunState::parts() const {
    std::vector<std::string> names = {"model"};
    for (const Update& update : sources_.updates) names.push_back(part_of(update));
    for (const char* name : {"data", "generators", "position", "emission_counts"}) names.emplace_back(name);
    for (const auto& [id, callback] : sources_.callbacks()) names.push_back("callback." + id);
    return names;
}

Update* TrainerRunState::update_of(std::string_view part) const {
    for (Update& update : sources_.updates)
        if (part_of(update) == part) return &update;
    return nullptr;
}

Callback* TrainerRunState::callback_of(std::string_view part) const {
    for (const auto& [id, callback] : sources_.callbacks())
        if ("callback." + id == part) return callback;
    return nullptr;
}

SavedState TrainerRunState::save(std::string_view part) const {
    if (part == "model") return save_weights(sources_.model);
    if (const Update* update = update_of(part)) return save_optimizer(*update->optimizer);
    if (const Callback* callback = callback_of(part)) return callback->state();
    if (part == "generators") return save_generators();
    if (part == "emission_counts") return {sources_.bus.emission_counts(), {}};
    if (part == "data") {
        const LoaderPosition at = sources_.data();
        return {{{"epoch", at.epoch}, {"batches", at.batches}}, {}};
    }
    if (part == "position") return {nlohmann::json(sources_.bus.moment().position), {}};
    throw StateError(fmt::format("a run has no part '{}' that could be saved", part));
}

void TrainerRunState::load(std::string_view part, const SavedState& state) {
    if (part == "model") return load_weights(sources_.model, state);
    if (const Update* update = update_of(part)) return load_optimizer(*update->optimizer, state);
    if (Callback* callback = callback_of(part)) return callback->load_state(state);
    if (part == "generators") return load_generators(state);
    if (part == "emission_counts") return sources_.bus.restore_emission_counts(state.values.get<std::map<std::string, std::int64_t>>());
    if (part == "data" || part == "position")
        throw StateError(fmt::format("the part '{}' cannot be put back while a run is under way", part));
    throw StateError(fmt::format("a run has no part '{}' that could be loaded", part));
}

}  // namespace torchbus

#include "trainer_run_state.hpp"

#include <fmt/format.h>
#include <torch/optim/optimizer.h>

#include <torchbus/error.hpp>
#include <torchbus/optim/optimizer_state.hpp>

#include "generators.hpp"

namespace torchbus {
namespace {

std::string part_of(const Update& update) { return update.name.empty() ? "update" : "update." + update.name; }

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
            if (saved->second.scalar_type() != tensor.scalar_type())
                throw CheckpointError(fmt::format("the saved tensor '{}' is of type {}, the model's of type {}; a run goes on with the type that it had", name, c10::toString(saved->second.scalar_type()), c10::toString(tensor.scalar_type())));
            copies.emplace_back(tensor, saved->second);
        }
    for (auto& [tensor, saved] : copies) tensor.copy_(saved);
}

nlohmann::json values_of(const std::map<std::string, ConnectionProgress>& progress) {
    nlohmann::json values = nlohmann::json::object();
    for (const auto& [name, connection] : progress) values[name] = {{"emissions", connection.emissions}, {"filter", connection.filter}};
    return values;
}
std::map<std::string, ConnectionProgress> progress_from(const nlohmann::json& values) {
    std::map<std::string, ConnectionProgress> progress;
    for (const auto& [name, connection] : values.items()) progress[name] = {connection.at("emissions"), connection.at("filter").get<std::vector<double>>()};
    return progress;
}

nlohmann::json values_of(const RunHistory& history) {
    nlohmann::json epochs = nlohmann::json::array();
    for (const EpochRecord& record : history.epochs()) epochs.push_back({{"epoch", record.epoch}, {"step", record.step}, {"metrics", record.metrics}});
    return {{"epochs", std::move(epochs)}};
}
void load_history(const nlohmann::json& values, RunHistory& history) {
    history.clear();
    for (const auto& record : values.at("epochs")) history.add({record.at("epoch"), record.at("step"), record.at("metrics")});
}

nlohmann::json values_of(const Blackboard& blackboard) {
    nlohmann::json values = nlohmann::json::object();
    for (const std::string& name : blackboard.names()) values[name] = *blackboard.number(name);
    return values;
}
void load_blackboard(const nlohmann::json& values, Blackboard& blackboard) {
    // Who has published by now goes on to: a mean that runs, a scale that changes.
    for (const auto& [name, value] : values.items())
        if (!blackboard.has(name)) blackboard.publish(name, value.get<double>());
}

}  // namespace

std::vector<std::string> TrainerRunState::parts() const {
    std::vector<std::string> names = {"model"};
    for (const Update& update : sources_.updates) names.push_back(part_of(update));
    for (const char* name : {"generators", "connections", "options", "history", "blackboard", "position", "data", "decisions", "configuration"}) names.emplace_back(name);
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
    if (part == "generators") {
        const SavedState* before = sources_.generators_before_evaluation();
        return before ? *before : save_generators();
    }
    if (part == "model") return save_weights(sources_.model);
    if (const Update* update = update_of(part)) return save_optimizer(*update->optimizer, sources_.model->named_parameters());
    if (const Callback* callback = callback_of(part)) return callback->state();
    if (part == "options") return {sources_.changed_options(), {}};
    if (part == "connections") return {values_of(sources_.bus.connection_progress()), {}};
    if (part == "data") {
        const LoaderPosition at = sources_.resume_point().data;
        return {{{"epoch", at.epoch}, {"batches", at.batches}}, {}};
    }
    if (part == "position") return {nlohmann::json(sources_.resume_point().position), {}};
    if (part == "decisions") return {to_values(sources_.resume_point().progress), {}};
    if (part == "configuration") return {sources_.configuration(), {}};
    if (part == "history") return {values_of(sources_.history), {}};
    if (part == "blackboard") return {values_of(sources_.blackboard), {}};
    throw StateError(fmt::format("a run has no part '{}' that could be saved", part));
}

void TrainerRunState::load_of_ranks(std::string_view part, const std::vector<SavedState>& states) {
    if (Callback* callback = callback_of(part)) return callback->load_states_of_ranks(states);
    load(part, states.front());
}

void TrainerRunState::load(std::string_view part, const SavedState& state) {
    if (part == "model") return load_weights(sources_.model, state);
    if (const Update* update = update_of(part)) return load_optimizer(*update->optimizer, sources_.model->named_parameters(), state);
    if (Callback* callback = callback_of(part)) return callback->load_state(state);
    if (part == "generators") return load_generators(state);
    if (part == "options") return sources_.restore_options(state.values);
    if (part == "connections") return sources_.bus.restore_connection_progress(progress_from(state.values));
    if (part == "history") return load_history(state.values, sources_.history);
    if (part == "blackboard") return load_blackboard(state.values, sources_.blackboard);
    if (part == "data" || part == "position" || part == "decisions" || part == "configuration")
        throw StateError(fmt::format("the part '{}' cannot be put back while a run is under way", part));
    throw StateError(fmt::format("a run has no part '{}' that could be loaded", part));
}

}  // namespace torchbus

#include "recorded_events.hpp"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include <ATen/ops/scalar_tensor.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

#include "../stream/json_member.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

template <class T>
T value_at(const json& data, const char* name) {
    return data.at(name).get<T>();
}
std::string text(const json& data, const char* name) { return value_at<std::string>(data, name); }
/// Lives as long as the data does.
std::string_view view(const json& data, const char* name) { return data.at(name).get_ref<const std::string&>(); }
std::int64_t integer(const json& data, const char* name) { return value_at<std::int64_t>(data, name); }
bool boolean(const json& data, const char* name) { return value_at<bool>(data, name); }

template <class T>
std::optional<T> optional_at(const json& data, const char* name) {
    return data.at(name).is_null() ? std::nullopt : std::optional(data.at(name).get<T>());
}

double number_of(const json& value) {
    const auto number = stream_number(value);
    if (!number) throw DataError(fmt::format("{} is no number", value.dump(-1, ' ', false, json::error_handler_t::replace)));
    return *number;
}

at::Tensor scalar_of(const json& value) { return value.is_null() ? at::Tensor() : at::scalar_tensor(number_of(value), at::kDouble); }

Counts counts_of(const json& data) { return {integer(data, "step"), integer(data, "attempts"), integer(data, "micro_batch"), integer(data, "samples"), integer(data, "tokens")}; }

Position position_in(const json& data, const char* name = "position") {
    const json& of = data.at(name);
    Position position;
    static_cast<Counts&>(position) = counts_of(of);
    position.epoch = integer(of, "epoch");
    position.in_epoch = counts_of(of.at("in_epoch"));
    return position;
}

template <class Name, class Of>
Name named(std::string_view text, std::initializer_list<Name> all, Of&& name) {
    const auto found = std::ranges::find_if(all, [&](Name one) { return name(one) == text; });
    if (found == all.end()) throw DataError(fmt::format("'{}' is not known", text));
    return *found;
}

Mode mode_of(std::string_view text) {
    return named(text, {Mode::Train, Mode::Eval, Mode::Predict}, [](Mode mode) { return mode == Mode::Train ? "train" : mode == Mode::Eval ? "eval" : "predict"; });
}

Scope scope_in(const json& data) {
    const json& of = data.at("scope");
    return {mode_of(view(of, "mode")), view(of, "split"), view(of, "view")};
}

MicroBatch micro_batch_in(const json& data) {
    const json& of = data.at("micro_batch");
    return {integer(of, "index"), integer(of, "count"), value_at<int>(of, "pass"), view(of, "update"), boolean(of, "repeated")};
}

RunResult result_in(const json& data) {
    const json& of = data.at("result");
    const auto outcome = named(view(of, "outcome"), {Outcome::Finished, Outcome::Stopped, Outcome::Signalled, Outcome::Failed}, [](Outcome one) { return name_of(one); });
    return {outcome, text(of, "requester"), text(of, "reason"), value_at<int>(of, "exit_code")};
}

Request request_in(const json& data) {
    Request request{text(data, "requester"), text(data, "reason")};
    request.rank = data.value("rank", 0);
    return request;
}

LeftOut left_out_in(const json& data) {
    const json& of = data.at("left_out");
    return {{integer(of, "epoch"), integer(of, "first"), integer(of, "count")}, text(of, "requester"), text(of, "reason")};
}

/// 1 to 1e9: the products of three of them are whole numbers.
std::int64_t count_at(const json& data, const char* name) {
    const std::int64_t count = integer(data, name);
    if (count < 1 || count > 1'000'000'000) throw DataError(fmt::format("{}: {} is out of range", name, count));
    return count;
}
std::optional<std::int64_t> optional_count_at(const json& data, const char* name) { return data.at(name).is_null() || data.at(name) == 0 ? optional_at<std::int64_t>(data, name) : std::optional(count_at(data, name)); }

RunPlan plan_in(const json& data) {
    const json& of = data.at("plan");
    RunPlan plan;
    plan.epochs = optional_count_at(of, "epochs");
    plan.max_steps = optional_at<std::int64_t>(of, "max_steps");
    plan.micro_batches_per_step = count_at(of, "micro_batches_per_step");
    plan.max_passes = integer(of, "max_passes");
    for (const json& split : of.at("splits")) plan.splits.push_back({text(split, "name"), mode_of(view(split, "mode")), optional_count_at(split, "batches")});
    plan.views = of.at("views").get<std::vector<std::string>>();
    plan.device = c10::Device(text(of, "device"));
    plan.seed = value_at<std::uint64_t>(of, "seed");
    return plan;
}

Batch batch_in(const json& data) {
    const json& of = data.at("batch");
    Batch batch;
    batch.samples = integer(of, "samples");
    batch.valid = integer(of, "valid");
    batch.weight = number_of(of.at("weight"));
    return batch;
}

Window window_in(const json& data) {
    Window window;
    window.batches.resize(static_cast<std::size_t>(std::clamp<std::int64_t>(data.value("micro_batches", std::int64_t{0}), 0, 1 << 16)));
    if (data.contains("samples")) window.batches.emplace_back().indices = data["samples"].get<std::vector<std::int64_t>>();
    if (data.contains("total_weight")) window.total_weight = number_of(data["total_weight"]);
    return window;
}

Update update_in(const json& data) { return {text(data, "update"), {}, {}, 1}; }

}  // namespace

Decision decision_named(std::string_view name) {
    for (std::size_t i = 0; i < kDecisionCount; ++i)
        if (name_of(static_cast<Decision>(i)) == name) return static_cast<Decision>(i);
    throw DataError(fmt::format("the decision '{}' is not known", name));
}

RecordedEvents::RecordedEvents(Bus& bus) : bus_(bus), model_([](const Batch&) { return Output(); }) {}

void RecordedEvents::take_plan(const json& data) {
    plan_ = plan_in(data);
    RunLength& length = bus_.moment().length;
    length = {plan_.epochs, plan_.splits.empty() ? std::nullopt : plan_.splits.front().length(), plan_.max_steps};
    if (!length.batches_per_epoch || !plan_.epochs) return;
    const std::int64_t steps = (*length.batches_per_epoch + plan_.micro_batches_per_step - 1) / plan_.micro_batches_per_step * *plan_.epochs;
    length.steps = std::min(plan_.max_steps.value_or(steps), steps);
}

// What an event refers to lives as long as its emission, or as this does.
template <class Event>
void RecordedEvents::emit_as(const json& data) {
    const auto position = [&] { return position_in(data); };
    if constexpr (requires(Event event) { event.position; }) bus_.moment().position = position();
    if constexpr (std::is_same_v<Event, TrainingRunStart>) bus_.moment().mode = run_mode_ = Mode::Train;
    if constexpr (std::is_same_v<Event, EvaluationRunStart>) bus_.moment().mode = run_mode_ = Mode::Eval;
    if constexpr (std::is_same_v<Event, PredictionRunStart>) bus_.moment().mode = run_mode_ = Mode::Predict;
    if constexpr (requires(Event event) { event.scope; }) bus_.moment().mode = scope_in(data).mode;
    [[maybe_unused]] Update update;
    [[maybe_unused]] Window window;
    [[maybe_unused]] Batch batch;
    [[maybe_unused]] Output output;
    [[maybe_unused]] at::Tensor tensor;
    if constexpr (requires(Event event) { event.update; }) update = update_in(data);
    if constexpr (requires(Event event) { event.window; }) window = window_in(data);
    if constexpr (requires(Event event) { event.loss; } && !std::is_same_v<Event, OutputReady>) tensor = scalar_of(data.at("loss"));

    if constexpr (std::is_same_v<Event, RunConfigured>) take_plan(data), bus_.emit(RunConfigured{position(), plan_, model_, updates_});
    else if constexpr (requires(Event event) { event.plan; }) take_plan(data), bus_.emit(Event{position(), plan_});
    else if constexpr (std::is_same_v<Event, RunClosed>) result_ = result_in(data), bus_.emit_to_everyone(RunClosed{position(), result_});
    else if constexpr (requires(Event event) { event.result; }) result_ = result_in(data), bus_.emit(Event{position(), result_});
    else if constexpr (std::is_same_v<Event, TrainEpochEnd>) bus_.emit(TrainEpochEnd{position(), counts_of(data.at("epoch")), boolean(data, "completed")});
    else if constexpr (std::is_same_v<Event, TrainStepStart>) bus_.emit(TrainStepStart{position(), update, window});
    else if constexpr (std::is_same_v<Event, TrainStepEnd>) bus_.emit(TrainStepEnd{position(), update, window, tensor, boolean(data, "skipped")});
    else if constexpr (std::is_same_v<Event, BatchReady>) batch = batch_in(data), bus_.emit(BatchReady{position(), scope_in(data), micro_batch_in(data), batch});
    else if constexpr (std::is_same_v<Event, ForwardStart>) bus_.emit(ForwardStart{position(), scope_in(data), micro_batch_in(data), batch});
    else if constexpr (std::is_same_v<Event, OutputReady>) bus_.emit(OutputReady{position(), scope_in(data), micro_batch_in(data), batch, output, tensor});
    else if constexpr (std::is_same_v<Event, ForwardEnd>) bus_.emit(ForwardEnd{position(), scope_in(data), micro_batch_in(data), batch, output, tensor});
    else if constexpr (std::is_same_v<Event, BackwardStart>) bus_.emit(BackwardStart{position(), micro_batch_in(data), tensor});
    else if constexpr (std::is_same_v<Event, BackwardEnd>) bus_.emit(BackwardEnd{position(), micro_batch_in(data)});
    else if constexpr (std::is_same_v<Event, MicroBatchFailed>)
        bus_.emit(MicroBatchFailed{position(), micro_batch_in(data), window, text(data, "error"), boolean(data, "out_of_memory"), boolean(data, "repeat")});
    else if constexpr (std::is_same_v<Event, GradientsReady>) {
        const GradientsView none({});
        bus_.emit(GradientsReady{position(), update, window, none, value_at<int>(data, "pass"), text(data, "skip_requester"), text(data, "skip_reason"), boolean(data, "again")});
    } else if constexpr (std::is_same_v<Event, OptimizerStepSkipped>) bus_.emit(OptimizerStepSkipped{position(), update, view(data, "requester"), view(data, "reason")});
    else if constexpr (requires(Event event) { event.update; }) bus_.emit(Event{position(), update});
    else if constexpr (std::is_same_v<Event, StepCheckpoint>) bus_.emit(StepCheckpoint{position(), view(data, "requester"), view(data, "reason")});
    else if constexpr (std::is_same_v<Event, CheckpointSaved>) bus_.emit(CheckpointSaved{position(), text(data, "path")});
    else if constexpr (std::is_same_v<Event, RollingBack>) {
        const Request request = request_in(data);
        bus_.emit(RollingBack{position(), request, data.at("states").get<std::vector<std::string>>()});
    } else if constexpr (std::is_same_v<Event, RolledBack>)
        bus_.emit(RolledBack{position(), position_in(data, "from"), text(data, "path"), left_out_in(data), integer(data, "count")});
    else if constexpr (std::is_same_v<Event, WindowLeftOut>) {
        const LeftOut left_out = left_out_in(data);
        bus_.emit(WindowLeftOut{position(), window, left_out});
    } else if constexpr (std::is_same_v<Event, EvalEpochStart>) bus_.emit(EvalEpochStart{position(), scope_in(data)});
    else if constexpr (std::is_same_v<Event, EvalStepEnd>) bus_.emit(EvalStepEnd{position(), scope_in(data), integer(data, "step"), tensor});
    else if constexpr (std::is_same_v<Event, EvalEpochEnd>)
        bus_.emit(EvalEpochEnd{position(), scope_in(data), integer(data, "steps"), integer(data, "samples"), boolean(data, "completed")});
    else if constexpr (std::is_same_v<Event, PredictStepEnd>) batch = batch_in(data), bus_.emit(PredictStepEnd{position(), scope_in(data), integer(data, "step"), batch, output});
    else if constexpr (requires(Event event) { event.scope; event.step; }) bus_.emit(Event{position(), scope_in(data), integer(data, "step")});
    else if constexpr (std::is_same_v<Event, ParametersChanged>) bus_.emit(ParametersChanged{position(), std::vector<at::Tensor>(static_cast<std::size_t>(std::clamp<std::int64_t>(integer(data, "added"), 0, 1 << 20)))});
    else if constexpr (std::is_same_v<Event, OptionChanged>)
        bus_.emit(OptionChanged{position(), text(data, "subscriber"), text(data, "option"), text(data, "from"), text(data, "to"), text(data, "requester"), text(data, "error")});
    else if constexpr (std::is_same_v<Event, WeightsViewChanged>) bus_.emit(WeightsViewChanged{position(), view(data, "from"), view(data, "to")});
    else if constexpr (std::is_same_v<Event, DecisionTaken>) bus_.emit(DecisionTaken{position(), decision_named(view(data, "decision")), request_in(data)});
    else if constexpr (std::is_same_v<Event, SubscriberFailed>)
        bus_.emit(SubscriberFailed{position(), text(data, "id"), text(data, "event"), text(data, "error"), boolean(data, "detached")});
    else if constexpr (std::is_same_v<Event, SubscriberAttached> || std::is_same_v<Event, SubscriberDetached>) bus_.emit(Event{text(data, "id"), text(data, "requester")});
    else if constexpr (std::is_same_v<Event, RunFailed>) bus_.emit_to_everyone(RunFailed{position(), text(data, "error"), text(data, "subscriber"), text(data, "event")});
    else bus_.emit(Event{position()});
    if constexpr (std::is_same_v<Event, EvalEpochEnd>) bus_.moment().mode = run_mode_;
}

bool RecordedEvents::emit(std::string_view name, const json& data) {
    using Emit = void (RecordedEvents::*)(const json&);
    static const auto kEvents = []<class... Events>(std::tuple<Events...>*) {
        return std::map<std::string, Emit, std::less<>>{{detail::event_type<Events>().name, &RecordedEvents::emit_as<Events>}...};
    }(static_cast<TrainerEvents*>(nullptr));
    const auto found = kEvents.find(name);
    if (found == kEvents.end()) return false;
    try {
        (this->*found->second)(data);
    } catch (const json::exception& error) {
        throw DataError(fmt::format("its data is none of {}: {}", name, error.what()));
    } catch (const c10::Error& error) {
        throw DataError(fmt::format("its data is none of {}: {}", name, error.what_without_backtrace()));
    }
    return true;
}

}  // namespace torchbus

#pragma once
/// Events of a recorded run, emitted anew.

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/bus.hpp>

namespace torchbus {

/// Throws: DataError for a name that is none.
Decision decision_named(std::string_view name);

/// An event is as it was in all that its JSON has. Tensors that were left out of that are undefined, a loss is a scalar of float64, and
/// there is no model, no optimizer, and no data behind it.
class RecordedEvents {
public:
    explicit RecordedEvents(Bus& bus);
    /// Keeps the bus's moment up to date, and emits. Returns whether the library has such an event.
    /// Throws: DataError for data that is none of that event; SubscriberError when a critical subscriber threw.
    bool emit(std::string_view name, const nlohmann::json& data);
    const RunPlan& plan() const { return plan_; }

private:
    template <class Event>
    void emit_as(const nlohmann::json& data);
    void take_plan(const nlohmann::json& data);

    Bus& bus_;
    RunPlan plan_;
    Model model_;
    std::vector<Update> updates_;
    RunResult result_;
    Mode run_mode_ = Mode::Train;
};

}  // namespace torchbus

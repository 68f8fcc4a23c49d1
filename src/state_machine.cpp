#include <torchbus/state_machine.hpp>

#include <fmt/format.h>

namespace torchbus {

std::string_view name_of(State state) {
    constexpr std::array<std::string_view, kStateCount> kNames = {
        "ready", "starting_epoch", "deciding", "paused", "fetching_window", "running_window", "updating", "evaluating_in_epoch",
        "saving_step", "rolling_back", "ending_epoch", "evaluating", "saving_epoch", "predicting", "saving_last", "ending", "failing",
        "closing", "closed"};
    return kNames[static_cast<std::size_t>(state)];
}

std::string_view name_of(Trigger trigger) {
    constexpr std::array<std::string_view, static_cast<std::size_t>(Trigger::RunClosed) + 1> kNames = {
        "start_training", "start_evaluation", "start_prediction", "epoch_started", "decided", "pause_due", "still_paused", "window_ready",
        "data_pending", "decision_due", "data_exhausted", "micro_batch_done", "window_done", "again", "next_update", "update_done",
        "evaluation_due", "evaluation_step_done", "evaluation_done", "save_due", "save_done", "roll_back_due",
        "rolled_back", "window_left_out", "epoch_stopped", "epoch_ended", "prediction_step_done", "prediction_done", "run_stopped", "run_done",
        "run_ended", "failed", "failure_told", "run_closed"};
    return kNames[static_cast<std::size_t>(trigger)];
}

std::string state_graph_dot() {
    std::string dot = "digraph torchbus {\n    rankdir=TB;\n    node [shape=box, style=rounded];\n";
    for (const Transition& row : kTransitions)
        if (row.on != Trigger::Failed)
            dot += fmt::format("    {} -> {} [label=\"{}\"];\n", name_of(row.from), name_of(row.to), name_of(row.on));
    for (const Transition& row : kTransitions)
        if (row.on == Trigger::Failed)
            dot += fmt::format("    {} -> {} [style=dotted];\n", name_of(row.from), name_of(row.to));
    return dot + "}\n";
}

std::string state_graph_mermaid() {
    std::string diagram = "stateDiagram-v2\n    [*] --> ready\n";
    for (const Transition& row : kTransitions)
        if (row.on != Trigger::Failed)
            diagram += fmt::format("    {} --> {}: {}\n", name_of(row.from), name_of(row.to), name_of(row.on));
    return diagram + "    closed --> [*]\n";
}

}  // namespace torchbus

#pragma once
/// Events with which a run begins and ends; a user's own events may be called alike, such as warmup_run_start.

#include <string_view>

namespace torchbus {

inline bool is_run_start(std::string_view event) { return event == "training_run_start" || event == "evaluation_run_start" || event == "prediction_run_start"; }
inline bool is_run_end(std::string_view event) { return event == "training_run_end" || event == "evaluation_run_end" || event == "prediction_run_end"; }
/// Whether its data has the plan of the run.
inline bool has_plan(std::string_view event) { return event == "run_configured" || is_run_start(event); }
/// Whether its position is the state that the run goes on from, or where it begins: what was told of later steps is given up.
inline bool goes_back(std::string_view event) { return event == "rolled_back" || event == "training_run_start"; }
/// "training". Requires: is_run_start().
inline std::string_view kind_of_run(std::string_view start) { return start.substr(0, start.find('_')); }

}  // namespace torchbus

#pragma once
/// The words that the progress bar and the progress lines share.

#include <cstdint>
#include <string>
#include <string_view>

#include <torchbus/blackboard.hpp>
#include <torchbus/events.hpp>

namespace torchbus {

/// "loss 0.1234, accuracy 98.20 %" for the names that begin with `role.`; those of the role itself come first.
std::string metrics_text(const Blackboard& blackboard, std::string_view role);

/// "epoch 1/3: train loss …, …; eval loss …, …"
std::string epoch_text(const Blackboard& blackboard, std::int64_t epoch, std::int64_t epochs);

/// "stopped after 12 steps by SIGINT: SIGINT was received"
std::string stop_text(const TrainingRunEnd& event);

/// "rolled back from step 24 to step 20 by nan_policy, leaving out batch 25 of epoch 1: the training loss is nan …"
std::string roll_back_text(const RolledBack& event);

/// Where both write by default: programs print results to standard output.
void write_to_stderr(std::string_view text);

/// 73 → "1:13", 3725 → "1:02:05"
std::string duration_text(double seconds);

/// 950 → "950", 12345 → "12.3k", 2.5e6 → "2.5M"
std::string quantity_text(double value);

}  // namespace torchbus

#pragma once
/// What a run looks like now, drawn from its messages: for who connects late, and for Prometheus.

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <string_view>

#include "message_view.hpp"

namespace torchbus {

/// Thread: one.
class RunPicture {
public:
    /// Messages of a new run follow.
    void begin(std::string run, int rank);
    void take(const MessageView& message);
    /// JSON: state, position, plan, numbers, result, decisions, newest checkpoint, accounting.
    std::string snapshot() const;
    /// JSON of its position and of its first event, or null.
    std::string_view position() const { return position_.empty() ? "null" : std::string_view(position_); }
    std::string_view start() const { return plan_.empty() ? "null" : std::string_view(plan_); }
    /// Prometheus' text format, version 0.0.4.
    void append_metrics(std::string& out) const;
    /// idle, running, evaluating, paused, or how the run ended.
    const std::string& state() const { return state_; }
    const std::string& run() const { return run_; }
    int rank() const { return rank_; }
    std::int64_t sequence() const { return sequence_; }

private:
    std::string run_;
    int rank_ = 0;
    std::string state_ = "idle";
    bool is_paused_ = false;
    std::int64_t sequence_ = 0, left_out_ = 0, messages_ = 0;
    std::string position_, plan_, numbers_, result_, checkpoint_, accounting_;  ///< JSON; empty: none yet
    std::deque<std::string> decisions_;                            ///< JSON of the last ones
    std::map<std::string, std::int64_t> decided_;                  ///< how often, by decision
    std::int64_t checkpoints_ = 0, failures_ = 0, skipped_ = 0;
};

/// `name{labels} value`, with what Prometheus wants escaped.
void append_sample(std::string& out, std::string_view name, const std::map<std::string, std::string>& labels, double value);
void append_help(std::string& out, std::string_view name, std::string_view type, std::string_view help);

}  // namespace torchbus

#pragma once
/// What happened in a recorded run, and why, drawn from its messages.

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "../stream/recording.hpp"

namespace torchbus::cli {

/// Memory: bounded; of what happens too often the first thousand are kept, and all are counted.
class RunStory {
public:
    void add(const RecordedMessage& message);
    /// Nothing follows.
    void end(const Recording& recording);
    /// run, file, kind, plan, began, ended, last, result, starts, decisions, skipped, saves, roll_backs, left_out, failures, options,
    /// changes, gaps, torn_bytes, left_out_messages: what `torchbus explain --json` prints.
    const nlohmann::json& told() const { return story_; }

private:
    void take(const RecordedMessage& message);
    void take_start(const RecordedMessage& message);
    void take_save(const nlohmann::json& data);
    void take_gap(std::int64_t first, std::int64_t last, std::string_view why);
    void append(const char* list, nlohmann::json entry);
    void group(const char* list, const std::vector<std::string>& by, const nlohmann::json& data);

    nlohmann::json story_ = nlohmann::json::object();
    std::string last_name_, last_position_, last_time_, first_time_;
    std::map<std::string, std::string> reasons_;  ///< of saves, by position
    std::deque<std::string> reasons_in_order_;    ///< positions, the oldest first
    std::map<std::string, std::size_t> groups_;   ///< places in their lists
    std::int64_t sequence_ = 0;
    bool has_gap_ = false;
};

}  // namespace torchbus::cli

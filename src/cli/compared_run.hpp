#pragma once
/// A recorded run as a comparison reads it: without what is not the run's, and without what the other run cannot hold.

#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "../stream/recording.hpp"

namespace torchbus::cli {

/// By the name of what comes with every step: the attempts of which it was recorded, sorted.
using RecordedAttempts = std::map<std::string, std::vector<std::int64_t>, std::less<>>;

/// What may be compared, where two runs were recorded in different ways.
struct ComparedPart {
    std::vector<std::string> patterns;         ///< of the other run's events
    const RecordedAttempts* attempts = nullptr;///< of both; null: all
};

/// Memory: one line, and at most 100,000 decisions and 100,000 texts that are put aside; what comes later of these is not compared.
class ComparedRun {
public:
    /// `ignore`: patterns of events that are read as if they were not there.
    ComparedRun(const std::filesystem::path& path, std::vector<std::string> ignore);

    const std::vector<std::string>& patterns() const { return patterns_; }
    const std::string& every() const { return every_; }
    void limit_to(ComparedPart part) { part_ = std::move(part), is_held_.clear(); }
    /// Goes on to the next message that is compared in its order.
    void advance();
    /// Null at the end.
    const RecordedMessage* message() const { return message_; }
    /// The data that is compared: numbers as one list, paths without their folders, -0 as the double that it is.
    nlohmann::json data() const;
    /// Whether messages were left out before this one since take_gap() was asked last.
    bool take_gap() { return std::exchange(had_gap_, false); }

    const std::filesystem::path& path() const { return recording_.path(); }
    const std::string& run() const { return run_; }
    std::int64_t torn_bytes() const { return recording_.torn_bytes(); }
    std::int64_t count() const { return count_; }        ///< messages compared so far
    const std::string& last() const { return last_; }    ///< words on the last one
    std::int64_t gaps() const { return gaps_; }          ///< messages left out
    std::int64_t resumed() const { return resumed_; }    ///< how often it went on from a state

    struct Decision {
        nlohmann::json data;
        std::string text;  ///< words on it
    };
    std::deque<Decision> decisions;             ///< taken up to here, and not compared yet
    std::map<std::string, std::int64_t> aside;  ///< what arises off the training thread, and how often: a set

private:
    bool is_compared(const RecordedMessage& message);
    void begin(const RecordedMessage& start);
    void put_aside(const RecordedMessage& message);

    Recording recording_;
    std::vector<std::string> ignore_;
    const RecordedMessage* message_ = nullptr;
    std::vector<std::string> patterns_ = {"*"};
    std::string every_ = "1step", run_, last_ = "its beginning";
    ComparedPart part_ = {.patterns = {"*"}};
    std::map<std::string, bool, std::less<>> is_held_;  ///< by name: whether both hold it, and it is not ignored
    std::int64_t count_ = 0, gaps_ = 0, resumed_ = 0;
    bool had_gap_ = false, has_begun_ = false;
};

/// "train_step_end after epoch 0, step 17"
std::string words_on(const RecordedMessage& message);
/// "stop_run after epoch 3, step 90, asked for by early_stopping: eval.loss is 0.7"
std::string words_on_decision(const RecordedMessage& message);
/// Memory: 8 bytes for each message that comes with every step.
RecordedAttempts recorded_attempts(const std::filesystem::path& path);
RecordedAttempts of_both(const RecordedAttempts& one, const RecordedAttempts& other);

}  // namespace torchbus::cli

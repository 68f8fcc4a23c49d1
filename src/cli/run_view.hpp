#pragma once
/// What a run looks like now, for a terminal.

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "../stream/curves.hpp"
#include "../stream/recording.hpp"

namespace torchbus::cli {

struct ViewSize {
    std::size_t columns = 80, rows = 24;
    bool is_utf8 = true;
};

/// Memory: at most 200,000 points; longer curves are folded.
class RunView {
public:
    /// Messages of another run begin the view anew. Returns whether it is new: after a connection was lost some are told again.
    bool add(const RecordedMessage& message);
    /// At most `rows` lines of at most `columns` characters. `now`: seconds since 1970, for a run that may be under way; nothing for one that was recorded.
    std::vector<std::string> lines(const ViewSize& size, std::optional<double> now) const;
    /// A line for what an evaluation, an epoch, a decision, a save or an end is; empty for all else.
    std::string line_of(const RecordedMessage& message) const;
    /// Whether the run's last message was seen.
    bool is_over() const { return is_over_; }
    /// When its newest message was emitted, in seconds since 1970.
    double newest() const { return newest_; }

private:
    void begin(const RecordedMessage& message);
    void take_snapshot(const nlohmann::json& data, std::optional<double> told);
    void take_accounting(const nlohmann::json& data, std::optional<double> told);
    void take_plan(const nlohmann::json& data);
    void take_place(const RecordedMessage& message);
    void take(const RecordedMessage& message);
    void note(std::string line);
    std::string head(const ViewSize& size) const;
    std::string progress(const ViewSize& size, std::optional<double> now) const;
    std::string curve_line(const std::string& name, std::size_t name_width, const ViewSize& size) const;
    std::optional<double> steps_in_all() const;
    std::optional<double> steps_per_second() const;

    std::string run_, state_ = "waiting", kind_ = "run";
    bool is_paused_ = false;
    std::int64_t sequence_ = 0;
    std::int64_t epoch_ = 0, step_ = 0, attempts_ = 0, skipped_ = 0;
    double left_out_ = 0;  ///< messages
    nlohmann::json plan_;
    double began_ = 0, newest_ = 0;  ///< seconds since 1970
    struct Place {
        double seconds = 0;
        std::int64_t attempts = 0;
    };
    std::deque<Place> places_;      ///< of the last half minute
    std::deque<std::string> notes_; ///< the last decisions, saves and faults
    Curves curves_{200'000};
    StreamNumbers numbers_;         ///< the newest ones, for lines
    bool is_over_ = false;
};

}  // namespace torchbus::cli

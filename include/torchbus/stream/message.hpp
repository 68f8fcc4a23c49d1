#pragma once
/// One event as it leaves the process: a JSON object on a line, in the envelope of CloudEvents 1.0.
///
///     {"specversion":"1.0","source":"/torchbus/RUN/ranks/0","id":"17","type":"torchbus.train_step_end","time":"2026-11-27T23:41:07.250113Z",
///      "dataschema":"torchbus:events:1","sequence":"0000000000000017","run":"RUN","rank":0,"data":{…}}
///
/// `data` is as events_json.hpp has it: stable names; no units but those in the schema; "NaN", "Infinity" and "-Infinity" for what is
/// no number. A user's own event with a to_json is one as well: where that gives no object, `data` is {"value": …}, where it is nested
/// too deeply to be read, {"text": "…"}, its JSON as a text, and where it throws, {"error": "…"}; one whose name is taken, a Gap, is
/// `torchbus.user_gap`. Beside the events there are `torchbus.stream_start`, the first message of a run, `torchbus.numbers`, what is on
/// the blackboard, `torchbus.accounting`, what subscribers cost, and `torchbus.gap`, where a stream had to leave messages out.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/event_type.hpp>
#include <torchbus/stream/format.hpp>

namespace torchbus {

/// Whose messages they are.
struct StreamSource {
    std::string run;  ///< Moment::run_id
    int rank = 0;
};

/// Writes messages, and counts them: the first is number 1.
class MessageWriter {
public:
    explicit MessageWriter(const StreamSource& source);
    /// Appends the line of an event, its line break included. Requires: it has JSON.
    void append(std::string& out, const AnyEvent& event, std::chrono::system_clock::time_point now);
    /// The same of what is no event. `data`: JSON.
    void append(std::string& out, std::string_view name, std::string_view data, std::chrono::system_clock::time_point now);
    /// Numbers of messages that nobody was sent, where they had to be left out.
    void append_gap(std::string& out, std::int64_t first, std::int64_t last, std::chrono::system_clock::time_point now);
    /// What stands beside the messages, after this one: a snapshot, an answer.
    void append_beside(std::string& out, std::string_view name, std::int64_t sequence, std::string_view data, std::chrono::system_clock::time_point now);
    /// Counts messages that are not written.
    void skip(std::int64_t count) { sequence_ += count; }
    /// Of the last message.
    std::int64_t sequence() const { return sequence_; }

private:
    void begin(std::string& out, std::string_view name, std::int64_t sequence, std::string_view id_ending, std::chrono::system_clock::time_point now);
    std::string_view second_text(std::chrono::system_clock::time_point now);

    std::string head_;           ///< what is the same in all messages
    std::int64_t sequence_ = 0, beside_ = 0;
    std::int64_t second_ = -1;   ///< that second_text_ is of
    std::string second_text_;
};

/// The `data` of an event's message. Requires: it has JSON.
std::string data_of(const AnyEvent& event);

/// JSON Schema (2020-12) of a message: its envelope, and its data by type.
nlohmann::json stream_schema();

}  // namespace torchbus

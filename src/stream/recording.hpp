#pragma once
/// Recorded runs: what callbacks/event_file.hpp writes, read message after message. Any bytes may come.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <torchbus/stream/numbers.hpp>

#include "line_source.hpp"
#include "message_view.hpp"

namespace torchbus {

/// A message, and where it stands.
class RecordedMessage {
public:
    /// `line`: without its line break; stays for as long as this does. `file`: named in errors.
    /// Throws: DataError that begins `FILE:NUMBER: `, for what is no message, whole and nested less deep than 64 levels.
    RecordedMessage(std::string_view line, std::string file, std::int64_t number);
    RecordedMessage(RecordedMessage&&) = default;
    RecordedMessage& operator=(RecordedMessage&&) = default;

    const MessageView& view() const { return view_; }
    std::string_view name() const { return view_.name; }
    std::int64_t sequence() const { return view_.sequence; }
    std::string_view run() const { return run_; }
    /// When it was emitted, "2026-11-27T23:41:07.250113Z"; seconds since 1970, or nothing where that is no time.
    std::string_view time() const { return view_.time(); }
    std::optional<double> seconds() const { return seconds_of_time(time()); }
    /// An object; parsed when it is asked for first. Throws: DataError that begins `FILE:NUMBER: `.
    const nlohmann::json& data() const;
    /// Of a message of numbers; nothing for another. Throws: DataError that begins `FILE:NUMBER: `.
    std::optional<StreamNumbers> numbers() const;
    /// Whether another process, or another run, begins here.
    bool is_start() const { return view_.name == "stream_start"; }
    /// "events.jsonl:17"
    std::string where() const;

private:
    [[noreturn]] void refuse(std::string_view why) const;

    MessageView view_;
    std::string_view run_;
    std::string file_;
    std::int64_t number_;
    mutable nlohmann::json data_;
};

/// The messages of a run of one rank, oldest first, through the files that were moved aside when they were full:
/// events.2.jsonl, events.1.jsonl, events.jsonl, as far as the one goes on with the run in which the other ends. A run that went on
/// from a saved state added to the file under an id of its own, so a recording may hold several runs, each from a message
/// `stream_start` on; where `resumed` is true in it, it goes on from a state of the one before, and what that one did later is
/// told twice. A run that began anew moved the file aside, and is a recording of its own.
/// Memory: one line, and 256 KiB. Thread: one.
class Recording {
public:
    /// `path`: a file, also one that was moved aside, such as events.3.jsonl; or a folder with events.jsonl, or with no more than one recording.
    /// Throws: ConfigError where there is none.
    explicit Recording(const std::filesystem::path& path);

    /// The next message; it stays until the next call. Null where nothing more is there: a later call may find more, in the same file
    /// or in those that followed it. Throws: DataError for a damaged line that others follow, and where the file cannot be read.
    const RecordedMessage* next();
    const std::filesystem::path& path() const { return path_; }
    /// Bytes of a last line that is not whole; 0 where it is. Known once next() has returned null.
    std::int64_t torn_bytes() const { return torn_bytes_; }
    /// Whether another run has begun in this place, in a file anew: this recording grows no more.
    bool is_over() const { return is_over_; }
    /// How many files there were so far.
    std::int64_t files() const { return files_; }

private:
    bool is_at_end();
    bool go_on();
    void begin_with(LineSource lines);

    std::filesystem::path path_, base_;  ///< with which the recording ends, and that without a number
    std::int64_t last_number_ = 0;       ///< of path_; 0: it may grow
    std::optional<LineSource> lines_;
    std::optional<RecordedMessage> message_;
    std::string damage_;                 ///< what is wrong with the last line, where it is whole
    std::int64_t damaged_bytes_ = 0, torn_bytes_ = 0, files_ = 0;
    bool was_left_ = false;              ///< the file was no longer path_ before it was read to its end
    bool is_over_ = false;
};

/// The file that a recording grows in, and those that are moved aside from it; `path` is one of them. Absolute, links followed.
std::set<std::filesystem::path> files_moved_with(const std::filesystem::path& path);

/// The files that other ranks have written beside one: events.rank1.jsonl, … in their order.
std::vector<std::filesystem::path> ranks_beside(const std::filesystem::path& path);

}  // namespace torchbus

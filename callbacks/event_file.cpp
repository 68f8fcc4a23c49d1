#include <torchbus/callbacks/event_file.hpp>

#include <cmath>
#include <optional>

#include <fmt/format.h>

#include <torchbus/error.hpp>
#include <torchbus/stream/event_feed.hpp>
#include <torchbus/stream/line_file.hpp>

#include "entries.hpp"
#include "parts/sink.hpp"

namespace torchbus {
namespace {

std::int64_t bytes_of(double mib) { return std::llround(mib * kBytesOfMib); }

class EventFile final : public Callback {
public:
    explicit EventFile(EventFileOptions options)
        : options_(std::move(options)),
          feed_({.owner = "event_file", .events = options_.events, .every = options_.every, .limit_bytes = static_cast<std::size_t>(bytes_of(options_.limit_mib)), .comes_before_saves = true},
                [this](const std::string&, int rank, bool is_resumed) { open(rank, is_resumed); }, [this](std::string& lines) { file_->write(lines); }, [this] { file_->sync(); }) {}
    std::string kind() const override { return "event_file"; }
    Declaration declare() const override { return {.listens = {"*", "step_checkpoint", "epoch_checkpoint"}, .reads = {"blackboard"}, .subscriber = {.fault = Fault::Optional}}; }
    std::vector<Finding> check(const Outlook&) const override { return check_sink_folder(kind(), "path", options_.path.parent_path()); }
    void attach(Attachment& run) override {
        feed_.attach(run);
    }
    void detach() override {
        feed_.detach();
        file_.reset();
    }

private:
    /// events.jsonl → events.rank1.jsonl
    std::filesystem::path path_of(int rank) const {
        std::filesystem::path path = options_.path;
        return rank == 0 ? path : path.replace_filename(fmt::format("{}.rank{}{}", path.stem().string(), rank, path.extension().string()));
    }
    void open(int rank, bool is_resumed) {
        file_.emplace(LineFileOptions{path_of(rank), bytes_of(options_.max_mib), options_.keep, milliseconds_in(options_.sync)});
        file_->open(/*to_add=*/is_resumed);
    }

    EventFileOptions options_;
    std::optional<LineFile> file_;  ///< of the feed's thread, while there is something to write
    EventFeed feed_;
};

}  // namespace

std::unique_ptr<Callback> make_event_file(EventFileOptions options) {
    if (options.path.empty()) throw ConfigError("event_file: path is empty; give a file, e.g. events.jsonl");
    require_of_sink(options.every.amount > 0, "event_file", "every", to_string(options.every), "an interval, e.g. 100step");
    require_of_sink(options.max_mib > 0, "event_file", "max_mib", fmt::format("{}", options.max_mib), "MiB, e.g. 256");
    require_of_sink(options.keep >= 0, "event_file", "keep", fmt::format("{}", options.keep), "a number of files, or 0 for none");
    require_of_sink(options.limit_mib > 0, "event_file", "limit_mib", fmt::format("{}", options.limit_mib), "MiB, e.g. 64");
    require_of_sink(options.sync.amount > 0 && options.sync.unit == Interval::Unit::Second, "event_file", "sync", to_string(options.sync), "a time, e.g. 5s");
    return std::make_unique<EventFile>(std::move(options));
}

std::unique_ptr<Callback> event_file_from_json(OptionReader& reader) {
    EventFileOptions options;
    std::string path = options.path;
    reader.text("path", path, "one message a line; a file that is there is moved aside")
        .texts("events", options.events, "patterns of names, e.g. train_step_end; numbers: what is on the blackboard")
        .interval("every", options.every, "of what comes with every step or batch; all else is written always")
        .number("max_mib", options.max_mib, "size above which the file is moved aside", Range::positive())
        .integer("keep", options.keep, "files moved aside that stay", Range::at_least(0))
        .number("limit_mib", options.limit_mib, "events that may wait for the disk, as copied: about a third of their text; what comes then is left out, and told", Range::positive())
        .interval("sync", options.sync, "how long messages may be in memory only, in time");
    options.path = path;
    return make_event_file(std::move(options));
}

}  // namespace torchbus

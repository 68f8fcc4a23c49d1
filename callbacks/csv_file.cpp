#include <torchbus/callbacks/csv_file.hpp>

#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/stream/csv_table.hpp>
#include <torchbus/stream/event_feed.hpp>

#include "entries.hpp"
#include "parts/sink.hpp"

namespace torchbus {
namespace {

class CsvFile final : public Callback {
public:
    explicit CsvFile(CsvFileOptions options)
        : options_(std::move(options)),
          feed_({.owner = "csv_file", .events = {"numbers", "training_run_start", "evaluation_run_start", "rolled_back"}, .every = options_.every, .comes_before_saves = true},
                [this](const std::string&, int, bool is_resumed) { table_.reset(), is_resumed_ = is_resumed; }, [this](std::string& lines) { write(std::exchange(lines, {})); }, [this] { if (table_) table_->sync(); }) {}
    std::string kind() const override { return "csv_file"; }
    Declaration declare() const override { return {.listens = {"*", "step_checkpoint", "epoch_checkpoint"}, .reads = {"blackboard"}, .subscriber = {.fault = Fault::Optional}}; }
    std::vector<Finding> check(const Outlook&) const override { return check_sink_folder(kind(), "path", options_.path.parent_path()); }
    void attach(Attachment& run) override {
        if (run.consensus.rank() == 0) feed_.attach(run);
    }
    void detach() override {
        feed_.detach();
        table_.reset();
    }

private:
    /// By the feed's thread.
    void write(std::string_view lines) {
        for_each_line(lines, [&](std::string_view line) { take(line); });
        if (table_) table_->flush();
    }

    void take(std::string_view line) {
        if (const auto numbers = numbers_of(line)) {
            if (table_) table_->add(*numbers);
            return;
        }
        const auto message = nlohmann::json::parse(line);
        const std::string type = message["type"];
        const auto step = [&] { return message["data"]["position"]["step"].get<std::int64_t>(); };
        if (type == "torchbus.training_run_start" || type == "torchbus.evaluation_run_start") table_.emplace(options_.path, options_.keep, is_resumed_, step());
        else if (type == "torchbus.rolled_back" && table_) table_->go_back_to(step());
    }

    CsvFileOptions options_;
    bool is_resumed_ = false;
    std::optional<CsvTable> table_;  ///< from the start event on
    EventFeed feed_;
};

}  // namespace

std::unique_ptr<Callback> make_csv_file(CsvFileOptions options) {
    if (options.path.empty()) throw ConfigError("csv_file: path is empty; give a file, e.g. metrics.csv");
    require_of_sink(options.every.amount > 0, "csv_file", "every", to_string(options.every), "an interval, e.g. 10step");
    require_of_sink(options.keep >= 0, "csv_file", "keep", fmt::format("{}", options.keep), "a number of files, or 0 for none");
    return std::make_unique<CsvFile>(std::move(options));
}

std::unique_ptr<Callback> csv_file_from_json(OptionReader& reader) {
    CsvFileOptions options;
    std::string path = options.path;
    reader.text("path", path, "a table that is there is moved aside")
        .interval("every", options.every, "of steps; evaluations and epochs are written always")
        .integer("keep", options.keep, "tables moved aside that stay", Range::at_least(0));
    options.path = path;
    return make_csv_file(std::move(options));
}

}  // namespace torchbus

#include <torchbus/callbacks/mlflow.hpp>

#include <cmath>
#include <memory>
#include <mutex>

#include <fmt/format.h>

#include <torchbus/error.hpp>
#include <torchbus/stream/event_feed.hpp>

#include "entries.hpp"
#include "parts/sink.hpp"
#include "parts/mlflow_records.hpp"
#include "parts/mlflow_server.hpp"

namespace torchbus {
namespace {

constexpr std::chrono::milliseconds kMlflowPace(200);         // a file and a request are worth more than a few numbers
constexpr std::size_t kLongestMlflowAnswer = 64U << 20;       // a run that is looked for comes with all of its metrics, parameters and tags

const std::vector<std::string>& told_to_mlflow() {
    static const std::vector<std::string> kTold = {"numbers", "training_run_start", "evaluation_run_start", "prediction_run_start", "decision_taken", "checkpoint_saved", "run_failed", "run_closed"};
    return kTold;
}

class Mlflow final : public Callback {
public:
    explicit Mlflow(MlflowOptions options)
        : options_(std::move(options)), http_{.url = http_url(options_.url, "mlflow: url"), .headers = http_headers(options_.token_file, options_.headers_file, kind()), .limit = milliseconds_in(options_.timeout), .max_answer_bytes = kLongestMlflowAnswer},
          records_(mlflow_names(options_.experiment, options_.run_name, options_.tags), [this](const nlohmann::json& record) { add(record); }),
          feed_({.owner = "mlflow", .events = told_to_mlflow(), .every = options_.every, .pace = kMlflowPace}, [this](const std::string& run, int, bool is_resumed) { begin(run, is_resumed); },
                [this](std::string& lines) { work(std::exchange(lines, {})); }, [this] { end(milliseconds_in(options_.wait_at_end)); }) {
        if (http_.url.target.find('?') != std::string::npos) throw ConfigError(fmt::format("mlflow: url: '{}' has a query; give the address of the server, e.g. http://127.0.0.1:5000", http_.url.place));
    }
    std::string kind() const override { return "mlflow"; }
    Declaration declare() const override { return {.listens = {"*"}, .reads = {"blackboard"}, .folders = {options_.spool.string()}, .subscriber = {.fault = Fault::Optional}}; }
    std::vector<Finding> check(const Outlook&) const override { return check_sink_folder(kind(), "spool", options_.spool); }
    void attach(Attachment& run) override {
        if (run.consensus.rank() == 0) feed_.attach(run);
    }
    void detach() override {
        feed_.detach();
        end(kPatienceWhenDetached);
    }
    SavedState state() const override {
        const std::lock_guard lock(mutex_);
        return run_.empty() ? SavedState{} : SavedState{{{"run", run_}}, {}};
    }
    void load_state(const SavedState& state) override {
        const std::lock_guard lock(mutex_);
        if (state.values.contains("run")) run_ = state.values["run"].get<std::string>();
    }

private:
    void begin(const std::string& run, bool is_resumed) {
        {
            const std::lock_guard lock(mutex_);
            if (!is_resumed || run_.empty()) run_ = run;  // load_state() may still come, before the first message of the run is read
        }
        left_out_ = 0;
        if (spool_) return;
        auto spool = std::make_unique<Spool>(SpoolOptions{.folder = options_.spool, .max_bytes = std::llround(options_.spool_mib * kBytesOfMib)});
        server_ = std::make_unique<MlflowServer>(http_, options_.spool.string());
        spool_ = std::move(spool);
        courier_ = std::make_unique<Courier>(CourierOptions{}, [this] { return server_->deliver(*spool_); }, [this] { server_->cancel(); });
    }
    void work(const std::string& lines) {
        if (!spool_) return;  // that it could not be opened was told
        std::string run;
        {
            const std::lock_guard lock(mutex_);
            run = run_;
        }
        records_.take(lines, run);
        courier_->wake();
    }
    void add(const nlohmann::json& record) {
        if (spool_->append(record.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace))) return;
        if (left_out_++ == 0) warn(fmt::format("mlflow: {} has {} MiB that wait for {}; what comes now is left out until there is place", options_.spool.string(), options_.spool_mib, http_.url.place));
    }
    void end(std::chrono::milliseconds patience) {
        if (!courier_) return;
        const bool is_all_told = courier_->finish(patience);
        courier_.reset();
        if (!is_all_told && spool_->waiting_bytes() > 0)
            warn(fmt::format("mlflow: {} was not told everything; {} KiB wait in {}, and are sent by the next run that has it as its spool", http_.url.place, (spool_->waiting_bytes() + 1023) / 1024, options_.spool.string()));
        if (left_out_ > 0) warn(fmt::format("mlflow: {} records were left out, as {} was full", left_out_, options_.spool.string()));
        if (spool_->damaged() > 0) warn(fmt::format("mlflow: {} lines in {} were torn or damaged, and are left out", spool_->damaged(), options_.spool.string()));
        server_->tell_sums();
        server_.reset();
        spool_.reset();
    }

    MlflowOptions options_;
    HttpPosterOptions http_;
    mutable std::mutex mutex_;
    std::string run_;  ///< the id of the run's first part; guarded by mutex_
    std::unique_ptr<Spool> spool_;         ///< while a run is under way, like all below
    std::unique_ptr<MlflowServer> server_;
    std::unique_ptr<Courier> courier_;     ///< before both it goes
    std::int64_t left_out_ = 0;            ///< records
    MlflowRecords records_;
    EventFeed feed_;                       ///< before all else it goes
};

}  // namespace

std::unique_ptr<Callback> make_mlflow(MlflowOptions options) {
    if (options.experiment.empty()) throw ConfigError("mlflow: experiment is empty; give its name");
    if (options.spool.empty()) throw ConfigError("mlflow: spool is empty; give a folder, e.g. mlflow_spool");
    require_of_sink(options.every.amount > 0, "mlflow", "every", to_string(options.every), "an interval, e.g. 10step");
    require_of_sink(options.spool_mib > 0, "mlflow", "spool_mib", fmt::format("{}", options.spool_mib), "MiB, e.g. 256");
    require_time_of_sink(options.timeout, false, "mlflow", "timeout", "a time, e.g. 30s");
    require_time_of_sink(options.wait_at_end, true, "mlflow", "wait_at_end", "a time, e.g. 10s");
    return std::make_unique<Mlflow>(std::move(options));
}

std::unique_ptr<Callback> mlflow_from_json(OptionReader& reader) {
    MlflowOptions options;
    std::string spool = options.spool, token_file, headers_file;
    reader.text("url", options.url, "of the server; http only")
        .text("experiment", options.experiment, "created where it is missing")
        .text("run_name", options.run_name, "empty: the id of the run")
        .texts("tags", options.tags, "name=value, e.g. team=vision")
        .interval("every", options.every, "of numbers that come with every step; those of epochs are told always")
        .text("spool", spool, "folder where what the server was not told yet waits, for one run at a time")
        .number("spool_mib", options.spool_mib, "what would make it larger is left out, and told", Range::positive())
        .text("token_file", token_file, "its first line is sent as Authorization: Bearer; empty: none")
        .text("headers_file", headers_file, "lines \"Name: value\" that are sent as well; empty: none")
        .interval("timeout", options.timeout, "of one request, in time")
        .interval("wait_at_end", options.wait_at_end, "how long the end of the run may wait for the server, in time");
    options.spool = spool;
    options.token_file = token_file;
    options.headers_file = headers_file;
    return make_mlflow(std::move(options));
}

}  // namespace torchbus

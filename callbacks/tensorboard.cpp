#include <torchbus/callbacks/tensorboard.hpp>

#include <charconv>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/stream/event_feed.hpp>
#include <torchbus/stream/numbers.hpp>

#include "entries.hpp"
#include "parts/sink.hpp"
#include "parts/weight_histograms.hpp"

namespace torchbus {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// "eval.ema.loss" → "eval/ema.loss": TensorBoard groups by what stands before the first slash.
std::string tag_of(std::string name) {
    if (const auto dot = name.find('.'); dot != std::string::npos) name[dot] = '/';
    return name;
}

std::string code_block(const json& value) { return fmt::format("```json\n{}\n```", value.dump(2, ' ', false, json::error_handler_t::replace)); }

class Tensorboard final : public Callback {
public:
    explicit Tensorboard(TensorboardOptions options)
        : options_(std::move(options)), histograms_(options_.histograms, options_.gradients, options_.bins),
          feed_({.owner = "tensorboard", .events = {"numbers", "training_run_start", "evaluation_run_start", "decision_taken", "rolled_back", "run_closed"}, .every = options_.every, .comes_before_saves = true},
                [this](const std::string& run, int, bool) { begin(run); }, [this](std::string& lines) { write(std::exchange(lines, {})); }, [this] { if (file_) file_->sync(); }) {}
    std::string kind() const override { return "tensorboard"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"*", "step_checkpoint", "epoch_checkpoint"}, .reads = {"blackboard"}, .subscriber = {.fault = Fault::Optional}};
        histograms_.declare(declared);
        return declared;
    }
    std::vector<Finding> check(const Outlook&) const override { return check_sink_folder(kind(), "folder", options_.folder); }
    void attach(Attachment& run) override {
        if (run.consensus.rank() > 0) return;
        feed_.attach(run);
        histograms_.attach(run);
    }
    void detach() override {
        histograms_.detach();
        feed_.detach();
        file_.reset();
    }
    /// The run's folder: one that goes on from the state writes there. It is loaded before the start event, at which the file is opened.
    SavedState state() const override { return {{{"run_name", run_name_}}, {}}; }
    void load_state(const SavedState& state) override {
        const std::string saved = state.values.at("run_name");
        if (options_.run_name.empty() && !saved.empty()) run_name_ = saved;
    }

private:
    void begin(const std::string& run) {
        file_.reset();
        metrics_.clear();
        has_parameters_ = false;
        run_name_ = !options_.run_name.empty() ? options_.run_name : run;
    }
    /// By the feed's thread, like all below.
    void write(std::string_view lines) {
        for_each_line(lines, [&](std::string_view line) { take(line); });
        if (!file_) return;
        histograms_.write_to(*file_);
        file_->flush();
    }
    void take(std::string_view line) {
        if (const auto numbers = numbers_of(line)) {
            if (file_) add(*numbers);
            return;
        }
        const json message = json::parse(line, nullptr, /*allow_exceptions=*/false);
        if (!message.is_object()) return;
        const std::string type = message["type"];
        const json& data = message["data"];
        const double seconds = seconds_of_time(message["time"].get_ref<const std::string&>()).value_or(0);
        const std::int64_t step = data.contains("position") ? data["position"]["step"].get<std::int64_t>() : 0;
        if (type == "torchbus.training_run_start" || type == "torchbus.evaluation_run_start") {
            file_.emplace(options_.folder / run_name_, step);
            file_->add_text(seconds, step, "run/plan", code_block(data["plan"]));
        } else if (file_ && type == "torchbus.decision_taken") {
            const std::string reason = data["reason"];
            file_->add_text(seconds, step, "run/decisions", fmt::format("**{}** by {}: {}", data["decision"].get<std::string>(), data["requester"].get<std::string>(), reason));
        } else if (file_ && type == "torchbus.rolled_back") {
            histograms_.write_to(*file_);  // of what is given up now
            file_->restart_at(step + 1);
        } else if (file_ && type == "torchbus.run_closed") {
            add_parameters(seconds);
            file_->add_text(seconds, step, "run/result", code_block(data["result"]));
            if (!options_.hyper_parameters.empty()) file_->add_end(seconds, data["result"]["outcome"] != "failed");
        }
    }
    void add(const StreamNumbers& numbers) {
        for (const auto& [name, value] : numbers.fresh) {
            file_->add_scalar(numbers.seconds, numbers.step, tag_of(name), value);
            if (name.starts_with("eval.") || name.starts_with("train.")) metrics_.insert(tag_of(name));
        }
        if (numbers.after == "training_run_epoch_end") add_parameters(numbers.seconds);
    }
    /// Once it is known by which metrics runs are compared.
    void add_parameters(double seconds) {
        if (options_.hyper_parameters.empty() || std::exchange(has_parameters_, true)) return;
        file_->add_hyper_parameters(seconds, options_.hyper_parameters, {metrics_.begin(), metrics_.end()});
    }

    TensorboardOptions options_;
    std::string run_name_;
    std::optional<TensorBoardFile> file_;  ///< from the start event on
    std::set<std::string> metrics_;        ///< tags
    bool has_parameters_ = false;
    WeightHistograms histograms_;
    EventFeed feed_;
};

/// "learning_rate=0.1": a number, true or false, or a text.
std::pair<std::string, HyperParameter> parameter_of(const std::string& text) {
    const auto equals = text.find('=');
    require_of_sink(equals != std::string::npos && equals > 0, "tensorboard", "hyper_parameters", fmt::format("'{}'", text), "NAME=VALUE, e.g. learning_rate=0.1");
    const std::string name = text.substr(0, equals), value = text.substr(equals + 1);
    if (value == "true" || value == "false") return {name, value == "true"};
    double number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error == std::errc() && end == value.data() + value.size()) return {name, number};
    return {name, value};
}

}  // namespace

std::unique_ptr<Callback> make_tensorboard(TensorboardOptions options) {
    if (options.folder.empty()) throw ConfigError("tensorboard: folder is empty; give one, e.g. tensorboard");
    require_of_sink(options.every.amount > 0, "tensorboard", "every", to_string(options.every), "an interval, e.g. 10step");
    require_of_sink(options.histograms.amount >= 0, "tensorboard", "histograms", to_string(options.histograms), "an interval, e.g. 100step, or 0 for none");
    require_of_sink(options.bins >= 1 && options.bins <= 1024, "tensorboard", "bins", fmt::format("{}", options.bins), "1 to 1024");
    require_of_sink(!options.run_name.starts_with('.') && options.run_name.find('/') == std::string::npos, "tensorboard", "run_name", fmt::format("'{}'", options.run_name), "a name without slashes, or nothing");
    return std::make_unique<Tensorboard>(std::move(options));
}

std::unique_ptr<Callback> tensorboard_from_json(OptionReader& reader) {
    TensorboardOptions options;
    std::string folder = options.folder;
    std::vector<std::string> parameters;
    reader.text("folder", folder, "each run has a folder of its own in it")
        .text("run_name", options.run_name, "of that folder; empty: the run's id")
        .interval("every", options.every, "of numbers that come with every step; all else is written always")
        .interval("histograms", options.histograms, "of weights; 0: none")
        .boolean("gradients", options.gradients, "histograms of gradients as well")
        .integer("bins", options.bins, "of a histogram", Range::between(1, 1024))
        .texts("hyper_parameters", parameters, "NAME=VALUE, shown beside the metrics in TensorBoard's HPARAMS");
    options.folder = folder;
    for (const std::string& text : parameters) options.hyper_parameters.insert(parameter_of(text));
    return make_tensorboard(std::move(options));
}

}  // namespace torchbus

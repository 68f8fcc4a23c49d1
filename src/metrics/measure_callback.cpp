#include <torchbus/metrics/measure_callback.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/changed_option.hpp>
#include <torchbus/error.hpp>

namespace torchbus {

namespace {

constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();

/// train, eval, eval.noisy, eval.noisy.ema, train.discriminator
std::string prefix_of(const Scope& scope, std::string_view update) {
    std::string prefix = scope.mode == Mode::Train ? "train" : "eval";
    if (scope.split != prefix) prefix += fmt::format(".{}", scope.split);
    if (scope.view != "training") prefix += fmt::format(".{}", scope.view);
    if (!update.empty()) prefix += fmt::format(".{}", update);
    return prefix;
}

/// What is gathered under one prefix.
struct Place {
    Statistics epoch = {};
    std::deque<Statistics> recent = {};  ///< of single batches, for the window
    bool is_published = false;           ///< as running numbers
};

class MeasureCallback final : public Callback {
public:
    MeasureCallback(std::string kind, std::shared_ptr<const Measure> measure, MeasureSchedule schedule)
        : kind_(std::move(kind)), measure_(std::move(measure)), schedule_(std::move(schedule)) {}
    std::string kind() const override { return kind_; }

    Declaration declare() const override {
        Declaration declared{.listens = {"train_epoch_start", "eval_epoch_start", "forward_end", "train_epoch_end", "eval_epoch_end"},
                             .reads = {"batch", "output"}, .collectives = true};
        const bool evaluates = schedule_.splits.empty() || std::ranges::any_of(schedule_.splits, [](const std::string& split) { return split != "train"; });
        const bool from_first_batch = schedule_.every.amount == 0;
        for_each_name([&](std::size_t index, const std::string& name) {
            const char* first = from_first_batch && measure_->is_cheap(index) ? "forward_end" : "train_epoch_end";
            if (wants("train")) declared.publishes.emplace_back("train." + name, first);
            if (wants("train") && runs(index)) declared.publishes.emplace_back("train.running." + name, first);
            if (evaluates) declared.publishes.emplace_back("eval." + name, "eval_epoch_end");
        });
        return declared;
    }

    std::vector<Finding> check(const Outlook& run) const override {
        std::vector<std::string> known;
        for (const SplitPlan& split : run.plan.splits) known.push_back(split.name);
        std::vector<Finding> findings;
        for (const std::string& split : schedule_.splits)
            if (std::ranges::find(known, split) == known.end())
                findings.push_back({Finding::Weight::Error, fmt::format("'{}' measures the split '{}', which this run does not have{}; name one of its splits",
                                                                        kind_, split, did_you_mean(split, known))});
        if (run.tried) try_measure(*run.tried, findings);
        return findings;
    }

    void attach(Attachment& run) override {
        const std::string against = measure_->against_ranks();
        if (run.consensus.world_size() > 1 && !against.empty())
            throw ConfigError(fmt::format("{}: {}, and this run has {} ranks", kind_, against, run.consensus.world_size()));
        run_ = &run;
        connections_ += run.bus.observe<TrainEpochStart>(Stage::Observe, [this](const TrainEpochStart& event) {
            if (event.position.in_epoch == Counts{}) start("train", wants("train"));  // resumed within an epoch, its first part counts
        });
        connections_ += run.bus.observe<EvalEpochStart>(Stage::Observe, [this](const EvalEpochStart& event) {
            start(prefix_of(event.scope, ""), wants(event.scope.split));
        });
        connect_training();
        connections_ += run.bus.observe<ForwardEnd>(Stage::Observe, [this](const ForwardEnd& event) { add(event, event.scope.split); }, in(Mode::Eval));
        connections_ += run.bus.observe<TrainEpochEnd>(Stage::Observe, [this](const TrainEpochEnd& event) { conclude("train", event.position); });
        connections_ += run.bus.observe<EvalEpochEnd>(Stage::Observe, [this](const EvalEpochEnd& event) {
            conclude(prefix_of(event.scope, ""), event.position);
        });
    }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        if (schedule_.every.amount == 0) return Callback::change_option(option, value);  // who counts every batch publishes from the first one on
        const auto before = change_interval(schedule_.every, "every", kind_, option, value);
        connect_training();
        return before;
    }
    void detach() override {
        training_.disconnect();
        connections_.clear();
        if (run_)
            for (const auto& [prefix, place] : places_) withdraw(prefix);
        run_ = nullptr;
        places_.clear();
    }

    /// What an epoch of training has gathered so far. An evaluation under way begins again on resume.
    SavedState state() const override {
        SavedState saved;
        for (const auto& [prefix, place] : places_) {
            if (!belongs_to(prefix, "train")) continue;
            if (!place.epoch.empty()) save(prefix + "/epoch", place.epoch, saved);
            for (std::size_t i = 0; i < place.recent.size(); ++i) save(fmt::format("{}/recent/{}", prefix, i), place.recent[i], saved);
        }
        return saved;
    }
    void load_state(const SavedState& saved) override {
        for (auto& [prefix, place] : places_) reset(prefix, place);
        for (const auto& [key, width] : saved.values.items()) {
            const std::string prefix = key.substr(0, key.find('/'));
            Place& place = places_[prefix];
            Statistics statistics = load(key, width.get<std::int64_t>(), saved);
            if (key.ends_with("/epoch")) {
                place.epoch = std::move(statistics);
                continue;
            }
            const std::size_t index = std::stoul(key.substr(key.rfind('/') + 1));
            if (place.recent.size() <= index) place.recent.resize(index + 1);
            place.recent[index] = std::move(statistics);
        }
    }

    /// Rank 0 goes on with what all have gathered: at the end of the epoch they are summed.
    void load_states_of_ranks(const std::vector<SavedState>& states) override {
        load_state({});
        if (run_->consensus.rank() != 0) return;
        load_state(states.front());
        for (std::size_t rank = 1; rank < states.size(); ++rank)
            for (const auto& [key, width] : states[rank].values.items())
                if (key.ends_with("/epoch")) places_[key.substr(0, key.find('/'))].epoch.merge(load(key, width.get<std::int64_t>(), states[rank]));
    }

private:
    void connect_training() {
        Filter training = in(Mode::Train);
        if (schedule_.every.amount > 0) training.every(schedule_.every);
        training_ = run_->bus.observe<ForwardEnd>(Stage::Observe, [this](const ForwardEnd& event) { add(event, "train"); }, training);
    }
    void try_measure(const TriedBatch& tried, std::vector<Finding>& findings) const {
        const at::NoGradGuard no_grad;
        try {
            Statistics statistics;
            measure_->gather(tried.batch, tried.output.tensor, statistics);
        } catch (const std::exception& error) {
            findings.push_back({Finding::Weight::Error, fmt::format("'{}' cannot measure what the model makes of the data's first batch: {}", kind_, error.what())});
        }
    }

    template <class Each>
    void for_each_name(Each each) const {
        const auto names = measure_->names();
        for (std::size_t i = 0; i < names.size(); ++i) each(i, names[i] + schedule_.suffix);
    }
    bool wants(std::string_view split) const {
        return schedule_.splits.empty() || std::ranges::find(schedule_.splits, split) != schedule_.splits.end();
    }
    bool runs(std::size_t index) const { return schedule_.window > 0 && measure_->is_cheap(index); }
    /// Whether sums are those of a prefix; those of named updates belong to "train".
    static bool belongs_to(std::string_view name, std::string_view prefix) {
        return name == prefix || (prefix == "train" && name.starts_with("train."));
    }

    void add(const ForwardEnd& event, std::string_view split) {
        const bool counts = !event.micro_batch.repeated && event.batch.valid > 0 && event.batch.weight > 0 && wants(split);
        if (!counts) return;
        const at::NoGradGuard no_grad;
        const std::string prefix = prefix_of(event.scope, event.micro_batch.update);
        Place& place = places_[prefix];
        measure_->gather(event.batch, event.output.tensor, place.epoch);
        if (schedule_.window > 0 && event.scope.mode == Mode::Train) {
            measure_->gather(event.batch, event.output.tensor, place.recent.emplace_back());
            place.recent.back().scores.clear();  // only cheap numbers run, and they need the sums alone
            place.recent.back().targets.clear();
            if (std::ssize(place.recent) > schedule_.window) place.recent.pop_front();
        }
        if (!std::exchange(place.is_published, true)) publish_running(prefix, place);
    }

    void publish_running(const std::string& prefix, const Place& place) {
        for_each_name([&](std::size_t index, const std::string& name) {
            if (!measure_->is_cheap(index)) return;
            run_->blackboard.publish_lazy(fmt::format("{}.{}", prefix, name), [this, index, &place] { return value_of(index, place.epoch); });
            if (runs(index) && belongs_to(prefix, "train"))
                run_->blackboard.publish_lazy(fmt::format("{}.running.{}", prefix, name), [this, index, &place] {
                    Statistics together;
                    for (const Statistics& batch : place.recent) together.merge(batch);
                    return value_of(index, together);
                });
        });
    }
    double value_of(std::size_t index, const Statistics& statistics) const { return statistics.empty() ? kNothing : measure_->value(index, statistics); }

    void withdraw(const std::string& prefix) {
        for_each_name([&](std::size_t, const std::string& name) {
            run_->blackboard.withdraw(fmt::format("{}.{}", prefix, name));
            run_->blackboard.withdraw(fmt::format("{}.running.{}", prefix, name));
        });
    }
    /// The node stays where it is: what is published refers to it.
    void reset(const std::string& prefix, Place& place) {
        if (run_) withdraw(prefix);
        place = {};
    }

    /// Starts a pass anew. Its place is there even if no batch comes, so that all ranks sum alike at its end.
    void start(const std::string& prefix, bool is_wanted) {
        if (!is_wanted) return;
        places_.try_emplace(prefix);
        for (auto& [name, place] : places_)
            if (belongs_to(name, prefix)) reset(name, place);
    }

    /// Sums over ranks, and publishes the numbers of the pass.
    void conclude(const std::string& prefix, const Position& position) {
        for (auto& [name, place] : places_) {
            if (!belongs_to(name, prefix)) continue;
            Statistics statistics = std::exchange(place.epoch, {});
            sum_over_ranks(statistics);
            for_each_name([&](std::size_t, const std::string& metric) { run_->blackboard.withdraw(fmt::format("{}.{}", name, metric)); });
            if (statistics.empty()) continue;  // nothing counted
            measure_->announce(run_->bus, {position, name}, statistics);
            for_each_name([&](std::size_t index, const std::string& metric) {
                run_->blackboard.publish(fmt::format("{}.{}", name, metric), measure_->value(index, statistics));
            });
            place.is_published = false;
        }
    }

    /// A rank without a batch does not know the width: they agree on it first.
    void sum_over_ranks(Statistics& statistics) const {
        if (run_->consensus.world_size() == 1) return;
        const double width = static_cast<double>(statistics.width);
        std::array widths = {statistics.empty() ? 0.0 : 1.0, width, width * width};
        run_->consensus.sum(widths);
        if (widths[0] == 0) return;
        if (widths[0] * widths[2] != widths[1] * widths[1])
            throw DistributedError(fmt::format("{}: the outputs of the ranks differ in their number of classes or columns; give all ranks one model", kind_));
        const auto agreed = static_cast<std::int64_t>(std::llround(widths[1] / widths[0]));
        std::vector<double> sums(static_cast<std::size_t>(measure_->size(agreed)));
        if (!statistics.empty()) {
            const at::Tensor mine = statistics.totals.to(at::kCPU).contiguous();
            std::copy_n(mine.const_data_ptr<double>(), sums.size(), sums.begin());
        }
        run_->consensus.sum(sums);
        statistics.width = agreed;
        statistics.totals = at::tensor(sums, at::kDouble);
    }

    static void save(const std::string& key, const Statistics& statistics, SavedState& saved) {
        saved.values[key] = statistics.width;
        saved.tensors[key + "/totals"] = statistics.totals;
        if (statistics.scores.empty()) return;
        saved.tensors[key + "/scores"] = at::cat(statistics.scores);
        saved.tensors[key + "/targets"] = at::cat(statistics.targets);
    }
    Statistics load(const std::string& key, std::int64_t width, const SavedState& saved) const {
        const auto totals = saved.tensors.find(key + "/totals");
        if (totals == saved.tensors.end() || totals->second.numel() != measure_->size(width))
            throw CheckpointError(fmt::format("{}: {} holds {} sums, expected {}; were the options of the callback changed?", kind_, key,
                                              totals == saved.tensors.end() ? 0 : totals->second.numel(), measure_->size(width)));
        Statistics statistics{.width = width, .totals = totals->second.clone()};
        if (const auto scores = saved.tensors.find(key + "/scores"); scores != saved.tensors.end()) {
            statistics.scores = {scores->second.clone()};
            statistics.targets = {saved.tensors.at(key + "/targets").clone()};
        }
        return statistics;
    }

    std::string kind_;
    std::shared_ptr<const Measure> measure_;
    MeasureSchedule schedule_;
    Attachment* run_ = nullptr;
    std::map<std::string, Place> places_;  ///< by prefix
    Connection training_;
    Connections connections_;
};

}  // namespace

void read_schedule(OptionReader& reader, MeasureSchedule& schedule) {
    reader.texts("splits", schedule.splits, "train and evaluation splits that count; empty: all")
        .interval("every", schedule.every, "training batches that count: one whenever this has passed; 0: all, and then it stays so").changeable()
        .integer("window", schedule.window, "train.running.<metric> is that of the last so many training batches that counted; 0: none",
                 Range::at_least(0))
        .text("suffix", schedule.suffix, "goes behind each name, so that two of one kind stand side by side");
}

std::unique_ptr<Callback> make_measure_callback(std::string kind, std::shared_ptr<const Measure> measure, MeasureSchedule schedule) {
    if (schedule.window < 0)
        throw ConfigError(fmt::format("{}: window: {} is negative; give the number of batches that train.running covers, or 0", kind, schedule.window));
    if (schedule.every.amount < 0)
        throw ConfigError(fmt::format("{}: every: {} is negative; give an interval, e.g. 10step, or 0", kind, to_string(schedule.every)));
    return std::make_unique<MeasureCallback>(std::move(kind), std::move(measure), std::move(schedule));
}

}  // namespace torchbus

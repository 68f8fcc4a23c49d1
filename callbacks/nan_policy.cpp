#include <torchbus/callbacks/nan_policy.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/changed_option.hpp>
#include <torchbus/checkpoint/writable.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/monitor.hpp"
#include "parts/usual_value.hpp"

namespace torchbus {
namespace {

using Action = NanPolicyOptions::Action;

/// What is wrong with an update; nothing where `what` is empty.
struct FaultOfUpdate {
    bool finite = true;
    std::string what;
};

void require_valid(const NanPolicyOptions& options) {
    const auto refuse = [](const char* name, double value, const char* what) {
        throw ConfigError(fmt::format("nan_policy: {}: {} is out of range; give {}", name, value, what));
    };
    if (options.spike_factor != 0 && !(options.spike_factor > 1)) refuse("spike_factor", options.spike_factor, "a factor above 1, e.g. 10, or 0 to look for no spikes");
    if (options.window < 1) refuse("window", static_cast<double>(options.window), "at least 1 update, e.g. 64");
    if (options.warmup < 1) refuse("warmup", static_cast<double>(options.warmup), "at least 1 update, e.g. 16");
    if (options.leave_out < 1) refuse("leave_out", static_cast<double>(options.leave_out), "at least 1 window");
    if (options.max_roll_backs < 1) refuse("max_roll_backs", static_cast<double>(options.max_roll_backs), "at least 1, or another action");
    if (options.max_in_a_row < 1) refuse("max_in_a_row", static_cast<double>(options.max_in_a_row), "at least 1 update, e.g. 10");
}

class NanPolicy final : public Callback {
public:
    explicit NanPolicy(NanPolicyOptions options) : options_(std::move(options)) {}
    std::string kind() const override { return "nan_policy"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "training_run_start", "rolled_back", "forward_end", "gradients_ready", "optimizer_step_end", "run_closed"},
                .reads = {"batch", "loss", "gradients"}, .writes = {"gradients.inspect", "gradients.decide"},
                .publishes = {{"nan_policy.faults", "training_run_start"}},
                .after = {"mixed_precision", "terminate_on_nan"}, .asks = asks(), .collectives = true};
    }
    std::vector<Finding> check(const Outlook&) const override {
        return !options_.record.empty() ? check_file(kind(), "record", options_.record) : std::vector<Finding>();
    }
    void attach(Attachment& run) override {
        run_ = &run;
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { model_ = event.model; });
        connections_ += run.bus.observe<TrainingRunStart>(Stage::Observe, [this](const TrainingRunStart& event) {
            window_ = event.plan.micro_batches_per_step;
            begin();
        });
        connections_ += run.bus.observe<RolledBack>(Stage::Observe, [this](const RolledBack& event) {
            roll_backs_ = event.count;
            faults_ = faults_given_up_;  // they count all the same
            run_->blackboard.publish("nan_policy.faults", static_cast<double>(faults_));
        });
        connections_ += run.bus.observe<ForwardEnd>(Stage::Observe, [this](const ForwardEnd& event) {
            if (event.micro_batch.repeated || !event.loss.defined()) return;
            if (event.micro_batch.index == 0) losses_.clear();
            losses_.push_back(event.loss.detach());
        }, in(Mode::Train));
        connections_ += run.bus.intercept(Phase::Inspect, [this](GradientsReady& event) { ask(event); });
        connections_ += run.bus.intercept(Phase::Decide, [this](GradientsReady& event) {
            if (event.skip_requester.empty() && !event.repeat) judge(event);
        });
        connections_ += run.bus.observe<OptimizerStepEnd>(Stage::Observe, [this](const OptimizerStepEnd& event) { learn(event.update.name); });
        connections_ += run.bus.observe<RunClosed>(Stage::Observe, [this](const RunClosed&) { forget_run(); });
    }
    void detach() override {
        connections_.clear();
        forget_run();
        histories_.clear();
        in_a_row_ = faults_ = roll_backs_ = 0;
        beginning_ = {};
        run_ = nullptr;
    }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        return change_number(options_, {{"spike_factor", &NanPolicyOptions::spike_factor}}, kind(), option, value,
                             [](const NanPolicyOptions& changed) { require_valid(changed); });
    }
    SavedState state() const override {
        SavedState state{{{"in_a_row", in_a_row_}, {"faults", faults_}, {"roll_backs", roll_backs_}, {"updates", nlohmann::json::object()}}, {}};
        for (const auto& [name, history] : histories_) state.values["updates"][name] = {{"loss", history.first.saved()}, {"norm", history.second.saved()}};
        return state;
    }
    void load_state(const SavedState& state) override {
        in_a_row_ = state.values.at("in_a_row");
        faults_given_up_ = std::exchange(faults_, state.values.at("faults").get<std::int64_t>());
        roll_backs_ = state.values.value("roll_backs", std::int64_t{0});  // states of before roll-backs have none
        histories_.clear();
        for (const auto& [name, saved] : state.values.at("updates").items()) {
            histories_[name].first.load(saved.at("loss"));
            histories_[name].second.load(saved.at("norm"));
        }
        beginning_.loaded();
    }

private:
    bool rolls_back() const { return options_.non_finite == Action::RollBack || options_.spike == Action::RollBack; }
    std::vector<Decision> asks() const {
        std::vector<Decision> asked = {Decision::FailRun, Decision::StopRun};
        if (rolls_back()) asked.push_back(Decision::RollBack);
        return asked;
    }
    void begin() {
        if (beginning_.is_anew()) {
            histories_.clear();
            in_a_row_ = faults_ = roll_backs_ = 0;
        }
        run_->blackboard.publish("nan_policy.faults", static_cast<double>(faults_));
    }
    void forget_run() {
        beginning_.closed();
        losses_.clear();
        model_ = {};
    }

    /// The 2-norm over all gradients of all owners. Shapes: [].
    static at::Tensor norm_of(const GradientsView& view) {
        const at::NoGradGuard no_grad;
        return view.norms().pow(2).sum().sqrt();
    }

    /// Asks for this rank's part of the window's mean loss, and for the gradient norm before clipping.
    void ask(GradientsReady& event) {
        const at::NoGradGuard no_grad;
        const at::Tensor norm = norm_of(event.gradients);
        at::Tensor loss = torch::zeros({}, norm.options().dtype(at::kDouble));
        for (std::size_t i = 0; i < losses_.size(); ++i)
            loss += losses_[i].to(loss.device(), at::kDouble) * event.window.share(static_cast<std::int64_t>(i));
        loss_place_ = event.host_read.ask(loss);
        norm_place_ = event.host_read.ask(norm);
    }

    /// Mean loss of the window over ranks, and gradient norm.
    std::array<double, 2> measure(GradientsReady& event) const {
        // The share goes by the weight of all ranks' windows, so the sum over ranks is their mean.
        std::array sums = {event.host_read.value(loss_place_)};
        run_->consensus.sum(sums);
        return {sums[0], event.host_read.value(norm_place_)};
    }

    void judge(GradientsReady& event) {
        measured_ = measure(event);
        const FaultOfUpdate fault = find_fault(event.update.name);
        if (fault.what.empty()) {
            in_a_row_ = 0;
            return;
        }
        run_->blackboard.publish("nan_policy.faults", static_cast<double>(++faults_));
        const std::string tensor = name_culprit(event.gradients, fault.finite);
        const auto indices = indices_of(event.window, fault.finite);
        const std::string reason = fmt::format("{} in epoch {} after step {}; {}{}", fault.what, event.position.epoch + 1, event.position.step, tensor, samples_text(indices));
        record(event.position, reason, tensor, indices);
        act(fault.finite ? options_.spike : options_.non_finite, event, reason);
    }

    FaultOfUpdate find_fault(const std::string& update) const {
        const auto [loss, norm] = measured_;
        if (!std::isfinite(loss)) return {false, fmt::format("the training loss is {}", loss)};
        if (!std::isfinite(norm)) return {false, fmt::format("the gradient norm is {}", norm)};
        const auto known = histories_.find(update);
        if (options_.spike_factor == 0 || known == histories_.end() || known->second.first.count() < options_.warmup) return {};
        const auto usual_of = [this](const UsualValue& value) { return options_.usual == NanPolicyOptions::Usual::Median ? value.median() : value.average(); };
        const double usual_loss = usual_of(known->second.first), usual_norm = usual_of(known->second.second);
        const auto spike = [&](const char* what, double value, double usual) {
            return FaultOfUpdate{true, fmt::format("the {} is {:.6g}, {:.3g} times the usual {:.6g}", what, value, value / usual, usual)};
        };
        if (usual_loss > 0 && loss > options_.spike_factor * usual_loss) return spike("training loss", loss, usual_loss);
        if (usual_norm > 0 && norm > options_.spike_factor * usual_norm) return spike("gradient norm", norm, usual_norm);
        return {};
    }

    /// The gradients that are not finite, or the largest one. Only asked where something is wrong, so it may sync.
    std::string name_culprit(const GradientsView& view, bool finite) const {
        const at::NoGradGuard no_grad;
        std::vector<std::string> bad;
        std::pair<double, std::string> largest{-1, ""};
        if (!model_) return "the names of its parameters are not known, as the run had begun before";
        for (const auto& [name, parameter] : model_->named_parameters()) {
            const bool belongs = std::ranges::any_of(view.parameters(), [&](const at::Tensor& one) { return one.is_same(parameter); });
            if (!belongs || !parameter.grad().defined()) continue;
            const double norm = parameter.grad().to(at::kDouble).norm().item<double>();
            if (!std::isfinite(norm)) bad.push_back(name);
            else largest = std::max(largest, {norm, name});
        }
        if (!bad.empty()) return fmt::format("not finite: the gradient{} of {}{}", bad.size() == 1 ? "" : "s", fmt::join(bad.begin(), bad.begin() + std::min<std::ptrdiff_t>(4, std::ssize(bad)), ", "),
                                             bad.size() > 4 ? fmt::format(" and {} more", bad.size() - 4) : "");
        if (!finite) return "all gradients are finite";
        return fmt::format("the largest gradient is that of {}, with norm {:.6g}", largest.second, largest.first);
    }

    /// Of the micro-batches whose loss is not finite, where there are such; otherwise of the whole window.
    std::vector<std::int64_t> indices_of(const Window& window, bool finite) const {
        std::vector<std::int64_t> bad, all;
        for (std::size_t i = 0; i < window.batches.size(); ++i) {
            const auto& indices = window.batches[i].indices;
            all.insert(all.end(), indices.begin(), indices.end());
            if (!finite && i < losses_.size() && !std::isfinite(losses_[i].item<double>())) bad.insert(bad.end(), indices.begin(), indices.end());
        }
        return bad.empty() ? all : bad;
    }

    static std::string samples_text(const std::vector<std::int64_t>& indices) {
        if (indices.empty()) return "";
        const auto shown = std::min<std::ptrdiff_t>(16, std::ssize(indices));
        return fmt::format("; samples {}{}", fmt::join(indices.begin(), indices.begin() + shown, ", "), std::ssize(indices) > shown ? fmt::format(" and {} more", std::ssize(indices) - shown) : "");
    }

    void act(Action action, GradientsReady& event, const std::string& reason) {
        if (action == Action::Warn) {
            warn(fmt::format("{}: {}", run_->bus.id(), reason));
            in_a_row_ = 0;
            return;
        }
        event.skip(run_->bus.id(), reason);
        if (action == Action::Fail) run_->asker.ask(Decision::FailRun, reason);
        if (action == Action::Stop) run_->asker.ask(Decision::StopRun, reason);
        if (action == Action::Skip && ++in_a_row_ >= options_.max_in_a_row)
            run_->asker.ask(Decision::FailRun, fmt::format("{} updates were skipped in a row; the last: {}", in_a_row_, reason));
        if (action == Action::RollBack) roll_back(event.window.range, reason);
    }

    void roll_back(const BatchRange& window, const std::string& reason) {
        if (roll_backs_ >= options_.max_roll_backs)
            return run_->asker.ask(Decision::FailRun, fmt::format("the run was rolled back {} times, as often as max_roll_backs allows, and again {}", roll_backs_, reason));
        const std::int64_t before = std::min(window.first, (options_.leave_out - 1) * window_);
        run_->asker.ask_to_roll_back(reason, {window.epoch, window.first - before, window.count + before});
    }

    /// Of updates that are made. A warned-of NaN is no measure of what is usual.
    void learn(const std::string& update) {
        if (!std::isfinite(measured_[0]) || !std::isfinite(measured_[1])) return;
        auto& [loss, norm] = histories_[update];
        loss.add(measured_[0], options_.window);
        norm.add(measured_[1], options_.window);
    }

    void record(const Position& at, const std::string& reason, const std::string& tensor, const std::vector<std::int64_t>& indices) const {
        if (options_.record.empty()) return;
        const auto number = [](double value) { return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(fmt::format("{}", value)); };
        const std::string rank = run_->consensus.rank() == 0 ? "" : fmt::format(".rank{}", run_->consensus.rank());
        std::ofstream file(options_.record + rank, std::ios::app);
        file << nlohmann::json{{"epoch", at.epoch}, {"step", at.step}, {"attempts", at.attempts}, {"loss", number(measured_[0])}, {"grad_norm", number(measured_[1])},
                               {"reason", reason}, {"gradients", tensor}, {"samples", indices}}.dump() << "\n";
        if (!file.flush()) throw Error(fmt::format("{}: cannot write; give nan_policy another file as `record`, or make room", options_.record + rank));
    }

    NanPolicyOptions options_;
    Attachment* run_ = nullptr;
    Model model_;                     ///< of the run under way, for names
    std::vector<at::Tensor> losses_;  ///< of the window, one a micro-batch
    std::size_t loss_place_ = 0, norm_place_ = 0;  ///< in the event's HostRead
    std::array<double, 2> measured_{};  ///< loss and norm of the last update judged
    std::map<std::string, std::pair<UsualValue, UsualValue>, std::less<>> histories_;  ///< of loss and norm, by update
    std::int64_t in_a_row_ = 0, faults_ = 0, faults_given_up_ = 0, roll_backs_ = 0;
    std::int64_t window_ = 1;         ///< batches of a whole one
    RunBeginning beginning_;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_nan_policy(NanPolicyOptions options) {
    require_valid(options);
    return std::make_unique<NanPolicy>(std::move(options));
}

std::unique_ptr<Callback> nan_policy_from_json(OptionReader& reader) {
    NanPolicyOptions options;
    constexpr std::array kActions = {"fail", "stop", "skip", "warn", "roll_back"};
    const std::vector<std::string> actions(kActions.begin(), kActions.end());
    std::string non_finite = "skip", spike = "warn", usual = "median";
    reader.choice("non_finite", non_finite, actions, "what is done about a loss or gradient norm that is not finite")
        .choice("spike", spike, actions, "what is done about a loss or gradient norm far above the usual")
        .number("spike_factor", options.spike_factor, "how many times the usual is a spike; > 1, or 0 to look for none", Range::at_least(0)).changeable()
        .choice("usual", usual, {"median", "moving_average"}, "what is usual")
        .integer("window", options.window, "updates of which the usual is taken; ≥ 1", Range::at_least(1))
        .integer("warmup", options.warmup, "updates that are made before spikes are looked for; ≥ 1", Range::at_least(1))
        .integer("max_in_a_row", options.max_in_a_row, "updates skipped in a row, after which the run fails; ≥ 1", Range::at_least(1))
        .integer("leave_out", options.leave_out, "windows that a roll-back leaves out: the one with the fault and those before it; ≥ 1", Range::at_least(1))
        .integer("max_roll_backs", options.max_roll_backs, "in a run, after which the next fault fails it; ≥ 1", Range::at_least(1))
        .text("record", options.record, "a file that gets every fault as a line of JSON, all sample indices included; empty: none");
    const auto action = [&](const std::string& name) { return static_cast<Action>(std::ranges::find(actions, name) - actions.begin()); };
    options.non_finite = action(non_finite);
    options.spike = action(spike);
    options.usual = usual == "median" ? NanPolicyOptions::Usual::Median : NanPolicyOptions::Usual::MovingAverage;
    return make_nan_policy(std::move(options));
}

}  // namespace torchbus

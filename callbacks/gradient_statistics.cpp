#include <torchbus/callbacks/gradient_statistics.hpp>

#include <array>
#include <map>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/changed_option.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

using When = GradientStatisticsOptions::When;

/// Numbers on a device, read from there once and together.
class Numbers {
public:
    explicit Numbers(at::Tensor values) : values_(std::move(values)) {}
    double at(std::int64_t row, std::int64_t column) {
        if (!values_.is_cpu()) values_ = values_.cpu();
        return values_.accessor<double, 2>()[row][column];
    }

private:
    at::Tensor values_;  // [rows, columns], float64
};

constexpr std::array<const char*, 4> kStatistics = {"norm", "mean", "max_abs", "zeros"};

/// Of one tensor: square of the norm, sum, largest absolute value, count of non-zeros. Shapes: [4], float64.
/// Sums of half-precision numbers would overflow in their own type.
at::Tensor moments_of(const at::Tensor& tensor) {
    const at::Tensor values = tensor.is_sparse() ? tensor.coalesce()._values() : tensor;
    const at::Tensor wide = values.scalar_type() == at::kDouble ? values : values.to(at::kFloat);
    if (wide.numel() == 0) return torch::zeros({4}, wide.options().dtype(at::kDouble));
    return torch::stack({wide.norm().to(at::kDouble).square(), wide.sum().to(at::kDouble), wide.abs().max().to(at::kDouble),
                         wide.count_nonzero().to(at::kDouble)});
}

/// Rows of norm, mean, max_abs, zeros: all tensors together first, then each. Shapes: [1 + tensors, 4].
at::Tensor statistics_of(const std::vector<at::Tensor>& tensors) {
    std::vector<at::Tensor> rows;
    std::vector<double> counts = {0};
    for (const at::Tensor& tensor : tensors) {
        rows.push_back(moments_of(tensor).to(tensors.front().device()));
        counts.push_back(static_cast<double>(std::max<std::int64_t>(tensor.numel(), 1)));
        counts.front() += static_cast<double>(tensor.numel());
    }
    const at::Tensor each = torch::stack(rows);
    const at::Tensor total = torch::stack({each.select(1, 0).sum(), each.select(1, 1).sum(), each.select(1, 2).max(), each.select(1, 3).sum()});
    const at::Tensor all = torch::cat({total.unsqueeze(0), each});
    const at::Tensor count = torch::tensor(counts, at::kDouble).to(all.device());
    return torch::stack({all.select(1, 0).sqrt(), all.select(1, 1) / count, all.select(1, 2), 1 - all.select(1, 3) / count}, 1);
}

/// Shapes: [1 + tensors, 1].
at::Tensor ratios_of(const std::vector<at::Tensor>& after, const std::vector<at::Tensor>& before) {
    std::vector<at::Tensor> changes, weights;
    for (std::size_t i = 0; i < after.size(); ++i) {
        changes.push_back(moments_of(after[i] - before[i])[0].to(after.front().device()));
        weights.push_back(moments_of(before[i])[0].to(after.front().device()));
    }
    const at::Tensor change = torch::stack(changes), weight = torch::stack(weights);
    return (torch::cat({change.sum().unsqueeze(0), change}) / torch::cat({weight.sum().unsqueeze(0), weight})).sqrt().unsqueeze(1);
}

class GradientStatistics final : public Callback {
public:
    explicit GradientStatistics(GradientStatisticsOptions options) : options_(options) {}
    std::string kind() const override { return "gradient_statistics"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"run_configured", "gradients_ready"}, .reads = {"gradients", "parameters"}};
        if (options_.update_ratio) declared.listens.insert(declared.listens.end(), {"optimizer_step_end", "optimizer_step_skipped"});
        if (before_clipping()) declared.writes = {"gradients.inspect"};
        const Stage stage = before_clipping() ? Stage::Transform : Stage::Observe;
        const auto publish = [&](const std::string& of) {
            for (const char* name : kStatistics) {
                if (options_.gradients) declared.publishes.emplace_back(fmt::format("gradients{}.{}", of, name), "gradients_ready", stage);
                if (options_.weights) declared.publishes.emplace_back(fmt::format("weights{}.{}", of, name), "gradients_ready", stage);
            }
            if (options_.update_ratio) declared.publishes.emplace_back("update_ratio" + of, "optimizer_step_end", Stage::Observe);
        };
        if (updates_.empty()) publish("");  // what most runs have
        for (const auto& [name, update] : updates_) publish(suffix_of(name));
        if (options_.per_parameter)
            for (const auto& [parameter, name] : names_) publish("." + name);
        return declared;
    }
    void attach(Attachment& run) override {
        run_ = &run;
        connections_ += run.bus.observe<RunConfigured>(Stage::Observe, [this](const RunConfigured& event) { learn(event); });
        if (before_clipping())
            connections_ += run.bus.intercept(Phase::Inspect, [this](GradientsReady& event) { look(event); });
        else
            connections_ += run.bus.observe<GradientsReady>(Stage::Observe, [this](const GradientsReady& event) { look(event); });
        if (!options_.update_ratio) return;
        connections_ += run.bus.observe<OptimizerStepEnd>(Stage::Observe, [this](const OptimizerStepEnd& event) { look_again(event.update); });
        connections_ += run.bus.observe<OptimizerStepSkipped>(Stage::Observe, [this](const OptimizerStepSkipped&) { forget_weights(); });
    }
    /// What the intervals have counted.
    SavedState state() const override {
        nlohmann::json progress = saved_progress_;
        for (const auto& [update, filter] : updates_)
            if (filter) progress[update] = filter->progress();
        return {{{"updates", std::move(progress)}}, {}};
    }
    void load_state(const SavedState& state) override {
        saved_progress_ = state.values.value("updates", nlohmann::json::object());
        for (auto& [update, filter] : updates_) filter.reset();  // begun anew where its update comes
    }
    void detach() override {
        connections_.clear();
        for (const std::string& name : published_) run_->blackboard.withdraw(name);
        published_.clear();
        forget_weights();
        updates_.clear();
        names_.clear();
        run_ = nullptr;
    }

    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        const auto before = change_interval(options_.every, "every", kind(), option, value);
        for (auto& [update, filter] : updates_) filter.reset();
        saved_progress_ = nlohmann::json::object();
        return before;
    }

private:
    bool before_clipping() const { return options_.when == When::BeforeClipping; }
    static std::string suffix_of(const std::string& update) { return update.empty() ? "" : "." + update; }

    /// The names of parameters; those that are not the model's are called parameter_0, parameter_1, …
    void learn(const RunConfigured& event) {
        saved_progress_ = nlohmann::json::object();
        updates_.clear();
        names_.clear();
        published_.clear();
        forget_weights();
        std::map<const void*, std::string> of_model;
        for (const auto& [name, parameter] : event.model->named_parameters()) of_model[parameter.unsafeGetTensorImpl()] = name;
        for (const Update& update : event.updates) {
            updates_[update.name];
            for (const at::Tensor& parameter : update.parameters()) {
                const auto known = of_model.find(parameter.unsafeGetTensorImpl());
                names_.try_emplace(parameter.unsafeGetTensorImpl(), known != of_model.end() ? known->second : fmt::format("parameter_{}", names_.size()));
            }
        }
    }

    /// Each update has an interval of its own: of two that take turns, one common interval would always meet the same one.
    bool is_due(const std::string& update) {
        auto& filter = updates_[update];
        if (!filter) {
            filter = every(options_.every);
            filter->resolve(Interval::Unit::Step);
            filter->rebase(run_->moment, 0);
            if (saved_progress_.contains(update)) filter->restore(saved_progress_.at(update).get<std::vector<double>>());
        }
        return filter->passes(run_->moment, 0);
    }

    void look(const GradientsReady& event) {
        if (event.pass == 0) due_ = is_due(event.update.name);
        if (!due_) return;
        const at::NoGradGuard no_grad;
        std::vector<at::Tensor> gradients, weights, with_gradient;
        for (const at::Tensor& parameter : event.gradients.parameters()) {
            weights.push_back(parameter.detach());
            if (!parameter.grad().defined()) continue;
            gradients.push_back(parameter.grad());
            with_gradient.push_back(parameter);
        }
        if (options_.gradients && !gradients.empty()) publish("gradients", kStatistics, statistics_of(gradients), event.update.name, with_gradient);
        if (event.pass > 0 || weights.empty()) return;  // the weights of a later pass may be moved for a while
        const std::vector<at::Tensor> parameters(event.gradients.parameters().begin(), event.gradients.parameters().end());
        if (options_.weights) publish("weights", kStatistics, statistics_of(weights), event.update.name, parameters);
        if (!options_.update_ratio) return;
        for (const at::Tensor& weight : weights) weights_before_.push_back(weight.clone());
        parameters_ = parameters;
    }

    void look_again(const Update& update) {
        if (weights_before_.empty()) return;
        const at::NoGradGuard no_grad;
        std::vector<at::Tensor> weights;
        for (const at::Tensor& parameter : parameters_) weights.push_back(parameter.detach());
        publish("update_ratio", std::array<const char*, 1>{""}, ratios_of(weights, weights_before_), update.name, parameters_);
        forget_weights();
    }
    void forget_weights() {
        weights_before_.clear();
        parameters_.clear();
    }

    template <std::size_t Columns>
    void publish(const char* what, const std::array<const char*, Columns>& columns, const at::Tensor& rows, const std::string& update,
                 const std::vector<at::Tensor>& parameters) {
        const auto numbers = std::make_shared<Numbers>(rows);
        const std::size_t shown = options_.per_parameter ? parameters.size() + 1 : 1;
        for (std::size_t row = 0; row < shown; ++row) {
            const std::string of = row == 0 ? suffix_of(update) : "." + name_of_parameter(parameters[row - 1]);
            for (std::size_t column = 0; column < Columns; ++column) {
                const std::string name = *columns[column] ? fmt::format("{}{}.{}", what, of, columns[column]) : what + of;
                run_->blackboard.publish_lazy(name, [numbers, row, column] { return numbers->at(static_cast<std::int64_t>(row), static_cast<std::int64_t>(column)); });
                published_.insert(name);
            }
        }
    }
    const std::string& name_of_parameter(const at::Tensor& parameter) {
        return names_.try_emplace(parameter.unsafeGetTensorImpl(), fmt::format("parameter_{}", names_.size())).first->second;
    }

    GradientStatisticsOptions options_;
    Attachment* run_ = nullptr;
    std::map<std::string, std::optional<Filter>> updates_;
    nlohmann::json saved_progress_ = nlohmann::json::object();  ///< of the filters, by update
    std::map<const void*, std::string> names_;  ///< of parameters
    std::set<std::string> published_;
    bool due_ = false;
    std::vector<at::Tensor> weights_before_, parameters_;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_gradient_statistics(GradientStatisticsOptions options) {
    if (!(options.every.amount > 0))
        throw ConfigError(fmt::format("gradient_statistics: every: '{}' is not positive; give the distance between two measured updates, e.g. 100step", to_string(options.every)));
    if (!options.gradients && !options.weights && !options.update_ratio)
        throw ConfigError("gradient_statistics: nothing is measured; turn on gradients, weights or update_ratio");
    return std::make_unique<GradientStatistics>(options);
}

std::unique_ptr<Callback> gradient_statistics_from_json(OptionReader& reader) {
    GradientStatisticsOptions options;
    std::string when = "before_clipping";
    reader.interval("every", options.every, "between measured updates").changeable()
        .choice("when", when, {"before_clipping", "after_clipping"}, "which gradients are measured")
        .boolean("per_parameter", options.per_parameter, "every parameter, beside the total")
        .boolean("gradients", options.gradients, "norm, mean, largest absolute value and share of zeros of the gradients")
        .boolean("weights", options.weights, "the same of the weights")
        .boolean("update_ratio", options.update_ratio, "norm of the update as a share of that of the weights");
    options.when = when == "before_clipping" ? When::BeforeClipping : When::AfterClipping;
    return make_gradient_statistics(options);
}

}  // namespace torchbus

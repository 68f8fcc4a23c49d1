#include <torchbus/callbacks/freeze.hpp>

#include <algorithm>
#include <unordered_map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/optim/optimizer.h>

#include <torchbus/error.hpp>
#include <torchbus/name_pattern.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

bool is_statistic(std::string_view name) {
    return name.ends_with("running_mean") || name.ends_with("running_var") || name.ends_with("num_batches_tracked");
}

/// Fractions such as 0.3run are not exact in binary.
bool reached(Interval at, const Moment& moment) { return measure(at.unit, moment) * (1 + 1e-9) >= at.amount; }

/// An optimizer's groups as they were.
struct FormerGroups {
    std::shared_ptr<torch::optim::Optimizer> optimizer;
    std::vector<std::vector<at::Tensor>> parameters;
    std::vector<double> factors;  ///< of groups that were taken as a whole
};

class Freeze final : public Callback {
public:
    explicit Freeze(FreezeOptions options) : options_(std::move(options)) {
        groups_ = options_.groups;
        if (!options_.names.empty()) groups_.insert(groups_.begin(), FreezeGroup{options_.names});
    }
    std::string kind() const override { return "freeze"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"run_configured", "train_epoch_start", "train_step_start"}, .writes = {"trainable"}};
        if (options_.batch_norm) declared.listens.insert(declared.listens.end(), {"forward_end", "eval_epoch_start"});
        const bool sets_rates = std::ranges::any_of(groups_, [](const FreezeGroup& group) { return group.learning_rate_factor != 1; });
        if (sets_rates) {
            declared.writes.push_back("learning_rate");
            declared.before = {"learning_rate_schedule"};
        }
        return declared;
    }
    std::vector<Finding> check(const Outlook& run) const override;
    void attach(Attachment& run) override {
        run_ = &run;
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) {
            if (event.plan.has(Mode::Train)) configure(event);
        });
        connections_ += run.bus.observe<TrainEpochStart>(Stage::Observe, [this](const TrainEpochStart&) {
            layers_told_ = false;
            apply(true);
        });
        connections_ += run.bus.observe<TrainStepStart>(Stage::Observe, [this](const TrainStepStart&) { apply(true); });
        if (!options_.batch_norm) return;
        connections_ += run.bus.observe<EvalEpochStart>(Stage::Observe, [this](const EvalEpochStart&) { layers_told_ = false; });
        connections_ += run.bus.observe<ForwardEnd>(Stage::Observe, [this](const ForwardEnd&) { put_back_statistics(); }, in(Mode::Train));
    }
    void detach() override {
        connections_.clear();
        for (Parameter& parameter : parameters_) parameter.tensor.requires_grad_(parameter.required_grad);
        for (const Layer& layer : layers_) model_->set_layer_training(layer.name, run_->moment.mode == Mode::Train);
        join_groups();
        parameters_.clear();
        statistics_.clear();
        layers_.clear();
        configured_ = false;
        model_ = {};
        run_ = nullptr;
    }

private:
    struct Parameter {
        at::Tensor tensor;
        const FreezeGroup* group;
        bool required_grad;  ///< before this callback came
    };
    struct Layer {
        std::string name;
        const FreezeGroup* group;
        bool trains;
    };
    struct Statistic {
        at::Tensor tensor;
        const FreezeGroup* group;
        at::Tensor aside;  ///< its value while frozen
    };

    const FreezeGroup* group_of(const std::string& name) const {
        for (const FreezeGroup& group : groups_)
            if (matches_any(group.names, name)) return &group;
        return nullptr;
    }
    bool trains(const FreezeGroup& group) const {
        const bool begun = group.unfreeze_at ? reached(*group.unfreeze_at, run_->moment) : group.freeze_at.has_value();
        return begun && !(group.freeze_at && reached(*group.freeze_at, run_->moment));
    }

    void configure(RunConfigured& event) {
        if (!std::exchange(configured_, true)) {
            for (const auto& [name, tensor] : event.model->named_parameters())
                if (const FreezeGroup* group = group_of(name)) parameters_.push_back({tensor, group, tensor.requires_grad()});
            split_groups(event.updates);
        }
        model_ = event.model;
        statistics_.clear();
        layers_.clear();
        layers_told_ = false;
        if (options_.batch_norm) find_layers();
        apply(run_->moment.position.attempts > 0);
    }
    /// The layers with running statistics; those that the model cannot set apart have their statistics put back.
    void find_layers() {
        for (const auto& [name, buffer] : model_->named_buffers()) {
            const FreezeGroup* const group = buffer.defined() && is_statistic(name) ? group_of(name) : nullptr;
            if (!group) continue;
            const auto dot = name.rfind('.');
            const std::string layer = dot == std::string::npos ? "" : name.substr(0, dot);
            if (!layers_.empty() && layers_.back().name == layer) continue;
            if (model_->set_layer_training(layer, trains(*group)))
                layers_.push_back({layer, group, trains(*group)});
            else
                statistics_.push_back({buffer.detach(), group, {}});
        }
    }

    /// Sets what trains at this position. All layers are in training mode again after an evaluation, and told anew.
    void apply(bool announce) {
        std::vector<at::Tensor> added;
        bool changed = false;
        for (Parameter& parameter : parameters_) {
            const bool wanted = trains(*parameter.group);
            if (parameter.tensor.requires_grad() == wanted) continue;
            parameter.tensor.requires_grad_(wanted);
            parameter.tensor.mutable_grad().reset();
            changed = true;
            if (wanted) added.push_back(parameter.tensor);
        }
        for (Statistic& statistic : statistics_) {
            const bool frozen = !trains(*statistic.group);
            if (frozen && !statistic.aside.defined()) statistic.aside = statistic.tensor.clone();
            if (!frozen) statistic.aside = at::Tensor();
        }
        for (Layer& layer : layers_) {
            const bool wanted = trains(*layer.group);
            if (!layers_told_ || layer.trains != wanted) model_->set_layer_training(layer.name, wanted);
            layer.trains = wanted;
        }
        layers_told_ = true;
        if (changed && announce) run_->bus.emit(ParametersChanged{run_->moment.position, std::move(added)});
    }
    void put_back_statistics() {
        const at::NoGradGuard no_grad;
        for (const Statistic& statistic : statistics_)
            if (statistic.aside.defined()) statistic.tensor.copy_(statistic.aside);
    }

    void split_groups(const std::vector<Update>& updates) {
        std::unordered_map<const void*, const FreezeGroup*> group_of_tensor;
        for (const Parameter& parameter : parameters_) group_of_tensor[parameter.tensor.unsafeGetTensorImpl()] = parameter.group;
        for (const Update& update : updates) {
            auto& groups = update.optimizer->param_groups();
            FormerGroups former{update.optimizer, {}, std::vector<double>(groups.size(), 1.0)};
            for (const auto& group : groups) former.parameters.push_back(group.params());
            for (std::size_t i = 0; i < former.parameters.size(); ++i)
                for (const FreezeGroup& frozen : groups_)
                    if (frozen.learning_rate_factor != 1)
                        former.factors[i] *= take_out(groups, i, frozen.learning_rate_factor, [&](const at::Tensor& tensor) {
                            const auto found = group_of_tensor.find(tensor.unsafeGetTensorImpl());
                            return found != group_of_tensor.end() && found->second == &frozen;
                        });
            former_.push_back(std::move(former));
        }
    }
    /// Returns the factor of the group itself, where all of it is taken. Not by add_param_group: it refuses parameters
    /// that have a state already.
    template <class Belongs>
    static double take_out(std::vector<torch::optim::OptimizerParamGroup>& groups, std::size_t from, double factor, Belongs belongs) {
        std::vector<at::Tensor> taken, rest;
        for (const at::Tensor& tensor : groups[from].params()) (belongs(tensor) ? taken : rest).push_back(tensor);
        if (taken.empty()) return 1;
        const double rate = groups[from].options().get_lr() * factor;
        if (rest.empty()) {
            groups[from].options().set_lr(rate);
            return factor;
        }
        torch::optim::OptimizerParamGroup group(std::move(taken), groups[from].options().clone());
        group.options().set_lr(rate);
        groups[from].params() = std::move(rest);
        groups.push_back(std::move(group));
        return 1;
    }
    void join_groups() {
        for (const FormerGroups& former : former_) {
            auto& groups = former.optimizer->param_groups();
            while (groups.size() > former.parameters.size()) groups.pop_back();
            for (std::size_t i = 0; i < groups.size(); ++i) {
                groups[i].params() = former.parameters[i];
                if (former.factors[i] != 1) groups[i].options().set_lr(groups[i].options().get_lr() / former.factors[i]);
            }
        }
        former_.clear();
    }

    FreezeOptions options_;
    std::vector<FreezeGroup> groups_;  ///< the names frozen for the whole run come first
    Attachment* run_ = nullptr;
    bool configured_ = false;          ///< it knows the model, since it was attached
    std::vector<Parameter> parameters_;
    std::vector<Statistic> statistics_;
    std::vector<Layer> layers_;        ///< with running statistics: in evaluation mode while frozen
    bool layers_told_ = false;         ///< since the model's training mode was set
    Model model_;
    std::vector<FormerGroups> former_;
    Connections connections_;
};

std::vector<Finding> Freeze::check(const Outlook& run) const {
    std::vector<Finding> findings;
    const auto error = [&](std::string text) { findings.push_back({Finding::Weight::Error, std::move(text)}); };
    if (groups_.empty()) return {{Finding::Weight::Warning, "freeze: nothing is named, so nothing is frozen; give names or groups"}};
    std::vector<std::string> names;
    for (const auto& [name, tensor] : run.model->named_parameters()) names.push_back(name);
    for (const FreezeGroup& group : groups_) {
        for (const std::string& pattern : group.names)
            if (std::ranges::none_of(names, [&](const std::string& name) { return matches(pattern, name); }))
                error(fmt::format("freeze: '{}' names no parameter of the model{}", pattern, did_you_mean(pattern, names)));
        for (const auto& interval : {group.unfreeze_at, group.freeze_at}) {
            if (interval && interval->unit == Interval::Unit::Second && run_->consensus.world_size() > 1)
                error(fmt::format("freeze: '{}' is a time, which no two ranks agree on; give epochs, steps or samples", to_string(*interval)));
            if (interval && interval->unit == Interval::Unit::Run && !run.length.epochs && !run.length.steps)
                error(fmt::format("freeze: '{}' needs a run of known length; give epochs, or an interval in steps or epochs", to_string(*interval)));
        }
    }
    for (const Update& update : run.updates) {
        const auto parameters = update.parameters();
        if (std::ranges::none_of(parameters, [](const at::Tensor& tensor) { return tensor.requires_grad(); }))
            error(fmt::format("freeze: all parameters of {} are frozen when the run begins; leave some out", update.name.empty() ? "the optimizer" : "update '" + update.name + "'"));
    }
    return findings;
}

void require_sound(const FreezeGroup& group) {
    if (group.names.empty()) throw ConfigError("freeze: groups: a group names nothing; give patterns of parameter names, e.g. backbone.*");
    if (!(group.learning_rate_factor > 0))
        throw ConfigError(fmt::format("freeze: learning_rate_factor: {} is not positive; to keep a group as it is, leave unfreeze_at out", group.learning_rate_factor));
    const auto& [names, from, until, factor] = group;
    if (from && until && from->unit == until->unit && from->amount >= until->amount)
        throw ConfigError(fmt::format("freeze: unfreeze_at {} is not before freeze_at {}; the group would never be trained", to_string(*from), to_string(*until)));
}

FreezeGroup read_group(OptionReader& reader) {
    FreezeGroup group;
    Interval from, until;
    reader.texts("names", group.names, "patterns of parameter names: * any characters, ? one")
        .interval("unfreeze_at", from, "frozen until this position")
        .interval("freeze_at", until, "frozen from this position on")
        .number("learning_rate_factor", group.learning_rate_factor, "factor of the learning rate; > 0", Range::positive());
    if (reader.has("unfreeze_at")) group.unfreeze_at = from;
    if (reader.has("freeze_at")) group.freeze_at = until;
    return group;
}

}  // namespace

std::unique_ptr<Callback> make_freeze(FreezeOptions options) {
    for (const FreezeGroup& group : options.groups) require_sound(group);
    return std::make_unique<Freeze>(std::move(options));
}

std::unique_ptr<Callback> freeze_from_json(OptionReader& reader) {
    FreezeOptions options;
    reader.texts("names", options.names, "patterns of parameters that are frozen for the whole run: * any characters, ? one")
        .boolean("batch_norm", options.batch_norm, "whether running statistics are frozen with their layer")
        .objects("groups", options.groups, read_group, "groups with names, unfreeze_at, freeze_at and learning_rate_factor");
    return make_freeze(std::move(options));
}

}  // namespace torchbus

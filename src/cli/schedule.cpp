#include <algorithm>
#include <cstdio>

#include <fmt/format.h>
#include <torch/optim/optimizer.h>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/composition.hpp>
#include <torchbus/optim/group_options.hpp>
#include <torchbus/optim/schedule.hpp>
#include <torchbus/trainer.hpp>

#include "curve.hpp"
#include "torch_commands.hpp"

namespace torchbus::cli {
namespace {

using nlohmann::json;

/// How long a run of one update will be, by its plan.
SampledRun sampled_run(const RunPlan& plan, std::int64_t batch_size) {
    const auto batches = plan.splits.front().length();
    SampledRun run{{plan.epochs, batches, plan.max_steps}};
    run.samples_per_step = static_cast<double>(batch_size * plan.micro_batches_per_step);
    if (!batches || !plan.epochs) return run;
    run.steps_per_epoch = (*batches + plan.micro_batches_per_step - 1) / plan.micro_batches_per_step;
    const std::int64_t steps = run.steps_per_epoch * *plan.epochs;
    run.length.steps = std::min(plan.max_steps.value_or(steps), steps);
    return run;
}

Curve curve_of(std::string name, const json& schedule, const std::string& where, double base, const SampledRun& run) {
    Curve curve{std::move(name), sample_schedule(schedule_from_json(schedule, where), run)};
    for (double& value : curve.values) value *= base;
    return curve;
}

json part_of(const json& object, const char* name) { return object.contains(name) ? object.at(name) : json::object(); }

using Groups = std::vector<torch::optim::OptimizerParamGroup>;

std::vector<double> values_of(Groups& groups, const std::string& option) {
    std::vector<double> values;
    for (auto& group : groups) values.push_back(group_option(group, option));
    return values;
}

/// A curve for each parameter group; one for all where they are alike. `where` is the path of what holds the schedule.
void add_group_curves(const std::string& option, const json& holder, const std::string& where, const std::vector<double>& bases, const SampledRun& run, std::vector<Curve>& curves) {
    const json own = holder.value("groups", json::array());
    const bool alike = own.empty() && std::ranges::all_of(bases, [&](double base) { return base == bases.front(); });
    for (std::size_t i = 0; i < (alike ? 1 : bases.size()); ++i) {
        const std::string name = alike || bases.size() == 1 ? option : fmt::format("{} of group {}", option, i);
        if (i < own.size() && own[i].is_object())
            curves.push_back(curve_of(name, own[i], fmt::format("{}.groups[{}]", where, i), bases[i], run));
        else
            curves.push_back(curve_of(name, part_of(holder, "schedule"), where + ".schedule", bases[i] * (i < own.size() ? own[i].get<double>() : 1.0), run));
    }
}

/// The curves that a callback of the run file will set; none for most.
void add_curves(const json& callback, const std::string& where, Groups& groups, const SampledRun& run, std::vector<Curve>& curves) {
    const std::string kind = callback.at("kind");
    if (kind == "learning_rate_schedule") {
        std::vector<double> rates = values_of(groups, "learning_rate");
        for (double& rate : rates) rate *= callback.value("factor", 1.0);
        add_group_curves("learning_rate", callback, where, rates, run, curves);
    }
    if (kind != "option_schedule") return;
    const std::string option = callback.value("option", "weight_decay");
    const std::vector<double> bases = callback.contains("base") ? std::vector<double>{callback.at("base")} : values_of(groups, option);
    add_group_curves(option, callback, where, bases, run, curves);
}

}  // namespace

/// Draws what the run file's schedules set before each update, and writes it as SVG where options["svg"] names a file.
int schedule(const json& options) {
    const std::string file = options.at("run_file");
    const json run_file = read_run_file(file, options.at("set"));
    Composition made = composition_of(options);
    const auto optimizer = made.trainer.optimizer;
    auto [trainer, report] = checked_trainer_of(made);
    auto& groups = optimizer->param_groups();  // as callbacks have set them by now
    const SampledRun run = sampled_run(report.plan, made.train.batch_size);

    std::vector<Curve> curves;
    const std::vector<double> rates = values_of(groups, "learning_rate");
    if (run_file.contains("schedule")) add_group_curves("learning_rate", {{"schedule", run_file["schedule"]}}, file + ": ", rates, run, curves);
    const json callbacks = run_file.value("callbacks", json::array());
    for (std::size_t i = 0; i < callbacks.size(); ++i) add_curves(callbacks[i], fmt::format("{}: callbacks[{}]", file, i), groups, run, curves);
    if (curves.empty()) add_group_curves("learning_rate (there is no schedule)", json::object(), file, rates, run, curves);

    for (const Curve& curve : curves) std::printf("%s", draw_curve(curve).c_str());
    if (const std::string svg = options.value("svg", ""); !svg.empty()) {
        AtomicFile target(svg);
        target.write(curves_svg(curves));
        target.commit();
        std::fflush(stdout);
        std::fprintf(stderr, "the curves are in %s\n", svg.c_str());
    }
    tell_findings(report.findings, made.name);
    return 0;
}

}  // namespace torchbus::cli

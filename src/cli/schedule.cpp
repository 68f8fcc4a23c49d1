#include <cstdio>

#include <fmt/format.h>
#include <torch/optim/optimizer.h>

#include <torchbus/arrangement.hpp>
#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/composition.hpp>
#include <torchbus/error.hpp>
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

/// The curves that a callback of the run file will set; none for most.
void add_curves(const json& callback, const std::string& where, torch::optim::OptimizerParamGroup& group, const SampledRun& run, std::vector<Curve>& curves) {
    const std::string kind = callback.at("kind");
    const json schedule = part_of(callback, "schedule");
    if (kind == "option_schedule") {
        const std::string option = callback.value("option", "weight_decay");
        curves.push_back(curve_of(option, schedule, where + ".schedule", callback.value("base", group_option(group, option)), run));
    }
    if (kind != "learning_rate_schedule") return;
    const double rate = group.options().get_lr() * callback.value("factor", 1.0);
    const json groups = callback.value("groups", json::array({1.0}));
    for (std::size_t i = 0; i < groups.size(); ++i) {
        const std::string name = groups.size() == 1 ? "learning_rate" : fmt::format("learning_rate of group {}", i);
        const bool own = groups[i].is_object();
        curves.push_back(curve_of(name, own ? groups[i] : schedule, own ? fmt::format("{}.groups[{}]", where, i) : where + ".schedule",
                                  own ? rate : rate * groups[i].get<double>(), run));
    }
}

}  // namespace

/// Draws what the run file's schedules set before each update, and writes it as SVG where options["svg"] names a file.
int schedule(const json& options) {
    const std::string file = options.at("run_file");
    const json run_file = read_run_file(file, options.at("set"));
    Composition made = composition_of(options);
    const auto optimizer = made.trainer.optimizer;
    auto& group = optimizer->param_groups().front();
    Trainer trainer(std::move(made.trainer));
    const CompositionReport report = trainer.check(made.train_dataset, made.eval_dataset, made.train);
    const SampledRun run = sampled_run(report.plan, made.train.batch_size);

    std::vector<Curve> curves;
    if (run_file.contains("schedule")) curves.push_back(curve_of("learning_rate", run_file["schedule"], file + ": schedule", group.options().get_lr(), run));
    const json callbacks = run_file.value("callbacks", json::array());
    for (std::size_t i = 0; i < callbacks.size(); ++i) add_curves(callbacks[i], fmt::format("{}: callbacks[{}]", file, i), group, run, curves);
    if (curves.empty()) curves.push_back(curve_of("learning_rate (there is no schedule)", json::object(), file, group.options().get_lr(), run));

    for (const Curve& curve : curves) std::printf("%s", draw_curve(curve).c_str());
    for (const Finding& finding : report.findings) std::printf("%s: %s\n", finding.weight == Finding::Weight::Error ? "error" : "warning", finding.text.c_str());
    if (const std::string svg = options.value("svg", ""); !svg.empty()) {
        AtomicFile target(svg);
        target.write(curves_svg(curves));
        target.commit();
        std::fflush(stdout);
        std::fprintf(stderr, "the curves are in %s\n", svg.c_str());
    }
    return 0;
}

}  // namespace torchbus::cli

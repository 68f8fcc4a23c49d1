#include "read_run.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include <torchbus/name_pattern.hpp>

#include "../stream/json_member.hpp"
#include "../stream/run_events.hpp"
#include "../stream/recording.hpp"

namespace torchbus::cli {
namespace {

using nlohmann::json;

constexpr std::size_t kPoints = 1000;  // of a curve; extremes may double them

/// Of a curve, which keeps its extremes when it is folded.
std::optional<NumberSummary> summary_of(const std::vector<CurvePoint>& points) {
    std::optional<NumberSummary> summary;
    for (const CurvePoint& point : points) {
        if (!std::isfinite(point.y)) continue;
        const auto step = static_cast<std::int64_t>(point.step);
        if (!summary) summary = NumberSummary{point.y, point.y, point.y, step, step};
        summary->last = point.y;
        if (point.y < summary->least) summary->least = point.y, summary->least_step = step;
        if (point.y > summary->most) summary->most = point.y, summary->most_step = step;
    }
    return summary;
}

/// "loss" for train.loss and eval.loss; all other numbers by their own names.
std::string chart_title(const std::string& name) {
    for (const std::string_view role : {"train.", "eval."})
        if (name.starts_with(role)) return name.substr(role.size());
    return name;
}

/// Exponential moving average; the first values weigh what they would have had from the start (Adam's correction).
std::vector<ChartPoint> smoothed(const std::vector<CurvePoint>& points, const CurveChoice& choice) {
    std::vector<ChartPoint> all;
    double mean = 0, weight = 0;
    for (const CurvePoint& point : points) {
        const bool is_number = std::isfinite(point.y);
        if (is_number) mean = choice.smooth * mean + (1 - choice.smooth) * point.y, weight = choice.smooth * weight + (1 - choice.smooth);
        all.push_back({point.x(choice.axis), is_number ? mean / weight : std::numeric_limits<double>::quiet_NaN()});
    }
    if (all.size() <= kPoints) return all;
    std::vector<ChartPoint> kept;  // it is smooth: neighbours are alike
    for (std::size_t i = 0; i < kPoints; ++i) kept.push_back(all[i * (all.size() - 1) / (kPoints - 1)]);
    return kept;
}

std::vector<ChartPoint> as_they_are(const std::vector<CurvePoint>& points, CurveAxis axis) {
    std::vector<ChartPoint> all;
    for (const CurvePoint& point : points) all.push_back({point.x(axis), point.y});
    return all;
}

ChartCurve curve_of(const ReadRun& run, const std::string& name, const CurveChoice& choice) {
    ChartCurve curve;
    const auto part = run.curves.part(name, {.axis = choice.axis, .points = kPoints});
    if (part) curve.points = as_they_are(part->points, choice.axis);
    constexpr std::size_t kTooFew = 20;  // as of evaluations: each is worth seeing
    if (!(choice.smooth > 0) || !part || part->points.size() < kTooFew) return curve;
    curve.behind = std::move(curve.points);
    curve.points = smoothed(run.curves.part(name, {.axis = choice.axis, .points = std::numeric_limits<std::size_t>::max()})->points, choice);
    return curve;
}

}  // namespace

ReadRun read_run(const std::filesystem::path& path) {
    ReadRun run;
    Recording recording(path);
    while (const RecordedMessage* message = recording.next()) {
        run.story.add(*message);
        if (goes_back(message->name())) run.curves.go_back_to(static_cast<double>(message->view().position("step").value_or(std::numeric_limits<std::int64_t>::max())));
        if (has_plan(message->name())) run.curves.set_epoch_length(steps_of_epoch(message->data().value("plan", json())).value_or(0));
        if (const auto numbers = message->numbers()) run.curves.add(*numbers);
    }
    for (const std::string& name : run.curves.names())
        if (const auto summary = summary_of(run.curves.part(name, {.points = std::numeric_limits<std::size_t>::max()})->points)) run.summaries[name] = *summary;
    run.story.end(recording);
    return run;
}

std::vector<Chart> charts_of(const std::vector<ReadRun>& runs, const CurveChoice& choice) {
    std::set<std::string> names;
    for (const ReadRun& run : runs)
        for (const std::string& name : run.curves.names())
            if (choice.names.empty() || matches_any(choice.names, name)) names.insert(name);
    std::map<std::string, std::vector<std::string>> of_title;
    for (const std::string& name : names) of_title[chart_title(name)].push_back(name);
    const char* x_title = choice.axis == CurveAxis::Epoch ? "epoch" : choice.axis == CurveAxis::Seconds ? "seconds since the run began" : "step (updates made)";
    std::vector<Chart> charts;
    for (const auto& [title, its] : of_title) {
        Chart chart{title, x_title, choice.is_log, {}};
        for (std::size_t run = 0; run < runs.size(); ++run)
            for (std::size_t i = 0; i < its.size(); ++i) {
                if (const auto part = runs[run].curves.part(its[i], {.points = 1}); !part || part->points.empty()) continue;
                ChartCurve curve = curve_of(runs[run], its[i], choice);
                curve.name = runs.size() == 1 ? its[i] : its.size() == 1 ? runs[run].label : runs[run].label + " " + its[i];
                curve.color = runs.size() == 1 ? i : run;
                curve.is_dashed = runs.size() > 1 && i > 0;
                chart.curves.push_back(std::move(curve));
            }
        charts.push_back(std::move(chart));
    }
    // Losses first, then what both training and evaluation have, then the rest.
    std::ranges::stable_sort(charts, {}, [&](const Chart& chart) { return chart.title == "loss" ? 0 : of_title.at(chart.title).front() != chart.title ? 1 : 2; });
    return charts;
}

}  // namespace torchbus::cli

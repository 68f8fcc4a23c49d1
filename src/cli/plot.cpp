#include <algorithm>
#include <iostream>

#include <fmt/format.h>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/error.hpp>

#include "read_run.hpp"
#include "recorded_commands.hpp"
#include "report_page.hpp"

namespace torchbus::cli {
namespace {

using std::filesystem::path;

void check_options(const PlotOptions& options) {
    if (options.smooth < 0 || options.smooth >= 1) throw ConfigError(fmt::format("--smooth: {} is out of range; give the weight of what was before, from 0 up to below 1, e.g. 0.9", options.smooth));
    const std::string ending = options.to.extension().string();
    if (ending != ".svg" && ending != ".html") throw ConfigError(fmt::format("{}: the name ends neither in .svg nor in .html; give -o curves.svg or -o report.html", options.to.string()));
}

/// The shortest ends of the paths that tell them apart; the runs' ids where they do not.
void label_runs(std::vector<ReadRun>& runs, const std::vector<path>& paths) {
    const auto label = [&](std::size_t i, std::size_t parts) {
        const path whole = std::filesystem::absolute(paths[i]).lexically_normal();
        std::vector<std::string> names;
        for (const path& part : whole)
            if (!part.empty() && part != "/" && part != "events.jsonl") names.push_back(part.string());
        std::string text;
        for (std::size_t from = names.size() - std::min(parts, names.size()); from < names.size(); ++from) text += (text.empty() ? "" : "/") + names[from];
        return text;
    };
    for (std::size_t parts = 1; parts < 8; ++parts) {
        std::vector<std::string> labels;
        for (std::size_t i = 0; i < runs.size(); ++i) labels.push_back(runs[i].label = label(i, parts));
        std::ranges::sort(labels);
        if (std::ranges::adjacent_find(labels) == labels.end()) return;
    }
    for (std::size_t i = 0; i < runs.size(); ++i) runs[i].label = fmt::format("{} {}", i + 1, runs[i].label);
}

}  // namespace

int plot_runs(const PlotOptions& options) {
    check_options(options);
    const CurveChoice choice{options.names, curve_axis(options.x).value_or(CurveAxis::Step), options.smooth, options.is_log};
    std::vector<ReadRun> runs;
    for (const path& run : options.runs) runs.push_back(read_run(run));
    label_runs(runs, options.runs);
    const std::vector<Chart> charts = charts_of(runs, choice);
    const bool is_page = options.to.extension() == ".html";
    if (charts.empty() && !is_page)
        throw ConfigError(fmt::format("{}: there are no numbers to draw{}", options.runs.front().string(), options.names.empty() ? "; event_file writes them where its events hold `numbers`" : " whose names are as --names asks; leave it out to see all"));
    AtomicFile out(options.to);
    out.write(is_page ? report_page(runs, charts) : charts_file(charts));
    out.commit();
    std::cerr << fmt::format("{} is written: {} of {}\n", options.to.string(), charts.size() == 1 ? "1 chart" : fmt::format("{} charts", charts.size()), runs.size() == 1 ? "1 run" : fmt::format("{} runs", runs.size()));
    return 0;
}

}  // namespace torchbus::cli

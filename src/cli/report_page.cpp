#include "report_page.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "explain.hpp"
#include "shown_text.hpp"

namespace torchbus::cli {
namespace {

using nlohmann::json;

constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --line: #8884; --quiet: #666; --band: #8881; }
@media (prefers-color-scheme: dark) { :root { --quiet: #aaa; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; } h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; white-space: nowrap; } thead th { background: var(--band); }
.scroll { overflow-x: auto; } svg { width: 100%; height: auto; display: block; margin: .5rem 0; }
ul { margin: .2rem 0; padding-left: 1.2rem; overflow-wrap: anywhere; } pre { overflow-x: auto; background: var(--band); padding: .8rem; border-radius: 4px; font-size: .85em; }
.quiet { color: var(--quiet); } @media print { body { max-width: none; } svg { break-inside: avoid; } }
)";

std::string told(const json& data, const char* name) {
    if (!data.is_object() || !data.contains(name) || data[name].is_null()) return "";
    return data[name].is_string() ? data[name].get<std::string>() : data[name].dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string number(double value) { return fmt::format("{:.6g}", value); }

void append_runs(std::string& page, const std::vector<ReadRun>& runs) {
    page += "<h2>Runs</h2>\n<div class=\"scroll\"><table><thead><tr><th>run</th><th>id</th><th>outcome</th><th class=\"number\">duration</th><th class=\"number\">epochs</th><th class=\"number\">steps</th><th>began</th></tr></thead><tbody>\n";
    for (const ReadRun& run : runs) {
        const json &story = run.story.told(), &position = story["last"]["position"];
        const std::string outcome = story["result"].is_object() ? told(story["result"], "outcome") : "no end was recorded";
        page += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td>{}</td></tr>\n", xml_text(run.label), xml_text(told(story, "run")), xml_text(outcome),
                            story["seconds"].is_number() ? words_on_seconds(story["seconds"].get<double>()) : "", xml_text(told(position, "epoch")), xml_text(told(position, "step")), xml_text(told(story, "began")));
    }
    page += "</tbody></table></div>\n";
}

void append_numbers(std::string& page, const std::vector<ReadRun>& runs, const std::vector<Chart>& charts) {
    const bool any = std::ranges::any_of(runs, [](const ReadRun& run) { return !run.summaries.empty(); });
    if (!any || charts.empty()) return;
    page += "<h2>Numbers</h2>\n<div class=\"scroll\"><table><thead><tr><th>number</th><th>run</th><th class=\"number\">last</th><th class=\"number\">least</th><th class=\"number\">at step</th><th class=\"number\">most</th><th class=\"number\">at step</th></tr></thead><tbody>\n";
    std::map<std::string, std::vector<const ReadRun*>> of_name;
    for (const ReadRun& run : runs)
        for (const auto& [name, summary] : run.summaries) of_name[name].push_back(&run);
    for (const auto& [name, its] : of_name)
        for (const ReadRun* run : its) {
            const NumberSummary& summary = run->summaries.at(name);
            page += fmt::format("<tr><td>{}</td><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td></tr>\n", xml_text(name), xml_text(run->label),
                                number(summary.last), number(summary.least), summary.least_step, number(summary.most), summary.most_step);
        }
    page += "</tbody></table></div>\n";
}

void append_story(std::string& page, const ReadRun& run) {
    page += fmt::format("<section>\n<h2>{}</h2>\n", xml_text(run.label));
    for (const StorySection& section : sections_of(run.story.told())) {
        page += fmt::format("<h3>{}</h3>\n<ul>\n", xml_text(section.title));
        for (const std::string& line : section.lines) page += fmt::format("<li>{}</li>\n", xml_text(line));
        page += "</ul>\n";
    }
    if (const json& plan = run.story.told()["plan"]; plan.is_object())
        page += fmt::format("<details><summary>The plan of the run</summary>\n<pre>{}</pre></details>\n", xml_text(plan.dump(2, ' ', false, json::error_handler_t::replace)));
    page += "</section>\n";
}

}  // namespace

std::string report_page(const std::vector<ReadRun>& runs, const std::vector<Chart>& charts) {
    const std::string title = runs.size() == 1 ? runs.front().label : fmt::format("{} runs", runs.size());
    std::string page = fmt::format("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
                                   "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>{0}</title>\n<style>{1}</style>\n</head>\n<body>\n<h1>{0}</h1>\n", xml_text(title), kStyle);
    append_runs(page, runs);
    page += "<h2>Curves</h2>\n";
    if (charts.empty()) page += "<p class=\"quiet\">No numbers were recorded.</p>\n";
    for (const Chart& chart : charts) page += chart_element(chart);
    append_numbers(page, runs, charts);
    for (const ReadRun& run : runs) append_story(page, run);
    return page + "</body>\n</html>\n";
}

}  // namespace torchbus::cli

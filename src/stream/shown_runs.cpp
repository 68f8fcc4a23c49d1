#include "shown_runs.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/events_json.hpp>

#include "json_member.hpp"
#include "run_events.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

constexpr std::size_t kMostRuns = 64;        // that are shown; an earlier one of this process makes place
constexpr std::size_t kMostNumbers = 400'000;  // of an answer

void append_quoted(std::string& out, const char* name, std::string_view value) {
    fmt::format_to(std::back_inserter(out), "\"{}\":", name);
    append_json_text(out, value);
}

/// Null stands for what is no number, and for infinity: neither has a place on a chart.
template <class Number>
void append_list(std::string& out, const std::vector<CurvePoint>& points, Number&& number) {
    char before = '[';
    for (const CurvePoint& point : points) {
        const double value = number(point);
        if (std::isfinite(value)) fmt::format_to(std::back_inserter(out), "{}{:.9g}", before, value);
        else fmt::format_to(std::back_inserter(out), "{}null", before);
        before = ',';
    }
    out += points.empty() ? "[]" : "]";
}

std::string id_of(const ShownRun& shown) { return fmt::format("{}:{}", shown.picture.run(), shown.picture.rank()); }

}  // namespace

ShownRuns::ShownRuns(std::size_t limit_points) : limit_points_(limit_points) {
    runs_.emplace_back("", limit_points_);
    live_ = &runs_.front();
}

void ShownRuns::begin(const std::string& run, int rank) {
    live_->is_live = false;
    if (!live_->picture.run().empty()) {
        if (runs_.size() >= kMostRuns) make_place();
        live_ = &runs_.emplace_front("", limit_points_);
    }
    live_->is_live = true;
    live_->picture.begin(run, rank);
}

bool ShownRuns::make_place() {
    const auto own = std::ranges::find_if(runs_.rbegin(), runs_.rend(), [&](const ShownRun& shown) { return shown.label.empty() && &shown != live_; });
    if (own == runs_.rend()) return false;
    runs_.erase(std::prev(own.base()));
    return true;
}

void ShownRuns::add(std::string_view lines) { take(*live_, lines); }

void ShownRuns::add_recorded(const std::string& label, const std::string& run, int rank, std::string_view lines) {
    auto shown = std::ranges::find_if(runs_, [&](const ShownRun& one) { return one.label == label && one.picture.run() == run && one.picture.rank() == rank; });
    if (shown == runs_.end()) {
        if (runs_.size() >= kMostRuns && !make_place()) {
            if (!std::exchange(has_warned_, true)) warn(fmt::format("{}: it is not shown; no more than {} runs are", label, kMostRuns));
            return;
        }
        runs_.emplace_back(label, limit_points_);
        shown = std::prev(runs_.end());
        shown->picture.begin(run, rank);
    }
    take(*shown, lines);
}

void ShownRuns::take(ShownRun& shown, std::string_view lines) {
    for_each_line(lines, [&](std::string_view line) {
        const auto message = view_of(line);
        if (!message) return;
        shown.picture.take(*message);
        if (message->name == "numbers") {
            if (const auto numbers = numbers_of(*message)) shown.curves.add(*numbers);
        } else if (message->name == "rolled_back") {
            shown.curves.go_back_to(static_cast<double>(message->position("step").value_or(0)));
        } else if (has_plan(message->name)) {
            shown.curves.set_epoch_length(steps_of_epoch(member_of(json::parse(message->data, nullptr, false), "plan")).value_or(0));
        }
    });
    std::size_t points = 0;
    for (const ShownRun& one : runs_) points += one.curves.point_count();
    while (points > limit_points_) {
        Curves& longest = std::ranges::max_element(runs_, {}, [](const ShownRun& one) { return one.curves.point_count(); })->curves;
        const std::size_t before = longest.point_count();
        if (!longest.fold()) return;
        points -= before - longest.point_count();
    }
}

const ShownRun* ShownRuns::find(std::string_view run, int rank) const {
    const auto found = std::ranges::find_if(runs_, [&](const ShownRun& shown) { return shown.picture.run() == run && shown.picture.rank() == rank; });
    return found == runs_.end() ? nullptr : &*found;
}

std::string ShownRuns::list(std::string_view more) const {
    std::string out = "{\"runs\":[";
    for (const ShownRun& shown : runs_) {
        if (!out.ends_with('[')) out += ',';
        out += '{';
        append_quoted(out, "run", shown.picture.run());
        fmt::format_to(std::back_inserter(out), ",\"rank\":{},\"is_live\":{},", shown.picture.rank(), shown.is_live);
        append_quoted(out, "label", shown.label);
        out += ',';
        append_quoted(out, "state", shown.picture.state());
        fmt::format_to(std::back_inserter(out), ",\"started\":{:.3f},\"newest\":{:.3f},\"last_sequence\":{}", shown.curves.started(), shown.curves.newest(), shown.picture.sequence());
        fmt::format_to(std::back_inserter(out), ",\"position\":{},\"start\":{},\"names\":[", shown.picture.position(), shown.picture.start());
        for (const std::string& name : shown.curves.names()) {
            if (!out.ends_with('[')) out += ',';
            append_json_text(out, name);
        }
        fmt::format_to(std::back_inserter(out), "],\"names_left_out\":{}}}", shown.curves.names_left_out());
    }
    out += "],";
    out += more;
    return out + "}";
}

std::string ShownRuns::curves(const CurvesQuery& query) const {
    std::string out = "{";
    append_quoted(out, "x", query.axis);
    out += ",\"curves\":[";
    std::size_t numbers = 0, left_out = 0;
    for (const ShownRun& shown : runs_) {
        if (!query.runs.empty() && std::ranges::find(query.runs, id_of(shown)) == query.runs.end()) continue;
        for (const std::string& name : query.names) {
            if (numbers > kMostNumbers) {
                ++left_out;
                continue;
            }
            const auto part = shown.curves.part(name, query.range);
            if (!part) continue;
            numbers += 2 * part->points.size();
            if (!out.ends_with('[')) out += ',';
            out += '{';
            append_quoted(out, "run", shown.picture.run());
            fmt::format_to(std::back_inserter(out), ",\"rank\":{},", shown.picture.rank());
            append_quoted(out, "name", name);
            fmt::format_to(std::back_inserter(out), ",\"count\":{},\"x\":", part->count);
            append_list(out, part->points, [&](const CurvePoint& point) { return point.x(query.range.axis); });
            out += ",\"y\":";
            append_list(out, part->points, [](const CurvePoint& point) { return point.y; });
            out += '}';
        }
    }
    fmt::format_to(std::back_inserter(out), "],\"left_out\":{}}}", left_out);
    return out;
}

}  // namespace torchbus

#include "curves.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include <nlohmann/json.hpp>

#include "json_member.hpp"

namespace torchbus {
namespace {

constexpr std::size_t kMostCurves = 4096;

/// The points of [begin, end) that show what it is like: the least, the most and one that is no number, in their order.
template <class Iterator, class Take>
void take_extremes(Iterator begin, Iterator end, std::size_t most, Take&& take) {
    Iterator least = end, greatest = end, none = end;
    for (Iterator point = begin; point != end; ++point) {
        if (std::isnan(point->y)) none = none == end ? point : none;
        else if (least == end) least = greatest = point;
        else if (point->y < least->y) least = point;
        else if (point->y > greatest->y) greatest = point;
    }
    if (most == 2 && none != end && least != greatest) least = greatest;
    std::vector<Iterator> kept;
    for (const Iterator point : {least, greatest, none})
        if (point != end && std::ranges::find(kept, point) == kept.end()) kept.push_back(point);
    std::ranges::sort(kept);
    for (const Iterator point : kept) take(*point);
}

}  // namespace

std::optional<CurveAxis> curve_axis(std::string_view name) {
    if (name == "step") return CurveAxis::Step;
    if (name == "samples") return CurveAxis::Samples;
    if (name == "seconds") return CurveAxis::Seconds;
    if (name == "epoch") return CurveAxis::Epoch;
    return std::nullopt;
}

double CurvePoint::x(CurveAxis axis) const {
    switch (axis) {
        case CurveAxis::Step: return step;
        case CurveAxis::Samples: return samples;
        case CurveAxis::Seconds: return static_cast<double>(seconds);
        case CurveAxis::Epoch: return static_cast<double>(epochs);
    }
    return step;
}

std::optional<double> steps_of_epoch(const nlohmann::json& plan) {
    if (!plan.is_object() || !plan.contains("splits") || !plan["splits"].is_array()) return std::nullopt;
    for (const nlohmann::json& split : plan["splits"]) {
        if (text_member(split, "mode") != "train" || !member_of(split, "batches").is_number()) continue;
        return std::ceil(number_member(split, "batches", 0) / std::max(1.0, number_member(plan, "micro_batches_per_step", 1)));
    }
    return std::nullopt;
}

void Curves::add(const StreamNumbers& numbers) {
    if (started_ == 0) started_ = numbers.seconds;
    newest_ = numbers.seconds;
    const double within = steps_per_epoch_ > 0 ? std::min(1.0, static_cast<double>(numbers.step_in_epoch) / steps_per_epoch_) : 0;
    CurvePoint point{.step = static_cast<double>(numbers.step), .samples = static_cast<double>(numbers.samples), .seconds = static_cast<float>(numbers.seconds - started_),
                     .epochs = static_cast<float>(static_cast<double>(numbers.epoch) + within)};
    for (const auto& [name, value] : numbers.fresh) {
        point.y = value;
        auto found = curves_.find(name);
        if (found == curves_.end() && curves_.size() >= kMostCurves) {
            if (left_out_.size() < kMostCurves) left_out_.insert(name);
            continue;
        }
        if (found == curves_.end()) found = curves_.emplace(name, Curve{}).first;
        found->second.points.push_back(point);
        ++found->second.added;
        ++point_count_;
    }
    while (point_count_ > limit_points_ && fold()) {}
}

void Curves::go_back_to(double step) {
    for (auto& [name, curve] : curves_) {
        const auto given_up = std::ranges::upper_bound(curve.points, step, {}, &CurvePoint::step);
        const auto count = static_cast<std::size_t>(curve.points.end() - given_up);
        if (count > 0) curve.added -= curve.added * static_cast<double>(count) / static_cast<double>(curve.points.size());
        point_count_ -= count;
        curve.points.erase(given_up, curve.points.end());
    }
}

bool Curves::fold() {
    if (curves_.empty()) return false;
    Curve& curve = std::ranges::max_element(curves_, {}, [](const auto& one) { return one.second.points.size(); })->second;
    std::vector<CurvePoint> folded;
    folded.reserve(curve.points.size() / 2 + 2);
    for (auto begin = curve.points.cbegin(); begin != curve.points.cend();) {
        const auto end = begin + std::min<std::ptrdiff_t>(4, curve.points.cend() - begin);
        take_extremes(begin, end, 2, [&](const CurvePoint& point) { folded.push_back(point); });
        begin = end;
    }
    const std::size_t freed = curve.points.size() - folded.size();
    point_count_ -= freed;
    curve.points = std::move(folded);
    return freed > 0;
}

std::vector<std::string> Curves::names() const {
    std::vector<std::string> names;
    for (const auto& [name, curve] : curves_) names.push_back(name);
    return names;
}

std::optional<CurvePart> Curves::part(std::string_view name, const CurveRange& range) const {
    const auto found = curves_.find(name);
    if (found == curves_.end()) return std::nullopt;
    const auto x = [&](const CurvePoint& point) { return point.x(range.axis); };
    const auto& all = found->second.points;
    const auto begin = range.from ? std::ranges::lower_bound(all, *range.from, {}, x) : all.begin();
    const auto end = range.to ? std::ranges::upper_bound(begin, all.end(), *range.to, {}, x) : all.end();
    CurvePart part;
    if (begin >= end) return part;
    part.count = std::llround(static_cast<double>(end - begin) / static_cast<double>(all.size()) * found->second.added);
    if (static_cast<std::size_t>(end - begin) <= range.points) {
        part.points.assign(begin, end);
        return part;
    }
    const double first = x(*begin), width = (x(*std::prev(end)) - first) / std::max<double>(1, static_cast<double>(range.points) / 2);
    for (auto from = begin; from != end;) {
        auto to = std::next(from);
        const double limit = first + width * (std::floor((x(*from) - first) / width) + 1);
        if (width > 0) to = std::ranges::lower_bound(to, end, limit, {}, x);
        else to = end;
        take_extremes(from, to, 3, [&](const CurvePoint& point) { part.points.push_back(point); });
        from = to;
    }
    return part;
}

}  // namespace torchbus

#include "chart.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>

#include <fmt/format.h>

#include "shown_text.hpp"

namespace torchbus::cli {
namespace {

constexpr double kWidth = 760, kLeft = 76, kRight = 24, kTitle = 34, kLegendRow = 18, kInnerHeight = 240, kBottom = 52;
constexpr double kInnerWidth = kWidth - kLeft - kRight;
/// Okabe and Ito's, told apart by who sees few colours, without the palest.
constexpr std::array<const char*, 8> kColors = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6000", "#888888"};

struct Range {
    double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
    void add(double value) { low = std::min(low, value), high = std::max(high, value); }
    bool is_empty() const { return low > high; }
    double share(double value) const { return (value - low) / (high - low); }
};

/// What is drawn of a value; NaN: nothing.
double drawn(double value, bool is_log) {
    if (!std::isfinite(value) || (is_log && value <= 0)) return std::numeric_limits<double>::quiet_NaN();
    return is_log ? std::log10(value) : value;
}

/// With room above and below; a constant in the middle.
Range with_room(Range range, double room) {
    if (range.is_empty()) return {0, 1};
    const double height = range.high - range.low;
    if (!(height > std::abs(range.high) * 1e-12) || !std::isfinite(height)) {
        const double around = range.high == 0 ? 1 : std::abs(range.high) * 0.1;
        return std::isfinite(height) ? Range{range.low - around, range.high + around} : Range{range.low / 2, range.high / 2};
    }
    return {range.low - height * room, range.high + height * room};
}

struct Axes {
    Range x, y;
    bool is_log;
};

Axes axes_of(const Chart& chart) {
    Range x, y;
    for (const ChartCurve& curve : chart.curves)
        for (const auto* points : {&curve.points, &curve.behind})
            for (const ChartPoint& point : *points)
                if (const double value = drawn(point.y, chart.is_log); std::isfinite(value) && std::isfinite(point.x)) x.add(point.x), y.add(value);
    if (x.is_empty()) x = {0, 1};
    if (!(x.high - x.low > std::abs(x.high) * 1e-12)) x = {x.low - 0.5, x.high + 0.5 + std::abs(x.high) * 1e-9};
    return {x, with_room(y, 0.04), chart.is_log};
}

std::string number_text(double value, double step) {
    if (std::abs(value) < step * 1e-9) return "0";
    const double size = std::max(std::abs(value), step);
    if (size >= 1e7 || size < 1e-4) return fmt::format("{:.6g}", value);
    const int digits = static_cast<int>(std::clamp(std::ceil(-std::log10(step) - 1e-9), 0.0, 9.0));
    return fmt::format("{:.{}f}", value, digits);
}

/// Positions on the axis, with their labels.
std::vector<std::pair<double, std::string>> y_ticks(const Axes& axes) {
    std::vector<std::pair<double, std::string>> ticks;
    const double decades = axes.y.high - axes.y.low;
    if (axes.is_log && decades >= 1) {
        const double every = std::ceil(decades / 8);
        for (double power = std::ceil(axes.y.low); power <= axes.y.high; ++power) {
            if (std::fmod(std::abs(power), every) == 0) ticks.emplace_back(power, fmt::format("{:.4g}", std::pow(10, power)));
            for (const double between : {2.0, 5.0})
                if (decades < 3 && power + std::log10(between) <= axes.y.high) ticks.emplace_back(power + std::log10(between), fmt::format("{:.4g}", between * std::pow(10, power)));
        }
        return ticks;
    }
    const double low = axes.is_log ? std::pow(10, axes.y.low) : axes.y.low, high = axes.is_log ? std::pow(10, axes.y.high) : axes.y.high;
    const auto values = nice_ticks(low, high, 5);
    const double step = values.size() > 1 ? values[1] - values[0] : std::abs(high - low);
    for (const double value : values)
        if (const double place = drawn(value, axes.is_log); std::isfinite(place)) ticks.emplace_back(place, number_text(value, step));
    return ticks;
}

void append_axes(std::string& svg, const Chart& chart, const Axes& axes) {
    const auto out = [&] { return std::back_inserter(svg); };
    for (const auto& [place, label] : y_ticks(axes)) {
        const double y = kInnerHeight * (1 - axes.y.share(place));
        fmt::format_to(out(), "<line x1=\"0\" y1=\"{0:.1f}\" x2=\"{1}\" y2=\"{0:.1f}\" stroke=\"currentColor\" stroke-opacity=\"0.15\"/>\n<text x=\"-8\" y=\"{2:.1f}\" text-anchor=\"end\">{3}</text>\n", y, kInnerWidth, y + 4, label);
    }
    const auto along = nice_ticks(axes.x.low, axes.x.high, 7);
    for (const double value : along) {
        const double x = kInnerWidth * axes.x.share(value);
        fmt::format_to(out(), "<line x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{0:.1f}\" y2=\"{2}\" stroke=\"currentColor\"/>\n<text x=\"{0:.1f}\" y=\"{3}\" text-anchor=\"middle\">{4}</text>\n", x, kInnerHeight, kInnerHeight + 5, kInnerHeight + 19,
                       number_text(value, along.size() > 1 ? along[1] - along[0] : 1));
    }
    fmt::format_to(out(), "<path d=\"M0 0V{0}H{1}\" fill=\"none\" stroke=\"currentColor\"/>\n<text x=\"{2}\" y=\"{3}\" text-anchor=\"middle\">{4}</text>\n", kInnerHeight, kInnerWidth, kInnerWidth / 2, kInnerHeight + 38, xml_text(chart.x_title));
}

/// One path; it begins anew behind what cannot be drawn. A lone point is a dot.
std::string path_of(const std::vector<ChartPoint>& points, const Axes& axes) {
    std::string path;
    bool is_down = false;
    for (std::size_t i = 0; i < points.size(); ++i) {
        const double y = drawn(points[i].y, axes.is_log);
        if (!std::isfinite(y) || !std::isfinite(points[i].x)) {
            is_down = false;
            continue;
        }
        fmt::format_to(std::back_inserter(path), "{}{:.2f} {:.2f}", is_down ? "L" : "M", kInnerWidth * axes.x.share(points[i].x), kInnerHeight * (1 - axes.y.share(y)));
        const bool is_alone = !is_down && (i + 1 == points.size() || !std::isfinite(drawn(points[i + 1].y, axes.is_log)));
        if (is_alone) path += "h0.01";
        is_down = true;
    }
    return path;
}

void append_curve(std::string& svg, const ChartCurve& curve, const Axes& axes) {
    const char* color = kColors[curve.color % kColors.size()];
    const auto draw = [&](const std::vector<ChartPoint>& points, double opacity, double width) {
        const std::string path = path_of(points, axes);
        if (!path.empty())
            fmt::format_to(std::back_inserter(svg), "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-opacity=\"{}\" stroke-width=\"{}\" stroke-linejoin=\"round\" stroke-linecap=\"round\"{}><title>{}</title></path>\n", path, color, opacity, width,
                           curve.is_dashed ? " stroke-dasharray=\"6 4\"" : "", xml_text(curve.name));
    };
    draw(curve.behind, 0.3, 1);
    draw(curve.points, 1, 1.7);
}

struct LegendEntry {
    double x = 0, y = 0;
    std::string text;
};

std::vector<LegendEntry> legend_of(const Chart& chart, double& height) {
    std::vector<LegendEntry> entries;
    double x = 0, y = 0;
    for (const ChartCurve& curve : chart.curves) {
        constexpr std::size_t kLongest = 60;
        std::string text = shortened(terminal_text(curve.name), kLongest);
        const double width = 34 + 6.6 * static_cast<double>(count_characters(text));
        if (x > 0 && x + width > kInnerWidth) x = 0, y += kLegendRow;
        entries.push_back({x, y, std::move(text)});
        x += width + 14;
    }
    height = y + kLegendRow;
    return entries;
}

/// At `top` of what it is drawn in; returns its height.
double append_panel(std::string& svg, const Chart& chart, double top) {
    double legend_height = 0;
    const auto legend = legend_of(chart, legend_height);
    const Axes axes = axes_of(chart);
    const auto out = [&] { return std::back_inserter(svg); };
    fmt::format_to(out(), "<g transform=\"translate({}, {})\" fill=\"currentColor\">\n<text x=\"0\" y=\"20\" font-weight=\"bold\" font-size=\"14\">{}</text>\n", kLeft, top, xml_text(shortened(terminal_text(chart.title), 90)));
    for (std::size_t i = 0; i < legend.size(); ++i)
        fmt::format_to(out(), "<path d=\"M{0:.1f} {1:.1f}h24\" stroke=\"{2}\" stroke-width=\"2.5\"{3}/><text x=\"{4:.1f}\" y=\"{5:.1f}\">{6}</text>\n", legend[i].x, kTitle + legend[i].y + 4, kColors[chart.curves[i].color % kColors.size()],
                       chart.curves[i].is_dashed ? " stroke-dasharray=\"6 4\"" : "", legend[i].x + 30, kTitle + legend[i].y + 8, xml_text(legend[i].text));
    const double head = kTitle + legend_height + 8;
    fmt::format_to(out(), "<g transform=\"translate(0, {})\">\n", head);
    append_axes(svg, chart, axes);
    for (const ChartCurve& curve : chart.curves) append_curve(svg, curve, axes);
    svg += "</g>\n</g>\n";
    return head + kInnerHeight + kBottom;
}

}  // namespace

std::vector<double> nice_ticks(double low, double high, int count) {
    const double rough = (high - low) / std::max(count, 1), power = std::pow(10, std::floor(std::log10(rough)));
    double step = power * 10;
    for (const double factor : {1.0, 2.0, 5.0})
        if (power * factor >= rough * 0.7) {  // the nearest one
            step = power * factor;
            break;
        }
    std::vector<double> ticks;
    if (!(step > 0) || !std::isfinite(step)) return {low};
    constexpr int kMost = 100;  // where steps are lost in rounding
    for (double at = std::ceil(low / step); at * step <= high + step * 1e-9 && ticks.size() < kMost; ++at) ticks.push_back(at * step);
    return ticks;
}

std::string chart_element(const Chart& chart) {
    std::string inside;
    const double height = append_panel(inside, chart, 0);
    return fmt::format("<svg viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" role=\"img\" aria-label=\"{2}\" font-family=\"sans-serif\" font-size=\"12\">\n{3}</svg>\n", kWidth, height, xml_text(chart.title), inside);
}

std::string charts_file(const std::vector<Chart>& charts) {
    std::string inside;
    double height = 0;
    for (const Chart& chart : charts) height += append_panel(inside, chart, height);
    return fmt::format("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" color=\"#222\" font-family=\"sans-serif\" font-size=\"12\">\n"
                       "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{2}</svg>\n", kWidth, std::max(height, 1.0), inside);
}

}  // namespace torchbus::cli

#include "sparkline.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace torchbus::cli {

std::vector<double> in_columns(const std::vector<CurvePoint>& points, std::size_t columns) {
    struct Column {
        double sum = 0, count = 0;
        bool is_empty = true;
    };
    std::vector<Column> of(columns);
    const double first = points.front().step, width = points.back().step - first;
    for (std::size_t i = 0; i < points.size(); ++i) {
        const double share = width > 0 ? (points[i].step - first) / width : static_cast<double>(i) / static_cast<double>(points.size());
        Column& column = of[std::min(columns - 1, static_cast<std::size_t>(std::max(0.0, share) * static_cast<double>(columns)))];
        column.is_empty = false;
        if (std::isfinite(points[i].y)) column.sum += points[i].y, column.count += 1;
    }
    std::vector<double> means;
    for (const Column& column : of) {
        if (column.is_empty) means.push_back(means.empty() ? std::numeric_limits<double>::quiet_NaN() : means.back());  // it is what it was
        else means.push_back(column.count > 0 ? column.sum / column.count : std::numeric_limits<double>::quiet_NaN());
    }
    return means;
}

std::string sparkline(const std::vector<double>& values, bool is_utf8) {
    constexpr std::array<const char*, 8> kBlocks = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"}, kAscii = {"_", ".", ",", "-", "=", "+", "*", "#"};
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (const double value : values)
        if (std::isfinite(value)) low = std::min(low, value), high = std::max(high, value);
    std::string line;
    for (const double value : values) {
        const double share = high > low ? (value - low) / (high - low) : 0.5;
        const auto level = static_cast<std::size_t>(std::isfinite(share) ? std::clamp(share * 8, 0.0, 7.0) : 3.0);
        line += !std::isfinite(value) ? " " : (is_utf8 ? kBlocks : kAscii)[level];
    }
    return line;
}

}  // namespace torchbus::cli

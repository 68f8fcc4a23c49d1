#pragma once
/// Curves with axes, as SVG.

#include <string>
#include <vector>

namespace torchbus::cli {

struct ChartPoint {
    double x = 0, y = 0;  ///< what is not finite breaks the line
};

struct ChartCurve {
    std::string name;
    std::vector<ChartPoint> points;
    std::vector<ChartPoint> behind = {};  ///< drawn faintly: what `points` are the smoothed form of
    std::size_t color = 0;                ///< curves of one number look alike
    bool is_dashed = false;
};

struct Chart {
    std::string title, x_title;
    bool is_log = false;  ///< what is not above zero is left out
    std::vector<ChartCurve> curves;
};

/// Values at which an axis is labelled, about `count` of them: 1, 2 or 5 times a power of ten apart. Requires: low < high, both finite.
std::vector<double> nice_ticks(double low, double high, int count);
/// As an element of an HTML page, whose colours it takes.
std::string chart_element(const Chart& chart);
/// A file of its own, a panel a chart, one below the other.
std::string charts_file(const std::vector<Chart>& charts);

}  // namespace torchbus::cli

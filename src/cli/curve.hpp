#pragma once
/// Curves over the updates of a run, in the terminal and as SVG.

#include <string>
#include <vector>

namespace torchbus::cli {

/// One value an update.
struct Curve {
    std::string name;  ///< what it is, with its unit if it has one
    std::vector<double> values;
};

/// Braille characters with labelled axes, at most `columns` wide. Requires: columns ≥ 40, rows ≥ 3.
std::string draw_curve(const Curve& curve, int columns = 80, int rows = 9);
/// A panel a curve, one below the other.
std::string curves_svg(const std::vector<Curve>& curves);

}  // namespace torchbus::cli

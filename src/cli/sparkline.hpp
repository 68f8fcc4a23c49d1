#pragma once
/// Curves of one line of text.

#include <string>
#include <vector>

#include "../stream/curves.hpp"

namespace torchbus::cli {

/// Means of the points that lie in each of so many parts of the curve. Requires: there is a point.
std::vector<double> in_columns(const std::vector<CurvePoint>& points, std::size_t columns);
/// The values as blocks of eight heights, one a character; of ASCII where there is no UTF-8. NaN: a blank.
std::string sparkline(const std::vector<double>& values, bool is_utf8);

}  // namespace torchbus::cli

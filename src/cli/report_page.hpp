#pragma once
/// Runs, their numbers and their stories, as HTML.

#include <string>
#include <vector>

#include "chart.hpp"
#include "read_run.hpp"

namespace torchbus::cli {

/// A page without anything from outside.
std::string report_page(const std::vector<ReadRun>& runs, const std::vector<Chart>& charts);

}  // namespace torchbus::cli

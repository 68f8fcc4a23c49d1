#pragma once
/// A recorded run as a whole: what happened in it, and its numbers.

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "../stream/curves.hpp"
#include "chart.hpp"
#include "run_story.hpp"

namespace torchbus::cli {

struct NumberSummary {
    double last = 0, least = 0, most = 0;
    std::int64_t least_step = 0, most_step = 0;
};

/// Memory: at most 2,000,000 points, of at most 4096 numbers. What was given up by a roll-back or a resume is not in the curves and summaries.
struct ReadRun {
    RunStory story;
    Curves curves{2'000'000};
    std::map<std::string, NumberSummary> summaries;  ///< of numbers that were finite once
    std::string label;                               ///< short, and unlike those of other runs
};

/// Throws: ConfigError, DataError.
ReadRun read_run(const std::filesystem::path& path);
/// What to draw of the numbers.
struct CurveChoice {
    std::vector<std::string> names;  ///< patterns; none: all
    CurveAxis axis = CurveAxis::Step;
    double smooth = 0;
    bool is_log = false;
};
/// A chart for all numbers of a kind: train.loss and eval.loss stand in one, of all runs.
std::vector<Chart> charts_of(const std::vector<ReadRun>& runs, const CurveChoice& choice);

}  // namespace torchbus::cli

#pragma once
/// Numbers of a multiclass problem from counts per class. A share of nothing is 0.

#include <span>
#include <string>
#include <string_view>

namespace torchbus {

/// How the numbers of the classes become one.
enum class Average {
    Macro,     ///< mean over the classes that occur, in targets or predictions
    Micro,     ///< one number of all samples together
    Weighted,  ///< mean over the classes, weighed by their number of targets
};
/// Throws: ConfigError, prefixed with `where`.
Average average_from(std::string_view name, std::string_view where);

/// Samples per class. All of one length.
struct ClassCounts {
    std::span<const double> correct;    ///< of this class and called so
    std::span<const double> predicted;  ///< called so
    std::span<const double> support;    ///< of this class
};

/// correct / support: with Macro the balanced accuracy, otherwise the share of samples called right.
double accuracy(const ClassCounts& counts, Average average);
/// The same of samples whose class is among the k largest outputs; classes without targets do not count.
double top_k_accuracy(std::span<const double> hits, std::span<const double> support, Average average);
double precision(const ClassCounts& counts, Average average);
double recall(const ClassCounts& counts, Average average);
/// (1 + β²) correct / ((1 + β²) correct + β² missed + wrongly called so). Requires: beta > 0.
double f_beta(const ClassCounts& counts, double beta, Average average);
/// Intersection over union, correct / (predicted + support − correct), mean over the classes that occur.
double mean_iou(const ClassCounts& counts);

}  // namespace torchbus

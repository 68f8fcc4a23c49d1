#pragma once
/// How a metric is gathered batch by batch: as sums, so that batches of any size and ranks add up to the same number.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <torchbus/batch.hpp>
#include <torchbus/subscriber.hpp>

namespace torchbus {

/// What was gathered of some batches.
struct Statistics {
    std::int64_t width = 0;  ///< classes or columns; 0 until a batch was gathered
    at::Tensor totals = {};  ///< sums in double, where the outputs lie. Shapes: [Measure::size(width)]
    /// What no sum can stand for: scores of each batch, and their targets. Shapes: [M, C] and [M]
    std::vector<at::Tensor> scores = {}, targets = {};

    bool empty() const { return width == 0; }
    /// Adds what was gathered elsewhere, of the same measure. Throws: ConfigError where the widths differ.
    void merge(const Statistics& other);
};

/// A part of such sums, read to the CPU. Syncs: waits for a device.
std::vector<double> sums_of(const at::Tensor& totals, std::int64_t from, std::int64_t count);

/// Whose numbers were computed, for Measure::announce.
struct MeasuredPass {
    Position position;
    std::string name;  ///< train, eval, eval.noisy, eval.noisy.ema, train.discriminator
};

/// Numbers of one kind, computed from the same sums. Without state of its own: all that was seen is in Statistics.
class Measure {
public:
    virtual ~Measure() = default;
    /// What its numbers are called, without train. or eval.
    virtual std::vector<std::string> names() const = 0;
    /// How many sums there are for so many classes or columns.
    virtual std::int64_t size(std::int64_t width) const = 0;
    /// Adds the first `batch.valid` samples. Syncs: never, if it can be helped.
    /// Throws: ConfigError where the shapes do not fit; DataError for a target out of range.
    virtual void gather(const Batch& batch, const at::Tensor& output, Statistics& into) const = 0;
    /// The number called names()[index]; NaN where it is not defined. Requires: statistics are not empty.
    virtual double value(std::size_t index, const Statistics& statistics) const = 0;
    /// Whether names()[index] costs little, so that it may be read while an epoch runs.
    virtual bool is_cheap(std::size_t /*index*/) const { return true; }
    /// What else than sums it needs, as a sentence; empty: it works over ranks.
    virtual std::string against_ranks() const { return {}; }
    /// At the end of a pass, with the statistics of all ranks. Throws: DataError for what gather() could not tell.
    virtual void announce(Subscriber& /*bus*/, const MeasuredPass& /*pass*/, const Statistics& /*statistics*/) const {}
};

}  // namespace torchbus

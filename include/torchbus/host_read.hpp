#pragma once
/// The one look at a device that an update's decisions may take.

#include <cstddef>
#include <vector>

#include <ATen/core/Tensor.h>

namespace torchbus {

/// Scalars that decide whether an update is made. Who decides asks for them in finalize, inspect or change, and looks
/// in decide: the first look brings all of them to the host together.
class HostRead {
public:
    /// Shapes: []. Returns the number's place.
    std::size_t ask(at::Tensor number);
    /// Syncs: at the first look after an `ask`.
    double value(std::size_t place);
    /// How many looks had to wait for numbers; 1 where all was asked for in time.
    int reads() const { return reads_; }

private:
    std::vector<at::Tensor> asked_;
    std::vector<double> values_;  ///< of the first of them
    int reads_ = 0;
};

}  // namespace torchbus

#pragma once
/// Copies of weights and gradients at an interval, counted later and elsewhere. Where 256 MiB of them wait, those that come are left out.

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <torchbus/callback.hpp>
#include <torchbus/interval.hpp>
#include <torchbus/model.hpp>
#include <torchbus/stream/tensorboard_file.hpp>

namespace torchbus {

class WeightHistograms {
public:
    WeightHistograms(Interval every, bool gradients, std::int64_t bins) : every_(every), gradients_(gradients), bins_(bins) {}
    /// Adds what it listens to and reads.
    void declare(Declaration& declared) const;
    void attach(Attachment& run);
    void detach();
    /// Thread: another one than the training thread.
    void write_to(TensorBoardFile& file);

private:
    struct Copied {
        double seconds;
        std::int64_t step;
        std::string tag;
        at::Tensor values;  ///< [n], contiguous, float64 or float32, on the CPU
    };
    void copy();

    Interval every_;
    bool gradients_;
    std::int64_t bins_;
    Model model_;
    const Moment* moment_ = nullptr;
    std::mutex mutex_;
    std::vector<Copied> waiting_;    ///< guarded by mutex_, like the next
    std::size_t waiting_bytes_ = 0;  ///< of them, and of those that are being counted
    std::int64_t left_out_ = 0;
    Connections connections_;
};

/// Of finite values; the others are left out, and in no count. Shapes: [n], contiguous.
Histogram histogram_of(const at::Tensor& values, std::int64_t bins);

}  // namespace torchbus

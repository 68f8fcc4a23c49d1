#include "weight_histograms.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

constexpr std::size_t kMostBytes = 256U << 20;

double now_s() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

/// A copy that nobody changes, as one row on the CPU. Syncs: waits for a device.
at::Tensor copy_of(const at::Tensor& tensor) {
    const at::Tensor values = tensor.is_sparse() ? tensor.coalesce()._values() : tensor;
    const auto type = values.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    return values.detach().to(at::TensorOptions().device(at::kCPU).dtype(type), /*non_blocking=*/false, /*copy=*/true).contiguous().flatten();
}

template <class T>
Histogram counted(const T* values, std::int64_t count, std::int64_t bins) {
    Histogram histogram;
    bool is_first = true;
    for (std::int64_t i = 0; i < count; ++i) {
        const auto value = static_cast<double>(values[i]);
        if (!std::isfinite(value)) continue;
        histogram.min = is_first ? value : std::min(histogram.min, value);
        histogram.max = is_first ? value : std::max(histogram.max, value);
        is_first = false;
        ++histogram.count;
        histogram.sum += value;
        histogram.sum_squares += value * value;
    }
    if (histogram.count == 0) return histogram;
    const double width = (histogram.max - histogram.min) / static_cast<double>(bins);
    if (!(width > 0) || !std::isfinite(width)) {  // all alike, or further apart than a number can say
        histogram.limits = {histogram.max};
        histogram.counts = {histogram.count};
        return histogram;
    }
    histogram.counts.assign(static_cast<std::size_t>(bins), 0);
    for (std::int64_t i = 0; i < count; ++i) {
        const auto value = static_cast<double>(values[i]);
        if (!std::isfinite(value)) continue;
        const auto bin = static_cast<std::int64_t>((value - histogram.min) / width);
        ++histogram.counts[static_cast<std::size_t>(std::clamp<std::int64_t>(bin, 0, bins - 1))];
    }
    for (std::int64_t bin = 1; bin < bins; ++bin) histogram.limits.push_back(histogram.min + width * static_cast<double>(bin));
    histogram.limits.push_back(histogram.max);
    return histogram;
}

}  // namespace

Histogram histogram_of(const at::Tensor& values, std::int64_t bins) {
    return values.scalar_type() == at::kDouble ? counted(values.const_data_ptr<double>(), values.numel(), bins) : counted(values.const_data_ptr<float>(), values.numel(), bins);
}

void WeightHistograms::declare(Declaration& declared) const {
    if (every_.amount == 0) return;
    declared.reads.emplace_back("parameters");
    if (gradients_) declared.reads.emplace_back("gradients");
}

void WeightHistograms::attach(Attachment& run) {
    if (every_.amount == 0) return;
    moment_ = &run.moment;
    connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { model_ = event.model; });
    connections_ += run.bus.observe<TrainStepEnd>(Stage::Persist, [this](const TrainStepEnd&) { copy(); }, every(every_));
    connections_ += run.bus.observe<RunClosed>(Stage::Observe, [this](const RunClosed&) { model_ = {}; });
}

void WeightHistograms::detach() {
    connections_.clear();
    model_ = {};
    moment_ = nullptr;
    const std::lock_guard lock(mutex_);
    waiting_.clear();
    waiting_bytes_ = 0;
}

void WeightHistograms::copy() {
    if (!model_) return;
    {
        const std::lock_guard lock(mutex_);
        if (waiting_bytes_ > kMostBytes) {  // those before are not counted yet
            if (left_out_++ == 0) warn("tensorboard: histograms come faster than they are counted; some are left out; give `histograms` a longer interval");
            return;
        }
    }
    std::vector<Copied> copies;
    const double seconds = now_s();
    for (const auto& [name, parameter] : model_->named_parameters()) {
        copies.push_back({seconds, moment_->position.step, "parameters/" + name, copy_of(parameter)});
        if (gradients_ && parameter.grad().defined()) copies.push_back({seconds, moment_->position.step, "gradients/" + name, copy_of(parameter.grad())});
    }
    const std::lock_guard lock(mutex_);
    for (Copied& copied : copies) {
        waiting_bytes_ += copied.values.nbytes();
        waiting_.push_back(std::move(copied));
    }
}

void WeightHistograms::write_to(TensorBoardFile& file) {
    std::vector<Copied> copies;
    {
        const std::lock_guard lock(mutex_);
        copies = std::exchange(waiting_, {});
    }
    std::size_t bytes = 0;
    for (const Copied& one : copies) {
        file.add_histogram(one.seconds, one.step, one.tag, histogram_of(one.values, bins_));
        bytes += one.values.nbytes();
    }
    const std::lock_guard lock(mutex_);
    waiting_bytes_ -= std::min(bytes, waiting_bytes_);
}

}  // namespace torchbus

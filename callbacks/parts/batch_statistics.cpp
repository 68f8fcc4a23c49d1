#include "batch_statistics.hpp"

#include <string>

#include <torch/types.h>

#include "generator_state.hpp"

namespace torchbus {
namespace {

constexpr double kNoMomentum = 1e-5;

bool is_called(const std::string& name, std::string_view last) {
    return name == last || (name.ends_with(last) && name[name.size() - last.size() - 1] == '.');
}

}  // namespace

Batch clone_of(const Batch& batch) {
    Batch copy = batch;
    copy.for_each_tensor([](at::Tensor& tensor) { tensor = tensor.detach().clone(); });
    return copy;
}

BatchStatistics::BatchStatistics(const Model& model) : model_(model) {
    for (const auto& [name, buffer] : model->named_buffers()) {
        if (!buffer.defined()) continue;
        if (is_called(name, "running_mean") || is_called(name, "running_var")) statistics_.push_back(buffer.detach());
        if (is_called(name, "num_batches_tracked")) counters_.push_back(buffer.detach());
    }
}

void BatchStatistics::compute(const std::deque<Batch>& batches, Consensus& consensus) {
    const at::NoGradGuard no_grad;
    const GeneratorGuard cpu{c10::Device(c10::kCPU)}, device(statistics_.front().device());
    std::vector<at::Tensor> sums, former;
    for (const at::Tensor& statistic : statistics_) {
        sums.push_back(at::zeros_like(statistic, at::kDouble));
        former.push_back(statistic.clone());
    }
    model_->set_training(true);
    if (!batches.empty()) find_momenta(batches.front());
    for (const Batch& batch : batches) {
        pass(batch, std::vector<at::Tensor>(statistics_.size()));
        for (std::size_t i = 0; i < sums.size(); ++i) if (momenta_[i] > kNoMomentum) sums[i].add_(statistics_[i].to(at::kDouble) / momenta_[i]);
    }
    model_->set_training(false);
    take_means(sums, former, static_cast<double>(batches.size()), consensus);
}

std::vector<at::Tensor> BatchStatistics::copies() const {
    std::vector<at::Tensor> all;
    for (const at::Tensor& statistic : statistics_) all.push_back(statistic.clone());
    return all;
}

void BatchStatistics::put(const std::vector<at::Tensor>& statistics) {
    for (std::size_t i = 0; i < statistics_.size(); ++i) statistics_[i].copy_(statistics[i]);
}

/// One forward from these statistics, zeros where undefined: each becomes (1 − momentum) · before + momentum · batch's.
void BatchStatistics::pass(const Batch& batch, const std::vector<at::Tensor>& before) {
    for (std::size_t i = 0; i < statistics_.size(); ++i) before[i].defined() ? statistics_[i].copy_(before[i]) : statistics_[i].zero_();
    for (const at::Tensor& counter : counters_) counter.zero_();
    model_->forward(batch);
}

/// A pass after which the generators are as before it: two of them draw the same dropout.
void BatchStatistics::pass_alike(const Batch& batch, const std::vector<at::Tensor>& before) {
    const GeneratorGuard cpu{c10::Device(c10::kCPU)}, device(statistics_.front().device());
    pass(batch, before);
}

/// A layer's momentum is not told: it shows in two passes of one batch, from 0 and from a number so large that the
/// batch's own share is small beside it. Normalisation in training mode does not read what the passes begin with.
void BatchStatistics::find_momenta(const Batch& batch) {
    pass_alike(batch, std::vector<at::Tensor>(statistics_.size()));
    std::vector<at::Tensor> from_zero, large;
    for (const at::Tensor& statistic : statistics_) {
        from_zero.push_back(statistic.to(at::kDouble, /*non_blocking=*/false, /*copy=*/true));
        large.push_back((statistic.abs() + 1) * 1048576.0);
    }
    pass_alike(batch, large);
    momenta_.clear();
    for (std::size_t i = 0; i < statistics_.size(); ++i)
        momenta_.push_back(1 - ((statistics_[i].to(at::kDouble) - from_zero[i]) / large[i].to(at::kDouble)).mean().item<double>());
}

void BatchStatistics::take_means(const std::vector<at::Tensor>& sums, const std::vector<at::Tensor>& former, double count, Consensus& consensus) {
    std::vector<double> totals = {count};
    for (const at::Tensor& sum : sums) {
        const at::Tensor flat = sum.cpu().contiguous();
        totals.insert(totals.end(), flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel());
    }
    consensus.sum(totals);
    std::size_t at = 1;
    for (std::size_t i = 0; i < statistics_.size(); ++i) {
        const at::Tensor& statistic = statistics_[i];
        const at::Tensor sum = at::from_blob(totals.data() + at, statistic.sizes(), at::kDouble);
        at += static_cast<std::size_t>(statistic.numel());
        // A layer that does not move its statistics in training keeps them.
        const bool moves = !momenta_.empty() && momenta_[i] > kNoMomentum;
        totals[0] > 0 && moves ? statistic.copy_(sum / totals[0]) : statistic.copy_(former[i]);
    }
}

}  // namespace torchbus

#include <torchbus/label_range.hpp>

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/error.hpp>

namespace torchbus {

void require_labels_in_range(const at::Tensor& output, const Batch& batch, std::int64_t ignore_index) {
    const at::Tensor& targets = batch.targets;
    const bool are_labels = output.defined() && targets.defined() && output.dim() >= 2 && targets.scalar_type() == at::kLong &&
                            targets.dim() == output.dim() - 1 && targets.size(0) == output.size(0);
    if (!are_labels) return;
    const at::NoGradGuard no_grad;
    const std::int64_t classes = output.size(1);
    const at::Tensor bad = targets.lt(0).logical_or(targets.ge(classes)).logical_and(targets.ne(ignore_index));
    const at::Tensor places = bad.nonzero();
    if (places.size(0) == 0) return;
    const at::Tensor place = places[0];
    const auto row = place[0].item<std::int64_t>();
    const auto label = targets.masked_select(bad)[0].item<std::int64_t>();
    const bool has_index = row < static_cast<std::int64_t>(batch.indices.size());
    const std::string sample = has_index ? fmt::format("sample {}", batch.indices[static_cast<std::size_t>(row)]) : fmt::format("sample {} of the batch", row);
    throw DataError(fmt::format("{}: its label is {}, expected 0 to {}, as the model has {} outputs; give the model more classes, or mend the label",
                                sample, label, classes - 1, classes));
}

}  // namespace torchbus

#pragma once
#include <memory>

#include <torchbus/metrics/measure_callback.hpp>

namespace torchbus {

/// Mean intersection over union of a segmentation: of each class over all pixels of the pass, then the mean over the
/// classes that occur in targets or predictions: the number of PASCAL VOC and Cityscapes, not the mean over images.
/// Shapes: output [N, C, H, W], targets of integers [N, H, W]; [N, C] and [N] as well.
/// Publishes and listens as make_measure_callback says: train.mean_iou, eval.mean_iou, train.running.mean_iou.
/// Reads: batch, output. Writes: nothing. Ignored targets do not count; others that are no class are an error.
/// Source: Everingham et al. 2010, doi:10.1007/s11263-009-0275-4, section 4.3; torchmetrics calls it the macro Jaccard index.
struct MeanIouOptions {
    std::int64_t classes = 0;         ///< C; 0: read from the output
    std::int64_t ignore_index = 255;  ///< targets of this value do not count: borders
    MeasureSchedule schedule = {};
};
std::unique_ptr<Callback> make_mean_iou(MeanIouOptions options = {});

}  // namespace torchbus

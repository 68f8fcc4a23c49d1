#pragma once
/// Sums gradients over ranks, bucket by bucket, while backward goes on.

#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <torchbus/distributed/world.hpp>

namespace torchbus {

struct GradientReducerOptions {
    double bucket_mib = 25;             ///< gradients that travel together; > 0
    double first_bucket_mib = 1;        ///< of the bucket that is ready first, so that sending begins early; > 0
    bool find_unused = false;           ///< parameters that a loss does not reach are looked for in its graph, every time
    bool bf16 = false;                  ///< gradients travel as bfloat16: half the bytes, with 8 bits of mantissa
};

/// One update's gradients. The others' ranks hold the same parameters in the same order.
/// Thread: the training thread. Rank: all of them alike.
class GradientReducer {
public:
    /// `names`: of the parameters, for messages. Throws: DistributedError where the parameters differ between ranks.
    GradientReducer(std::shared_ptr<World> world, std::vector<at::Tensor> parameters, std::vector<std::string> names, const GradientReducerOptions& options);
    ~GradientReducer();
    /// The backward that comes leaves sums over ranks in `.grad()` of every parameter, those of earlier backwards included.
    /// `root` is what it would start from; what is returned has the same value, and carries what this rank asks for.
    at::Tensor arm(const at::Tensor& root);
    /// After that backward: takes up what the ranks ask for.
    void finish();

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace torchbus

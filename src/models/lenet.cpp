#include <torch/torch.h>

#include <torchbus/models/registry.hpp>

namespace torchbus {

Model make_lenet(LenetOptions options) {
    namespace nn = torch::nn;
    return nn::Sequential(
        nn::Conv2d(nn::Conv2dOptions(1, 6, 5).padding(2)), nn::ReLU(), nn::MaxPool2d(2),  // [N, 6, 14, 14]
        nn::Conv2d(nn::Conv2dOptions(6, 16, 5)), nn::ReLU(), nn::MaxPool2d(2),            // [N, 16, 5, 5]
        nn::Flatten(), nn::Linear(400, 120), nn::ReLU(), nn::Linear(120, 84), nn::ReLU(), nn::Linear(84, options.classes));
}

}  // namespace torchbus

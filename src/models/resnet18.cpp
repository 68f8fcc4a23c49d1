#include <torch/torch.h>

#include <torchbus/models/registry.hpp>

namespace torchbus {
namespace {

namespace nn = torch::nn;

nn::Conv2d conv(std::int64_t in, std::int64_t out, std::int64_t kernel, std::int64_t stride) {
    nn::Conv2d layer(nn::Conv2dOptions(in, out, kernel).stride(stride).padding(kernel / 2).bias(false));
    nn::init::kaiming_normal_(layer->weight, 0, torch::kFanOut, torch::kReLU);
    return layer;
}

struct BasicBlock final : nn::Module {
    BasicBlock(std::int64_t in, std::int64_t out, std::int64_t stride) {
        conv1 = register_module("conv1", conv(in, out, 3, stride));
        bn1 = register_module("bn1", nn::BatchNorm2d(out));
        conv2 = register_module("conv2", conv(out, out, 3, 1));
        bn2 = register_module("bn2", nn::BatchNorm2d(out));
        if (stride != 1 || in != out)
            downsample = register_module("downsample", nn::Sequential(conv(in, out, 1, stride), nn::BatchNorm2d(out)));
    }
    at::Tensor forward(const at::Tensor& x) {
        const at::Tensor skip = downsample.is_empty() ? x : downsample->forward(x);
        const at::Tensor y = torch::relu(bn1(conv1(x)));
        return torch::relu(bn2(conv2(y)) + skip);
    }
    nn::Conv2d conv1{nullptr}, conv2{nullptr};
    nn::BatchNorm2d bn1{nullptr}, bn2{nullptr};
    nn::Sequential downsample{nullptr};
};

nn::Sequential layer(std::int64_t in, std::int64_t out, std::int64_t stride) {
    return nn::Sequential(std::make_shared<BasicBlock>(in, out, stride), std::make_shared<BasicBlock>(out, out, 1));
}

struct Resnet18 final : nn::Module {
    explicit Resnet18(const Resnet18Options& options) : small_images(options.small_images) {
        conv1 = register_module("conv1", small_images ? conv(options.channels, 64, 3, 1) : conv(options.channels, 64, 7, 2));
        bn1 = register_module("bn1", nn::BatchNorm2d(64));
        layer1 = register_module("layer1", layer(64, 64, 1));
        layer2 = register_module("layer2", layer(64, 128, 2));
        layer3 = register_module("layer3", layer(128, 256, 2));
        layer4 = register_module("layer4", layer(256, 512, 2));
        fc = register_module("fc", nn::Linear(512, options.classes));
    }
    at::Tensor forward(const at::Tensor& images) {
        at::Tensor x = torch::relu(bn1(conv1(images)));
        if (!small_images) x = torch::max_pool2d(x, 3, 2, 1);
        x = layer4->forward(layer3->forward(layer2->forward(layer1->forward(x))));
        return fc(x.mean({2, 3}));
    }
    bool small_images;
    nn::Conv2d conv1{nullptr};
    nn::BatchNorm2d bn1{nullptr};
    nn::Sequential layer1{nullptr}, layer2{nullptr}, layer3{nullptr}, layer4{nullptr};
    nn::Linear fc{nullptr};
};

}  // namespace

Model make_resnet18(Resnet18Options options) { return std::make_shared<Resnet18>(options); }

}  // namespace torchbus

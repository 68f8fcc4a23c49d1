#include <nlohmann/json.hpp>
#include <torch/torch.h>

#include <torchbus/error.hpp>
#include <torchbus/models/registry.hpp>

#include "support/catch.hpp"

using namespace torchbus;

namespace {

at::Tensor output_of(const Model& model, const at::Tensor& inputs) {
    Batch batch;
    batch.inputs = inputs;
    return model->forward(batch).tensor;
}

std::int64_t parameter_count(const Model& model) {
    std::int64_t count = 0;
    for (const auto& [name, tensor] : model->named_parameters()) count += tensor.numel();
    return count;
}

}  // namespace

TEST_CASE("models have the shapes and counts of their papers", "[models]") {
    CHECK(parameter_count(make_mlp()) == 784 * 128 + 128 + 128 * 10 + 10);
    CHECK(output_of(make_mlp(), torch::randn({2, 1, 28, 28})).sizes() == at::IntArrayRef{2, 10});
    CHECK(parameter_count(make_lenet()) == 61706);  // LeCun et al. 1998, with a full second convolution
    CHECK(output_of(make_lenet(), torch::randn({2, 1, 28, 28})).sizes() == at::IntArrayRef{2, 10});
    CHECK(parameter_count(make_resnet18()) == 11689512);  // torchvision's resnet18
    CHECK(output_of(make_resnet18({.classes = 7}), torch::randn({2, 3, 64, 64})).sizes() == at::IntArrayRef{2, 7});
    CHECK(output_of(make_resnet18({.channels = 1, .classes = 7, .small_images = true}), torch::randn({2, 1, 32, 32})).sizes() == at::IntArrayRef{2, 7});
}

TEST_CASE("ResNet-18 bears torchvision's names", "[models]") {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : make_resnet18()->named_parameters()) names.push_back(name);
    CHECK(names.size() == 62);
    for (const char* name : {"conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "layer2.0.downsample.1.weight", "layer4.1.bn2.weight", "fc.bias"})
        CHECK(std::ranges::count(names, name) == 1);
}

TEST_CASE("every model is made from its defaults", "[models]") {
    for (const ModelEntry& entry : model_registry()) {
        const nlohmann::json options = {{"kind", entry.kind}};
        CHECK(parameter_count(model_from_json(options, "run.json: model")) > 0);
    }
    CHECK_THROWS_WITH(model_from_json({{"kind", "lenet"}, {"clases", 3}}, "run.json: model"),
                      "run.json: model.clases: unknown key; did you mean 'classes'? (known: kind, classes)");
}

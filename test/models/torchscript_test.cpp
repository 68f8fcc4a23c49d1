// Models exported from Python; here they are made with LibTorch's own compiler, which writes the same files.
#include <torch/script.h>

#include <filesystem>
#include <fstream>

#include <torchbus/error.hpp>
#include <torchbus/models/torchscript.hpp>

#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

/// A TorchScript file of a linear layer with `body` as its forward.
std::filesystem::path exported(const std::string& name, const std::string& forward) {
    torch::jit::Module module("toy");
    torch::manual_seed(3);
    module.register_parameter("weight", (torch::randn({3, 6}) * 0.1).requires_grad_(), false);
    module.register_parameter("bias", torch::zeros({3}).requires_grad_(), false);
    module.register_buffer("calls", torch::zeros({}));
    module.register_attribute("training", c10::BoolType::get(), true);
    module.define(forward);
    const auto path = std::filesystem::temp_directory_path() / ("torchbus_" + name + "_" + std::to_string(::getpid()) + ".pt");
    module.save(path.string());
    return path;
}

Batch batch_of(at::Tensor inputs) {
    Batch batch;
    batch.samples = batch.valid = inputs.size(0);
    batch.inputs = std::move(inputs);
    return batch;
}

const char* const kLinear = "def forward(self, x):\n  return torch.linear(x, self.weight, self.bias)\n";

}  // namespace

TEST_CASE("a TorchScript model has its parameters by name and trains", "[models][torchscript]") {
    const auto path = exported("linear", kLinear);
    Model model = load_torchscript(path);
    std::vector<std::string> names;
    std::vector<at::Tensor> parameters;
    for (const auto& [name, tensor] : model->named_parameters()) {
        names.push_back(name);
        parameters.push_back(tensor);
    }
    CHECK(names == std::vector<std::string>{"weight", "bias"});
    REQUIRE(model->named_buffers().size() == 1);
    CHECK(model->named_buffers().front().first == "calls");
    const auto before = copies_of(parameters);
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(parameters, 0.5), .handle_signals = false});
    const double first = trainer.evaluate(toy_data(64)).size();
    CHECK(first == 0);  // nobody publishes
    trainer.train(toy_data(64), {.epochs = 3, .batch_size = 8});
    CHECK_FALSE(equal_bits(copies_of(parameters), before));
    const at::Tensor outputs = trainer.predict(toy_data(64));
    CHECK(outputs.sizes() == at::IntArrayRef{64, 3});
    std::filesystem::remove(path);
}

TEST_CASE("a TorchScript model is called with what the batch calls so, and may return a dict or a tuple", "[models][torchscript]") {
    const auto masked = exported("masked", "def forward(self, x, mask):\n  return {'logits': torch.linear(x * mask, self.weight), 'hidden': x}\n");
    Model model = load_torchscript(masked, {.arguments = {"inputs", "attention_mask"}});
    Batch batch = batch_of(torch::ones({2, 6}));
    batch.extras["attention_mask"] = torch::zeros({2, 6});
    const Output output = model->forward(batch);
    CHECK(output.tensor.abs().max().item<double>() == 0);
    CHECK(output.extras.find("hidden")->equal(batch.inputs));
    CHECK_THROWS_WITH(model->forward(batch_of(torch::ones({2, 6}))),
                      containing("forward is to be called with 'attention_mask', which the batch has not got (it has inputs, targets)"));
    CHECK_THROWS_WITH(load_torchscript(masked, {.arguments = {"inputs", "attention_mask"}, .output = "logit"})->forward(batch),
                      containing("forward returned a dict without 'logit'; did you mean 'logits'?"));
    const auto pair = exported("pair", "def forward(self, x):\n  return (torch.linear(x, self.weight), x)\n");
    CHECK(load_torchscript(pair)->forward(batch).extras.find("1")->equal(batch.inputs));
    std::filesystem::remove(masked);
    std::filesystem::remove(pair);
}

TEST_CASE("a file that is missing or no TorchScript is refused", "[models][torchscript]") {
    CHECK_THROWS_WITH(load_torchscript("nowhere.pt"), "nowhere.pt: there is no such file; export the model with torch.jit.script(model).save(path)");
    const auto path = std::filesystem::temp_directory_path() / ("torchbus_no_script_" + std::to_string(::getpid()) + ".pt");
    std::ofstream(path) << "not a model";
    CHECK_THROWS_WITH(load_torchscript(path), containing("this is no TorchScript file that this LibTorch can read"));
    std::filesystem::remove(path);
}

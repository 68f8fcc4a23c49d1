#include <cstdio>
#include <fstream>
#include <iostream>

#include <torch/types.h>

#include <torchbus/composition.hpp>
#include <torchbus/error.hpp>
#include <torchbus/trainer.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {

/// One JSON object a sample, in the order of the evaluation data: {"index": 0, "output": [...], "class": 7}.
int predict(const nlohmann::json& options) {
    const std::string target = options.at("to");
    std::ofstream file_stream;
    if (!target.empty()) file_stream.open(target);  // now, not after the prediction
    const auto refuse = [&] { throw Error((target.empty() ? "standard output" : target) + ": cannot write the predictions; is the folder there, and the disk not full?"); };
    if (!target.empty() && !file_stream) refuse();
    Composition made = trained_composition_of(options);
    const std::int64_t batch_size = made.train.eval_batch_size.value_or(made.train.batch_size);
    Trainer trainer(std::move(made.trainer));
    const at::Tensor outputs = trainer.predict(made.eval_dataset, {.batch_size = batch_size}).to(torch::kFloat).flatten(1).contiguous();
    std::ostream& out = target.empty() ? std::cout : file_stream;
    const at::Tensor classes = outputs.argmax(1);
    for (std::int64_t i = 0; i < outputs.size(0); ++i) {
        const float* row = outputs.const_data_ptr<float>() + i * outputs.size(1);
        const nlohmann::json line = {{"index", i}, {"output", std::vector<float>(row, row + outputs.size(1))}, {"class", classes[i].item<std::int64_t>()}};
        out << line.dump() << '\n';
    }
    if (!out.flush()) refuse();
    return trainer.result().exit_code;
}

}  // namespace torchbus::cli

#include <cstdio>

#include <torchbus/checkpoint/weights.hpp>
#include <torchbus/composition.hpp>
#include <torchbus/error.hpp>
#include <torchbus/trainer.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {

Composition trained_composition_of(const nlohmann::json& options) {
    Composition made = composition_of(options);
    std::string weights = options.at("weights");
    if (weights.empty()) {
        if (!made.output) throw ConfigError(made.name + ": there are no weights to load; give --weights FILE, or an output folder in the run file");
        weights = *made.output / "model.safetensors";
    }
    load_weights(weights, made.trainer.model);
    return made;
}

int evaluate(const nlohmann::json& options) {
    Composition made = trained_composition_of(options);
    const std::int64_t batch_size = made.train.eval_batch_size.value_or(made.train.batch_size);
    const auto trainer = trainer_of(made);
    const Metrics metrics = in_file(made.name, [&] { return trainer->evaluate(made.eval_dataset, {.batch_size = batch_size}); });
    if (trainer->consensus().rank() == 0) std::printf("%s\n", nlohmann::json(metrics).dump(2).c_str());
    return trainer->result().exit_code;
}

}  // namespace torchbus::cli

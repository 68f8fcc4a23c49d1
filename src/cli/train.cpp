#include <cstdio>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/checkpoint/safetensors.hpp>
#include <torchbus/composition.hpp>
#include <torchbus/trainer.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {
namespace {

void write_history(const std::filesystem::path& path, const RunHistory& history) {
    nlohmann::json epochs = nlohmann::json::array();
    for (const EpochRecord& record : history.epochs()) epochs.push_back({{"epoch", record.epoch}, {"step", record.step}, {"metrics", record.metrics}});
    AtomicFile file(path);
    file.write(epochs.dump(2) + "\n");
    file.commit();
}

}  // namespace

int train(const nlohmann::json& options) {
    Composition made = composition_of(options);
    if (made.output) require_writable_folder(*made.output, made.name + ": output");  // now, not after the night
    Model model = made.trainer.model;
    const auto trainer = trainer_of(made);
    const RunResult result = in_file(made.name, [&] { return trainer->train(made.train_dataset, made.eval_dataset, made.train); });
    if (made.output) {
        // What a signal cut short does not take the place of a trained model.
        const bool whole = result.outcome != Outcome::Signalled;
        save_safetensors(*made.output / (whole ? "model.safetensors" : "interrupted.safetensors"), weights_of(model));
        write_history(*made.output / (whole ? "history.json" : "interrupted_history.json"), trainer->history());
        std::fprintf(stderr, "weights and history are in %s%s\n", made.output->c_str(), whole ? "" : ", called interrupted");
    }
    return result.exit_code;
}

}  // namespace torchbus::cli

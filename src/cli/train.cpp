#include <cstdio>
#include <optional>

#include <torchbus/callbacks/save_training_state.hpp>
#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/checkpoint/weights.hpp>
#include <torchbus/composition.hpp>
#include <torchbus/signals.hpp>
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

/// `--resume auto` looks where the run's saver saves; a run that has saved nothing yet begins anew.
std::optional<ResumeOptions> resume_options_of(const nlohmann::json& options, const Composition& made) {
    const std::string from = options.at("resume");
    if (from.empty()) return std::nullopt;
    const std::vector<std::string> allow = options.at("allow");
    if (from != "auto") return ResumeOptions{from, false, allow};
    std::vector<std::filesystem::path> folders;
    for (const ComposedCallback& composed : made.trainer.callbacks)
        if (composed.callback->kind() == "save_training_state") folders.emplace_back(composed.options.value("folder", SaveTrainingStateOptions{}.folder.string()));
    if (folders.empty()) throw ConfigError(made.name + ": --resume auto: nobody saves training states in this run; add the callback save_training_state, or name a folder");
    return ResumeOptions{folders.front(), true, allow, {folders.begin() + 1, folders.end()}};
}

}  // namespace

int train(const nlohmann::json& options) {
    catch_signals_until_exit();  // whatever arrives, weights and history are written whole
    Composition made = composition_of(options);
    made.train.resume = resume_options_of(options, made);
    Model model = made.trainer.model;
    const auto trainer = trainer_of(made);
    if (trainer->consensus().rank() > 0) made.output.reset();  // of processes that train together the first one writes
    if (made.output) require_writable_folder(*made.output, made.name + ": output");  // now, not after the night
    const RunResult result = in_file(made.name, [&] { return trainer->train(made.train_dataset, made.eval_dataset, made.train); });
    if (made.output) {
        // What a signal cut short does not take the place of a trained model.
        const bool whole = result.outcome != Outcome::Signalled;
        save_weights(*made.output / (whole ? "model.safetensors" : "interrupted.safetensors"), weights_of(model));
        write_history(*made.output / (whole ? "history.json" : "interrupted_history.json"), trainer->history());
        std::fprintf(stderr, "weights and history are in %s%s\n", made.output->c_str(), whole ? "" : ", called interrupted");
    }
    return result.exit_code;
}

}  // namespace torchbus::cli

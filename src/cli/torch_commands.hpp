#pragma once
/// The commands that need LibTorch. They live in libtorchbus_cli.so, which the program loads when one is called.

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <torchbus/composition.hpp>
#include <torchbus/error.hpp>
#include <torchbus/trainer.hpp>

namespace torchbus::cli {

/// What the run file of the options names, with the overrides of `--set`.
Composition composition_of(const nlohmann::json& options);
/// The same, with the weights that the options name, or those of the run's output folder.
Composition trained_composition_of(const nlohmann::json& options);

/// Names the run file in what is thrown about its composition. Throws: ConfigError.
template <class Make>
auto in_file(const std::string& name, Make&& make) {
    try {
        return make();
    } catch (const ConfigError& error) {
        throw ConfigError(name + ": " + error.what());
    }
}

/// The trainer that a run file describes; its composition is taken.
std::unique_ptr<Trainer> trainer_of(Composition& made);
struct CheckedTrainer {
    std::unique_ptr<Trainer> trainer;
    CompositionReport report;
};
CheckedTrainer checked_trainer_of(Composition& made);
/// Prints warnings. Throws: ConfigError that names the run file, where there are errors.
void tell_findings(const std::vector<Finding>& findings, const std::string& name);

// Each takes the options of its command line as JSON and returns the exit code. Throws: what went wrong.
int train(const nlohmann::json& options);
int evaluate(const nlohmann::json& options);
int predict(const nlohmann::json& options);
int check(const nlohmann::json& options);
int summary(const nlohmann::json& options);
int callbacks(const nlohmann::json& options);
int schedule(const nlohmann::json& options);
int schema(const nlohmann::json& options);
int event_schema(const nlohmann::json& options);
int checkpoint(const nlohmann::json& options);
int launch(const nlohmann::json& options);
int replay(const nlohmann::json& options);
int serve(const nlohmann::json& options);
int env(const nlohmann::json& options);

}  // namespace torchbus::cli

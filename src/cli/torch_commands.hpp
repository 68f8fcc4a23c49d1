#pragma once
/// The commands that need LibTorch. They live in libtorchbus_cli.so, which the program loads when one is called.

#include <nlohmann/json.hpp>

namespace torchbus {
struct Composition;
}

namespace torchbus::cli {

/// What the run file of the options names, with the overrides of `--set`.
Composition composition_of(const nlohmann::json& options);
/// The same, with the weights that the options name, or those of the run's output folder.
Composition trained_composition_of(const nlohmann::json& options);

// Each takes the options of its command line as JSON and returns the exit code. Throws: what went wrong.
int train(const nlohmann::json& options);
int evaluate(const nlohmann::json& options);
int predict(const nlohmann::json& options);
int check(const nlohmann::json& options);
int summary(const nlohmann::json& options);
int callbacks(const nlohmann::json& options);
int schedule(const nlohmann::json& options);
int schema(const nlohmann::json& options);

}  // namespace torchbus::cli

#pragma once
/// The commands that need LibTorch. They live in libtorchbus_cli.so, which the program loads when one is called.

#include <nlohmann/json.hpp>

namespace torchbus {
struct Composition;
}

namespace torchbus::cli {

/// Loads the weights that the options name, or those of the run's output folder.
void load_weights_for(const nlohmann::json& options, Composition& made);

// Each takes the options of its command line as JSON and returns the exit code. Throws: what went wrong.
int train(const nlohmann::json& options);
int evaluate(const nlohmann::json& options);
int predict(const nlohmann::json& options);
int check(const nlohmann::json& options);
int summary(const nlohmann::json& options);
int callbacks(const nlohmann::json& options);

}  // namespace torchbus::cli

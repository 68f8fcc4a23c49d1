#include <cstdio>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/composition.hpp>
#include <torchbus/trainer.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {

/// Makes everything that the run file names and prints it, without training.
int check(const nlohmann::json& options) {
    Composition made = composition_of(options);
    if (made.output) require_writable_folder(*made.output, made.name + ": output");
    std::printf("data       %s\n", made.data.c_str());
    std::printf("epochs     %lld of batches of %lld\n", static_cast<long long>(made.train.epochs), static_cast<long long>(made.train.batch_size));
    for (const ComposedCallback& composed : made.trainer.callbacks) {
        const Declaration declared = composed.callback->declare();
        std::printf("callback   %s\n", composed.id.c_str());
        const auto row = [](const char* what, const std::vector<std::string>& names) {
            if (!names.empty()) std::printf("           %s %s\n", what, fmt::format("{}", fmt::join(names, ", ")).c_str());
        };
        row("listens to", declared.listens);
        row("reads", declared.reads);
        row("writes", declared.writes);
        row("publishes", declared.publishes);
    }
    const LoaderOptions loading{.batch_size = made.train.batch_size, .sampler = made.train.sampler, .drop_last = made.train.drop_last};
    make_loader(made.train_dataset, loading);
    const Trainer trainer(std::move(made.trainer));  // refuses what does not go together
    std::printf("%s: nothing stands against this run\n", made.name.c_str());
    return 0;
}

int summary(const nlohmann::json& options) {
    Composition made = composition_of(options);
    made.trainer.callbacks.clear();
    std::printf("%s", Trainer(std::move(made.trainer)).summary().c_str());
    return 0;
}

}  // namespace torchbus::cli

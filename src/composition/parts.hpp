#pragma once
/// The parts of a run file that have no kind, each read by a reader: so they can be described, too.

#include <cstdint>
#include <string>
#include <vector>

#include <torchbus/checkpoint/weights.hpp>
#include <torchbus/option_reader.hpp>
#include <torchbus/run_config.hpp>

namespace torchbus {

/// What stands beside the parts.
struct RunOptions {
    std::int64_t seed = 0;
    std::string output;
    std::vector<std::string> plugins;
};
RunOptions read_run(OptionReader& reader);

TrainOptions read_train(OptionReader& reader);

/// What training begins with instead of random weights.
struct InitialWeights {
    std::string file;
    LoadWeightsOptions options;
};
InitialWeights read_initial_weights(OptionReader& reader);

/// What every callback of a run file has beside its own options.
struct CallbackPlace {
    std::string kind, id;
    std::vector<std::string> before, after;
};
CallbackPlace read_callback_place(OptionReader& reader);

}  // namespace torchbus

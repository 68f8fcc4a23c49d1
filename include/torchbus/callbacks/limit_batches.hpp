#pragma once
#include <cstdint>
#include <memory>
#include <optional>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Ends every epoch and evaluation after so many batches: a smoke run of any program.
/// Listens: RunConfigured (interceptor). Writes: the plan's max_batches and max_batches_within_epoch.
/// The environment variable TORCHBUS_LIMIT_BATCHES=N does the same to any trainer, and wins where it is smaller.
struct LimitBatchesOptions {
    std::optional<std::int64_t> train = {};             ///< batches of a training epoch, ≥ 1
    std::optional<std::int64_t> eval = {};              ///< batches of an evaluation or prediction, ≥ 1
    std::optional<std::int64_t> eval_within_epoch = {};  ///< batches of an evaluation between two steps, ≥ 1; the one after an epoch is whole
};
std::unique_ptr<Callback> make_limit_batches(LimitBatchesOptions options);

/// What TORCHBUS_LIMIT_BATCHES asks for, or nullptr where it is not set. Throws: ConfigError where it is no number.
std::unique_ptr<Callback> limit_batches_from_environment();

}  // namespace torchbus

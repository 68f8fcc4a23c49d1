#pragma once
/// Delivers the batches of a dataset, in windows.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include <c10/core/Device.h>

#include <torchbus/consensus.hpp>
#include <torchbus/data/dataset.hpp>
#include <torchbus/data/sampler.hpp>

namespace torchbus {

struct LoaderOptions {
    std::int64_t batch_size = 32;                ///< samples, of each shard
    Shard shard = {};                            ///< of every batch of shard.count × batch_size samples
    std::shared_ptr<Sampler> sampler = {};       ///< default: sequential
    bool drop_last = false;                      ///< leave out a last batch that is not full
    std::uint64_t seed = 0;
    std::optional<int> workers = {};             ///< threads; default: 2 where the dataset prefers threads or batches are transformed, 1 where they are brought to a device, else 0
    int prefetch = 4;                            ///< batches that workers may be ahead
    std::function<void(Batch&, std::uint64_t seed)> transform = {};  ///< on whole batches; seed is the batch's own. Thread: any of the workers
};

/// Where a loader is: enough to go on with the next batch.
struct LoaderPosition {
    std::int64_t epoch = 0;
    std::int64_t batches = 0;  ///< delivered within the epoch
    bool operator==(const LoaderPosition&) const = default;
};

enum class Fetch : std::uint8_t { Ready, Pending, Exhausted };

/// Thread: the training thread; workers are its own.
class Loader {
public:
    virtual ~Loader() = default;
    /// Begins an epoch at a batch; a running one is given up.
    virtual void begin(LoaderPosition at) = 0;
    /// Moves the next `count` batches into `window`, or fewer where the epoch ends: the last window may be short.
    /// After an exception the loader must be begun again. Pending when `wait` has passed without all of them; they are kept for the next call.
    virtual Fetch next(std::int64_t count, std::chrono::milliseconds wait, Window& window) = 0;
    /// Of the last batch delivered, however far ahead the workers are.
    virtual LoaderPosition position() const = 0;
    /// Batches of an epoch, where the dataset has a length.
    virtual std::optional<std::int64_t> batches() const = 0;
    /// Where batches are to be when they are delivered. They are copied ahead, from pinned memory and on a stream of its own,
    /// and what the caller computes on its current stream comes after the copy. Called before begin(); a loader that does
    /// not know how leaves them where they are.
    virtual void deliver_to(c10::Device /*device*/) {}
};

/// Throws: ConfigError for an empty dataset, a batch size of 0, or one above the dataset with drop_last.
std::unique_ptr<Loader> make_loader(const AnyDataset& dataset, LoaderOptions options);

}  // namespace torchbus

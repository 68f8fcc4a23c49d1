#include <torchbus/data/loader.hpp>

#include <algorithm>
#include <iterator>

#include <fmt/format.h>

#include <torchbus/device.hpp>
#include <torchbus/error.hpp>

#include "prefetch_queue.hpp"
#include "shard_part.hpp"

namespace torchbus {
namespace {

constexpr std::chrono::hours kLongestWait{24};  ///< a deadline must not overflow

/// Turns single batches into windows, and keeps the position. The derived class makes the batches.
class WindowLoader : public Loader {
public:
    WindowLoader(int workers, LoaderOptions options)
        : options_(std::move(options)), workers_(workers), queue_([this](std::int64_t number) { return make(number); }, workers, options_.prefetch) {
        if (options_.batch_size < 1) throw ConfigError(fmt::format("batch_size: {} is not a batch size; give at least 1", options_.batch_size));
        if (workers < 0) throw ConfigError(fmt::format("workers: {} is negative; give 0 to load on the training thread", workers));
        if (options_.prefetch < 1) throw ConfigError(fmt::format("prefetch: {} is too few; give at least 1 batch", options_.prefetch));
    }

    Fetch next(std::int64_t count, std::chrono::milliseconds wait, Window& window) final {
        if (!begun_) throw StateError("next() on a loader that was not begun; call begin() first");
        const auto deadline = std::chrono::steady_clock::now() + std::min<std::chrono::milliseconds>(wait, kLongestWait);
        window.batches.clear();
        while (static_cast<std::int64_t>(pending_.size()) < count) {
            Batch batch;
            const Fetch fetch = queue_.take(deadline, batch);
            if (fetch == Fetch::Pending) return Fetch::Pending;
            if (fetch == Fetch::Exhausted) break;
            pending_.push_back(std::move(batch));
        }
        if (pending_.empty()) return Fetch::Exhausted;
        // More may have been taken for a larger window that was then given up.
        const auto end = pending_.begin() + std::min(count, static_cast<std::int64_t>(pending_.size()));
        window.batches.assign(std::make_move_iterator(pending_.begin()), std::make_move_iterator(end));
        pending_.erase(pending_.begin(), end);
        position_.batches += window.count();
        return Fetch::Ready;
    }
    LoaderPosition position() const final { return position_; }
    void deliver_to(c10::Device device) final {
        halt();
        queue_.copy_to(device, options_.workers ? workers_ : std::max(workers_, is_accelerator(device) ? 1 : 0));
    }

protected:
    virtual std::optional<Batch> make(std::int64_t number) = 0;

    void restart(LoaderPosition at) {
        pending_.clear();
        position_ = at;
        begun_ = true;
        queue_.start(at.batches);
    }
    void halt() { queue_.stop(); }
    /// Samples of all shards' batches of one number.
    std::int64_t whole_batch() const { return options_.batch_size * options_.shard.count; }
    Batch finished(Batch batch, std::int64_t number, const ShardPart& part, std::int64_t total) const {
        batch.valid = std::min(batch.valid, part.valid);
        if (part.valid == 0 && !options_.shard.even) batch.tokens = 0, batch.weight = 0;
        // Batches count from the far end of the sample seeds, so that no batch shares one with a sample.
        if (options_.transform) options_.transform(batch, seed().of(-2 - (number * options_.shard.count + options_.shard.index)));
        batch.over_ranks = over_ranks(batch, part, total);
        return batch;
    }
    /// Where samples weigh alike, all of it is known without asking the other ranks.
    BatchOverRanks over_ranks(const Batch& batch, const ShardPart& part, std::int64_t total) const {
        const auto [index, count, even] = options_.shard;
        if (count == 1) return {batch.valid, batch.tokens, batch.weight, batch.weight};
        return {total, 0, static_cast<double>(even ? part.count * count : total), static_cast<double>(even ? part.count : part.valid)};
    }
    SampleSeed seed() const { return {options_.seed, epoch_}; }

    LoaderOptions options_;
    std::int64_t epoch_ = 0;  ///< changes only while no worker runs

private:
    int workers_;  ///< where batches stay
    LoaderPosition position_;
    bool begun_ = false;
    std::vector<Batch> pending_;  ///< taken already for a window that is not complete
    PrefetchQueue queue_;
};

class IndexedLoader final : public WindowLoader {
public:
    IndexedLoader(std::shared_ptr<const Dataset> dataset, LoaderOptions options)
        : WindowLoader(options.workers.value_or(dataset->prefers_threads() || options.transform ? 2 : 0), options), dataset_(std::move(dataset)) {
        if (!options_.sampler) options_.sampler = make_sequential_sampler();
        const std::int64_t size = dataset_->size();
        if (size == 0) throw ConfigError("the dataset is empty; there is nothing to load");
        if (options_.drop_last && whole_batch() > options_.sampler->count(size))
            throw ConfigError(fmt::format("batch_size: {}{} is above the {} samples of an epoch, and drop_last leaves nothing; "
                                          "give a smaller batch or keep the last one", options_.batch_size,
                                          options_.shard.count > 1 ? fmt::format(" on each of {} ranks", options_.shard.count) : "", options_.sampler->count(size)));
    }
    ~IndexedLoader() override { halt(); }

    void begin(LoaderPosition at) override {
        halt();
        epoch_ = at.epoch;
        order_ = options_.sampler->order(dataset_->size(), options_.seed, at.epoch);
        if (const auto count = options_.sampler->count(dataset_->size()); static_cast<std::int64_t>(order_.size()) != count)
            throw ConfigError(fmt::format("the sampler's order has {} indices, its count says {}; make them agree", order_.size(), count));
        restart(at);
    }
    std::optional<std::int64_t> batches() const override {
        const std::int64_t count = options_.sampler->count(dataset_->size());
        return options_.drop_last ? count / whole_batch() : (count + whole_batch() - 1) / whole_batch();
    }

private:
    std::optional<Batch> make(std::int64_t number) override {
        if (number >= *batches()) return std::nullopt;
        const std::int64_t begin = number * whole_batch();
        const auto size = static_cast<std::int64_t>(order_.size());
        const std::int64_t total = std::min(whole_batch(), size - begin);
        const ShardPart part = part_of_shard(options_.shard, total);
        const std::int64_t first = begin + part.begin;
        if (first + part.count <= size) return finished(dataset_->gather(std::span(order_.data() + first, static_cast<std::size_t>(part.count)), seed()), number, part, total);
        std::vector<std::int64_t> indices;  // filled up from the beginning
        for (std::int64_t i = first; i < first + part.count; ++i) indices.push_back(order_[static_cast<std::size_t>(i % size)]);
        return finished(dataset_->gather(indices, seed()), number, part, total);
    }

    std::shared_ptr<const Dataset> dataset_;
    std::vector<std::int64_t> order_;
};

class IterableLoader final : public WindowLoader {
public:
    IterableLoader(std::shared_ptr<IterableDataset> dataset, LoaderOptions options)
        : WindowLoader(std::min(options.workers.value_or(1), 1), options), dataset_(std::move(dataset)) {
        if (options_.sampler) throw ConfigError("a sampler needs a dataset with a length; an iterable dataset has an order of its own");
    }
    ~IterableLoader() override { halt(); }

    void begin(LoaderPosition at) override {
        halt();
        epoch_ = at.epoch;
        dataset_->begin(seed());
        exhausted_ = false;
        for (std::int64_t skipped = 0; skipped < at.batches * whole_batch() && !exhausted_; ++skipped) exhausted_ = !dataset_->next();
        restart(at);
    }
    std::optional<std::int64_t> batches() const override { return std::nullopt; }

private:
    std::optional<Batch> make(std::int64_t number) override {
        std::vector<Item> items;
        while (!exhausted_ && static_cast<std::int64_t>(items.size()) < whole_batch()) {
            std::optional<Item> item = dataset_->next();
            exhausted_ = !item;  // a stream is not asked again after its end
            if (!item) break;
            items.push_back(std::move(*item));
        }
        const auto total = static_cast<std::int64_t>(items.size());
        if (items.empty() || (total < whole_batch() && options_.drop_last)) return std::nullopt;
        const ShardPart part = part_of_shard(options_.shard, total);
        std::vector<Item> own;
        for (std::int64_t i = part.begin; i < part.begin + part.count; ++i) own.push_back(items[static_cast<std::size_t>(i % total)]);
        return finished(dataset_->collate(std::move(own)), number, part, total);
    }

    std::shared_ptr<IterableDataset> dataset_;
    bool exhausted_ = false;
};

}  // namespace

// Below this room a loader is only a name.
std::unique_ptr<Loader> Consensus::dispatch(std::unique_ptr<Loader> of_first) { return of_first; }

std::unique_ptr<Loader> make_loader(const AnyDataset& dataset, LoaderOptions options) {
    if (!dataset) throw ConfigError("there is no dataset; give one");
    if (dataset.stream()) return std::make_unique<IterableLoader>(dataset.stream(), std::move(options));
    return std::make_unique<IndexedLoader>(dataset.with_length(), std::move(options));
}

}  // namespace torchbus

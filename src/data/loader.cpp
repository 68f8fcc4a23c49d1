#include <torchbus/data/loader.hpp>

#include <algorithm>
#include <iterator>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "prefetch_queue.hpp"

namespace torchbus {
namespace {

constexpr std::chrono::hours kLongestWait{24};  ///< a deadline must not overflow

/// Turns single batches into windows, and keeps the position. The derived class makes the batches.
class WindowLoader : public Loader {
public:
    WindowLoader(int workers, LoaderOptions options)
        : options_(std::move(options)), queue_([this](std::int64_t number) { return make(number); }, workers, options_.prefetch) {
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

protected:
    virtual std::optional<Batch> make(std::int64_t number) = 0;

    void restart(LoaderPosition at) {
        pending_.clear();
        position_ = at;
        begun_ = true;
        queue_.start(at.batches);
    }
    void halt() { queue_.stop(); }
    Batch finished(Batch batch, std::int64_t number) const {
        // Batches count from the far end of the sample seeds, so that no batch shares one with a sample.
        if (options_.transform) options_.transform(batch, seed().of(-2 - number));
        return batch;
    }
    SampleSeed seed() const { return {options_.seed, epoch_}; }

    LoaderOptions options_;
    std::int64_t epoch_ = 0;  ///< changes only while no worker runs

private:
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
        if (options_.drop_last && options_.batch_size > options_.sampler->count(size))
            throw ConfigError(fmt::format("batch_size: {} is above the {} samples of an epoch, and drop_last leaves nothing; "
                                          "give a smaller batch or keep the last one", options_.batch_size, options_.sampler->count(size)));
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
        return options_.drop_last ? count / options_.batch_size : (count + options_.batch_size - 1) / options_.batch_size;
    }

private:
    std::optional<Batch> make(std::int64_t number) override {
        if (number >= *batches()) return std::nullopt;
        const std::int64_t begin = number * options_.batch_size;
        const std::int64_t count = std::min(options_.batch_size, static_cast<std::int64_t>(order_.size()) - begin);
        const std::span indices(order_.data() + begin, static_cast<std::size_t>(count));
        return finished(dataset_->gather(indices, seed()), number);
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
        for (std::int64_t skipped = 0; skipped < at.batches * options_.batch_size && !exhausted_; ++skipped) exhausted_ = !dataset_->next();
        restart(at);
    }
    std::optional<std::int64_t> batches() const override { return std::nullopt; }

private:
    std::optional<Batch> make(std::int64_t number) override {
        std::vector<Item> items;
        while (!exhausted_ && static_cast<std::int64_t>(items.size()) < options_.batch_size) {
            std::optional<Item> item = dataset_->next();
            exhausted_ = !item;  // a stream is not asked again after its end
            if (!item) break;
            items.push_back(std::move(*item));
        }
        const bool short_one = static_cast<std::int64_t>(items.size()) < options_.batch_size;
        if (items.empty() || (short_one && options_.drop_last)) return std::nullopt;
        return finished(dataset_->collate(std::move(items)), number);
    }

    std::shared_ptr<IterableDataset> dataset_;
    bool exhausted_ = false;
};

}  // namespace

std::unique_ptr<Loader> make_loader(const AnyDataset& dataset, LoaderOptions options) {
    if (!dataset) throw ConfigError("there is no dataset; give one");
    if (dataset.stream()) return std::make_unique<IterableLoader>(dataset.stream(), std::move(options));
    return std::make_unique<IndexedLoader>(dataset.with_length(), std::move(options));
}

}  // namespace torchbus

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include <torch/torch.h>

#include <torchbus/data/loader.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"

using namespace torchbus;
using namespace std::chrono_literals;

namespace {

using Indices = std::vector<std::int64_t>;

/// Sample i is [i, a number of its seed].
struct SeededDataset : ItemDataset {
    explicit SeededDataset(std::int64_t count) : count(count) {}
    std::int64_t size() const override { return count; }
    Item get(std::int64_t index, std::uint64_t seed) const override {
        return {torch::tensor({index, static_cast<std::int64_t>(seed >> 8)}), torch::tensor(index)};
    }
    std::int64_t count;
};

/// Samples from `closed_from` on wait until the gate opens.
struct GatedDataset final : SeededDataset {
    GatedDataset(std::int64_t count, std::int64_t closed_from) : SeededDataset(count), closed_from(closed_from) {}
    Item get(std::int64_t index, std::uint64_t seed) const override {
        std::unique_lock lock(mutex);
        ++asked;
        changed.notify_all();
        changed.wait(lock, [&] { return index < closed_from; });
        return SeededDataset::get(index, seed);
    }
    void open() {
        const std::lock_guard lock(mutex);
        closed_from = count;
        changed.notify_all();
    }
    /// Waits until `expected` samples were asked for, then a little more, and says how many were.
    int asked_after(int expected) const {
        std::unique_lock lock(mutex);
        changed.wait_for(lock, 5s, [&] { return asked >= expected; });
        changed.wait_for(lock, 50ms, [&] { return asked > expected; });
        return asked;
    }
    std::int64_t closed_from;
    mutable std::mutex mutex;
    mutable std::condition_variable changed;
    mutable int asked = 0;
};

struct BrokenDataset final : SeededDataset {
    BrokenDataset(std::int64_t count, std::int64_t broken) : SeededDataset(count), broken(broken) {}
    Item get(std::int64_t index, std::uint64_t seed) const override {
        if (index == broken) throw DataError("photos/7.png: 0 bytes, expected a picture; the file is empty; get it again");
        return SeededDataset::get(index, seed);
    }
    std::int64_t broken;
};

/// Counts to `count`, from another number each epoch.
struct CountingStream final : IterableDataset {
    explicit CountingStream(std::int64_t count) : count(count) {}
    void begin(SampleSeed seed) override {
        at = 0;
        is_over = false;
        first = seed.epoch * 100 + static_cast<std::int64_t>(seed.seed) * 1000;
    }
    std::optional<Item> next() override {
        if (is_over) throw std::logic_error("a stream is asked again after its end");  // no CHECK: this may be a loader's thread
        is_over = at == count;
        if (is_over) return std::nullopt;
        return Item{torch::tensor(first + at++)};
    }
    std::int64_t count, at = 0, first = 0;
    bool is_over = false;
};

std::shared_ptr<SeededDataset> seeded(std::int64_t count) { return std::make_shared<SeededDataset>(count); }

struct Delivered {
    Indices indices;
    std::vector<at::Tensor> inputs;
    Indices window_sizes;  ///< batches of each window
    Indices batch_sizes;   ///< samples of each batch
};

/// Takes windows until the epoch is over, or `windows` of them.
Delivered deliver(Loader& loader, std::int64_t window_size = 1, int windows = 1'000'000) {
    Delivered delivered;
    Window window;
    for (int i = 0; i < windows; ++i) {
        const Fetch fetch = loader.next(window_size, 10s, window);
        REQUIRE(fetch != Fetch::Pending);
        if (fetch == Fetch::Exhausted) break;
        delivered.window_sizes.push_back(window.count());
        for (const Batch& batch : window.batches) {
            delivered.batch_sizes.push_back(batch.samples);
            delivered.inputs.push_back(batch.inputs);
            delivered.indices.insert(delivered.indices.end(), batch.indices.begin(), batch.indices.end());
        }
    }
    return delivered;
}

bool equal(const Delivered& left, const Delivered& right) {
    return left.indices == right.indices && left.batch_sizes == right.batch_sizes &&
           std::ranges::equal(left.inputs, right.inputs, [](const at::Tensor& a, const at::Tensor& b) { return a.equal(b); });
}

/// What `right` has after the first `count` batches.
Delivered without_first(Delivered delivered, std::int64_t count) {
    std::int64_t samples = 0;
    for (std::int64_t i = 0; i < count; ++i) samples += delivered.batch_sizes[static_cast<std::size_t>(i)];
    delivered.indices.erase(delivered.indices.begin(), delivered.indices.begin() + samples);
    delivered.batch_sizes.erase(delivered.batch_sizes.begin(), delivered.batch_sizes.begin() + count);
    delivered.inputs.erase(delivered.inputs.begin(), delivered.inputs.begin() + count);
    return delivered;
}

/// Shuffles, and adds a number of the batch's seed.
LoaderOptions random_options(std::uint64_t seed, int workers, int prefetch = 4) {
    LoaderOptions options{.batch_size = 4, .sampler = make_random_sampler(), .seed = seed, .workers = workers, .prefetch = prefetch};
    options.transform = [](Batch& batch, std::uint64_t of_batch) { batch.inputs = batch.inputs + static_cast<std::int64_t>(of_batch >> 8); };
    return options;
}

Delivered epoch_of(std::uint64_t seed, std::int64_t epoch, int workers, int prefetch = 4) {
    const auto loader = make_loader(seeded(50), random_options(seed, workers, prefetch));
    loader->begin({.epoch = epoch});
    return deliver(*loader);
}

/// The numbers of a stream, batch by batch.
std::vector<Indices> numbers_of(Loader& loader) {
    std::vector<Indices> numbers;
    for (const at::Tensor& batch : deliver(loader).inputs)
        numbers.emplace_back(batch.data_ptr<std::int64_t>(), batch.data_ptr<std::int64_t>() + batch.numel());
    return numbers;
}

}  // namespace

TEST_CASE("batches depend on seed and epoch, not on workers or prefetch", "[data][loader]") {
    const Delivered expected = epoch_of(1, 2, 0);
    CHECK(std::set(expected.indices.begin(), expected.indices.end()).size() == 50);
    for (const int workers : {1, 2, 5})
        for (const int prefetch : {1, 3, 64}) CHECK(equal(epoch_of(1, 2, workers, prefetch), expected));
    CHECK(epoch_of(1, 3, 0).indices != expected.indices);
    CHECK(epoch_of(2, 2, 0).indices != expected.indices);
}

TEST_CASE("an epoch comes in windows, the last of which is short", "[data][loader]") {
    for (const int workers : {0, 2}) {
        const auto loader = make_loader(seeded(37), {.batch_size = 4, .workers = workers});
        CHECK(loader->batches() == 10);
        loader->begin({});
        const Delivered delivered = deliver(*loader, 4);
        CHECK(delivered.window_sizes == Indices{4, 4, 2});
        CHECK(delivered.batch_sizes == Indices{4, 4, 4, 4, 4, 4, 4, 4, 4, 1});
        Indices counting(37);
        for (std::size_t i = 0; i < counting.size(); ++i) counting[i] = static_cast<std::int64_t>(i);
        CHECK(delivered.indices == counting);
        Window window;
        CHECK(loader->next(4, 1s, window) == Fetch::Exhausted);
        CHECK(loader->next(1, 1s, window) == Fetch::Exhausted);
    }
}

TEST_CASE("windows larger than the epoch hold all of it", "[data][loader]") {
    const auto loader = make_loader(seeded(10), {.batch_size = 4, .workers = 2, .prefetch = 1});
    loader->begin({});
    CHECK(deliver(*loader, 100).window_sizes == Indices{3});
}

TEST_CASE("drop_last leaves out a last batch that is not full", "[data][loader]") {
    for (const int workers : {0, 2}) {
        const auto loader = make_loader(seeded(37), {.batch_size = 4, .drop_last = true, .workers = workers});
        CHECK(loader->batches() == 9);
        loader->begin({});
        CHECK(deliver(*loader).batch_sizes == Indices(9, 4));
    }
    const auto exact = make_loader(seeded(8), {.batch_size = 4, .drop_last = true});
    CHECK(exact->batches() == 2);
    exact->begin({});
    CHECK(deliver(*exact).batch_sizes == Indices{4, 4});
}

TEST_CASE("a position of mid-epoch gives exactly the rest", "[data][loader]") {
    for (const int workers : {0, 3}) {
        const auto loader = make_loader(seeded(50), random_options(5, workers));
        loader->begin({.epoch = 4});
        CHECK(loader->position() == LoaderPosition{4, 0});
        const Delivered whole = deliver(*loader);
        loader->begin({.epoch = 4});
        deliver(*loader, 2, 3);
        const LoaderPosition saved = loader->position();
        CHECK(saved == LoaderPosition{4, 6});
        const Delivered rest = deliver(*loader, 3);
        CHECK(equal(rest, without_first(whole, 6)));
        const auto resumed = make_loader(seeded(50), random_options(5, 3 - workers, 2));
        resumed->begin(saved);
        CHECK(resumed->position() == saved);
        CHECK(equal(deliver(*resumed, 3), rest));
        CHECK(resumed->position() == LoaderPosition{4, 13});
    }
}

TEST_CASE("a position at the end of an epoch is exhausted", "[data][loader]") {
    for (const int workers : {0, 2}) {
        const auto loader = make_loader(seeded(10), {.batch_size = 4, .workers = workers});
        loader->begin({.epoch = 1, .batches = 3});
        Window window;
        CHECK(loader->next(1, 10s, window) == Fetch::Exhausted);
        CHECK(loader->position() == LoaderPosition{1, 3});
    }
}

TEST_CASE("beginning again gives a running epoch up", "[data][loader]") {
    for (const int workers : {0, 3}) {
        const auto loader = make_loader(seeded(50), random_options(1, workers));
        loader->begin({.epoch = 7});
        deliver(*loader, 2, 2);
        loader->begin({.epoch = 2});
        CHECK(loader->position() == LoaderPosition{2, 0});
        CHECK(equal(deliver(*loader), epoch_of(1, 2, 0)));
    }
}

TEST_CASE("a loader can go while its workers are busy", "[data][loader]") {
    const auto loader = make_loader(seeded(10'000), {.batch_size = 1, .workers = 3});
    loader->begin({});
    CHECK(deliver(*loader, 1, 3).indices == Indices{0, 1, 2});
}

TEST_CASE("a slow dataset is pending after the wait, and nothing is lost", "[data][loader]") {
    const auto dataset = std::make_shared<GatedDataset>(8, 3);
    const auto loader = make_loader(dataset, {.batch_size = 1, .workers = 2});
    loader->begin({});
    Window window;
    CHECK(loader->next(2, 10s, window) == Fetch::Ready);
    const auto start = std::chrono::steady_clock::now();
    CHECK(loader->next(3, 30ms, window) == Fetch::Pending);  // one of three is there
    const auto waited = std::chrono::steady_clock::now() - start;
    CHECK(waited >= 29ms);
    CHECK(waited < 5s);
    CHECK(loader->next(3, 0ms, window) == Fetch::Pending);
    CHECK(loader->position() == LoaderPosition{0, 2});
    dataset->open();
    CHECK(loader->next(3, 10s, window) == Fetch::Ready);
    REQUIRE(window.count() == 3);
    for (std::int64_t i = 0; i < 3; ++i) CHECK(window.batches[static_cast<std::size_t>(i)].indices == Indices{2 + i});
    CHECK(loader->position() == LoaderPosition{0, 5});
    CHECK(deliver(*loader, 3).indices == Indices{5, 6, 7});
}

TEST_CASE("a position that is saved while a window is pending starts with that window", "[data][loader]") {
    const auto dataset = std::make_shared<GatedDataset>(6, 3);
    const auto loader = make_loader(dataset, {.batch_size = 1, .workers = 1});
    loader->begin({});
    Window window;
    CHECK(loader->next(2, 10s, window) == Fetch::Ready);
    CHECK(loader->next(2, 20ms, window) == Fetch::Pending);
    const LoaderPosition saved = loader->position();
    dataset->open();
    const auto resumed = make_loader(dataset, {.batch_size = 1, .workers = 1});
    resumed->begin(saved);
    CHECK(deliver(*resumed, 2).indices == Indices{2, 3, 4, 5});
}

TEST_CASE("workers are no further ahead than prefetch says", "[data][loader]") {
    const auto dataset = std::make_shared<GatedDataset>(50, 50);
    const auto loader = make_loader(dataset, {.batch_size = 1, .workers = 4, .prefetch = 3});
    loader->begin({});
    CHECK(dataset->asked_after(3) == 3);
    deliver(*loader, 2, 1);
    CHECK(dataset->asked_after(5) == 5);
}

TEST_CASE("an exception in a dataset reaches the caller, after the batches before it", "[data][loader]") {
    for (const int workers : {0, 2}) {
        const auto loader = make_loader(std::make_shared<BrokenDataset>(20, 9), {.batch_size = 2, .workers = workers});
        loader->begin({});
        CHECK(deliver(*loader, 1, 4).indices == Indices{0, 1, 2, 3, 4, 5, 6, 7});
        Window window;
        CHECK_THROWS_AS(loader->next(1, 10s, window), DataError);
        CHECK_THROWS_WITH(loader->next(1, 10s, window), "photos/7.png: 0 bytes, expected a picture; the file is empty; get it again");
        CHECK(loader->position() == LoaderPosition{0, 4});
        loader->begin({.epoch = 0, .batches = 5});
        CHECK(deliver(*loader, 1, 1).indices == Indices{10, 11});
    }
}

TEST_CASE("an exception in a transform reaches the caller", "[data][loader]") {
    for (const int workers : {0, 2}) {
        const auto loader = make_loader(seeded(8), {.batch_size = 4, .workers = workers, .transform = [](Batch&, std::uint64_t) {
                                                        throw std::domain_error("no such crop");
                                                    }});
        loader->begin({});
        Window window;
        CHECK_THROWS_AS(loader->next(1, 10s, window), std::domain_error);
    }
}

TEST_CASE("a transform sees whole batches, each with a seed of its own", "[data][loader]") {
    const auto seeds_of = [](std::int64_t epoch) {
        std::vector<std::uint64_t> seeds;
        const auto loader = make_loader(seeded(10), {.batch_size = 4, .seed = 3, .workers = 0, .transform = [&](Batch& batch, std::uint64_t seed) {
                                                         CHECK(batch.samples == static_cast<std::int64_t>(batch.indices.size()));
                                                         seeds.push_back(seed);
                                                     }});
        loader->begin({.epoch = epoch});
        deliver(*loader);
        return seeds;
    };
    std::set<std::uint64_t> all;
    for (const std::int64_t epoch : {0, 1})
        for (const std::uint64_t seed : seeds_of(epoch)) all.insert(seed);
    for (std::int64_t index = 0; index < 10; ++index) all.insert(SampleSeed{3, 0}.of(index));
    CHECK(all.size() == 3 + 3 + 10);
    CHECK(seeds_of(0) == seeds_of(0));
}

TEST_CASE("batches are gathered on the calling thread, and on workers where items are decoded or batches transformed", "[data][loader]") {
    class Gathering final : public Dataset {
    public:
        explicit Gathering(bool prefers_threads) : prefers_threads_(prefers_threads) {}
        std::int64_t size() const override { return 4; }
        Batch gather(std::span<const std::int64_t>, SampleSeed) const override {
            thread = std::this_thread::get_id();
            return {.inputs = torch::zeros(4), .samples = 4, .valid = 4, .weight = 4};
        }
        bool prefers_threads() const override { return prefers_threads_; }
        mutable std::atomic<std::thread::id> thread;

    private:
        bool prefers_threads_;
    };
    const auto is_on_worker = [](bool prefers_threads, const LoaderOptions& options) {
        const auto dataset = std::make_shared<Gathering>(prefers_threads);
        const auto loader = make_loader(dataset, options);
        loader->begin({});
        deliver(*loader, 1, 1);
        return dataset->thread.load() != std::this_thread::get_id();
    };
    const auto nothing = [](Batch&, std::uint64_t) {};
    CHECK(!is_on_worker(false, {.batch_size = 4}));
    CHECK(is_on_worker(true, {.batch_size = 4}));
    CHECK(is_on_worker(false, {.batch_size = 4, .transform = nothing}));
    CHECK(!is_on_worker(false, {.batch_size = 4, .workers = 0, .transform = nothing}));
    CHECK(!TensorDataset(torch::zeros(4)).prefers_threads());
}

TEST_CASE("a weighted sampler sets the length of an epoch", "[data][loader]") {
    const auto loader = make_loader(seeded(3), {.batch_size = 4, .sampler = make_weighted_sampler({0, 1, 0}, 10)});
    CHECK(loader->batches() == 3);
    loader->begin({});
    CHECK(deliver(*loader).indices == Indices(10, 1));
}

TEST_CASE("a stream is cut into batches, another one each epoch", "[data][loader][iterable]") {
    for (const int workers : {0, 1, 4}) {
        const auto loader = make_loader(std::make_shared<CountingStream>(5), {.batch_size = 2, .seed = 1, .workers = workers});
        CHECK(loader->batches() == std::nullopt);
        loader->begin({});
        CHECK(numbers_of(*loader) == std::vector<Indices>{{1000, 1001}, {1002, 1003}, {1004}});
        loader->begin({.epoch = 2});
        CHECK(numbers_of(*loader) == std::vector<Indices>{{1200, 1201}, {1202, 1203}, {1204}});
    }
}

TEST_CASE("a stream goes on from a position, and may drop a last batch", "[data][loader][iterable]") {
    for (const int workers : {0, 1}) {
        const auto loader = make_loader(std::make_shared<CountingStream>(9), {.batch_size = 2, .drop_last = true, .workers = workers});
        loader->begin({.epoch = 1});
        deliver(*loader, 2, 1);
        const LoaderPosition saved = loader->position();
        CHECK(saved == LoaderPosition{1, 2});
        loader->begin(saved);
        CHECK(numbers_of(*loader) == std::vector<Indices>{{104, 105}, {106, 107}});
        CHECK(loader->position() == LoaderPosition{1, 4});
    }
}

TEST_CASE("a stream comes in windows, the last of which is short", "[data][loader][iterable]") {
    const auto loader = make_loader(std::make_shared<CountingStream>(10), {.batch_size = 2});
    loader->begin({});
    CHECK(deliver(*loader, 3).window_sizes == Indices{3, 2});
    const auto empty = make_loader(std::make_shared<CountingStream>(0), {.batch_size = 2});
    empty->begin({});
    CHECK(deliver(*empty, 3).window_sizes.empty());
}

TEST_CASE("loader options that cannot work say why", "[data][loader]") {
    CHECK_THROWS_WITH(make_loader(seeded(0), {}), "the dataset is empty; there is nothing to load");
    CHECK_THROWS_WITH(make_loader(seeded(5), {.batch_size = 0}), "batch_size: 0 is not a batch size; give at least 1");
    CHECK_THROWS_WITH(make_loader(seeded(5), {.batch_size = -3}), "batch_size: -3 is not a batch size; give at least 1");
    CHECK_THROWS_WITH(make_loader(seeded(5), {.batch_size = 6, .drop_last = true}),
                      "batch_size: 6 is above the 5 samples of an epoch, and drop_last leaves nothing; give a smaller batch or keep the last one");
    CHECK_NOTHROW(make_loader(seeded(5), {.batch_size = 6}));
    CHECK_THROWS_WITH(make_loader(seeded(5), {.workers = -1}), "workers: -1 is negative; give 0 to load on the training thread");
    CHECK_THROWS_WITH(make_loader(seeded(5), {.prefetch = 0}), "prefetch: 0 is too few; give at least 1 batch");
    CHECK_THROWS_WITH(make_loader(std::make_shared<CountingStream>(5), {.sampler = make_random_sampler()}),
                      "a sampler needs a dataset with a length; an iterable dataset has an order of its own");
    CHECK_THROWS_AS(make_loader(seeded(0), {}), ConfigError);
    CHECK_THROWS_AS(make_loader(seeded(5), {.batch_size = 0}), ConfigError);
    CHECK_THROWS_AS(make_loader(seeded(5), {.batch_size = 6, .drop_last = true}), ConfigError);
}

TEST_CASE("weights of another count than the dataset's samples are told", "[data][loader]") {
    const auto loader = make_loader(seeded(5), {.sampler = make_weighted_sampler({1, 1}, 5)});
    CHECK_THROWS_WITH(loader->begin({}), "2 weights for 5 samples; a weighted sampler needs one for each");
}

TEST_CASE("a window that was given up leaves its batches to the next one, however small that is", "[data][loader][thread]") {
    const auto dataset = std::make_shared<GatedDataset>(12, 4);
    const auto loader = make_loader(std::shared_ptr<const Dataset>(dataset), LoaderOptions{.batch_size = 2, .workers = 1});
    loader->begin({});
    Window window;
    CHECK(loader->next(4, 200ms, window) == Fetch::Pending);  // two of four batches are there
    CHECK(loader->position().batches == 0);
    dataset->open();
    for (std::int64_t batch = 0; batch < 6; ++batch) {
        REQUIRE(loader->next(1, 5s, window) == Fetch::Ready);
        REQUIRE(window.count() == 1);
        CHECK(window.batches[0].indices == Indices{2 * batch, 2 * batch + 1});
        CHECK(loader->position().batches == batch + 1);
    }
    CHECK(loader->next(1, 5s, window) == Fetch::Exhausted);
}

TEST_CASE("a loader says what it was not given", "[data][loader]") {
    struct ShortSampler final : Sampler {
        Indices order(std::int64_t, std::uint64_t, std::int64_t) const override { return {0, 1, 2}; }
    };
    Window window;
    CHECK_THROWS_WITH(make_loader(std::shared_ptr<const Dataset>(seeded(4)), {})->next(1, 1s, window),
                      "next() on a loader that was not begun; call begin() first");
    const auto loader = make_loader(std::shared_ptr<const Dataset>(seeded(4)), {.sampler = std::make_shared<ShortSampler>()});
    CHECK_THROWS_WITH(loader->begin({}), "the sampler's order has 3 indices, its count says 4; make them agree");
    const auto patient = make_loader(std::shared_ptr<const Dataset>(seeded(4)), {.batch_size = 2});
    patient->begin({});
    CHECK(patient->next(1, std::chrono::milliseconds::max(), window) == Fetch::Ready);
}

TEST_CASE("an item that lacks what its neighbours have is an error", "[data][dataset]") {
    std::vector<Item> items(2);
    for (Item& item : items) item.input = torch::ones(2);
    items[0].extras["mask"] = torch::ones(2);
    CHECK_THROWS_WITH(collate_stack(items), "an item has no 'mask', which another item of its batch has; give it to all or to none");
}

TEST_CASE("a stream that was at its end is not asked again where a run goes on", "[data][loader]") {
    for (const std::int64_t batches : {2, 3, 4}) {  // the third batch is short
        const auto loader = make_loader(std::make_shared<CountingStream>(5), {.batch_size = 2, .workers = 0});
        loader->begin({0, batches});
        Window window;
        CHECK(loader->next(1, 1s, window) == (batches == 2 ? Fetch::Ready : Fetch::Exhausted));
    }
}

TEST_CASE("shards divide every batch between them, whatever their number, and the rest as evenly as can be", "[data][loader]") {
    for (const std::int64_t count : {1, 2, 3, 4, 6}) {
        std::vector<Delivered> shards;
        for (std::int64_t index = 0; index < count; ++index) {
            LoaderOptions options{.batch_size = 12 / count, .shard = {index, count}, .sampler = make_random_sampler(), .seed = 5};
            const auto loader = make_loader(seeded(26), std::move(options));
            CHECK(loader->batches() == 3);
            loader->begin({.epoch = 1});
            shards.push_back(deliver(*loader));
            CHECK(loader->position().batches == 3);
        }
        const Indices whole = make_random_sampler()->order(26, 5, 1);
        Indices together, lasts;
        for (std::size_t batch = 0; batch < 3; ++batch)
            for (const Delivered& shard : shards) {
                const auto begin = shard.indices.begin() + static_cast<std::ptrdiff_t>(batch * static_cast<std::size_t>(12 / count));
                const std::int64_t size = shard.batch_sizes[batch];
                together.insert(together.end(), begin, begin + size);
                if (batch == 2) lasts.push_back(size);
            }
        INFO(count);
        CHECK(std::equal(together.begin(), together.begin() + 26, whole.begin()));
        // Two are left: of six shards four have one that counts nothing.
        CHECK(lasts == (count == 1 ? Indices{2} : count == 2 ? Indices{1, 1} : count == 3 ? Indices{1, 1, 1} : count == 4 ? Indices{1, 1, 1, 1} : Indices{1, 1, 1, 1, 1, 1}));
    }
}

TEST_CASE("a shard without samples takes one of another's, which counts nothing", "[data][loader]") {
    std::vector<double> weights;
    std::vector<std::int64_t> valid;
    for (std::int64_t index = 0; index < 3; ++index) {
        const auto loader = make_loader(seeded(8), {.batch_size = 2, .shard = {index, 3}});
        loader->begin({});
        Window window;
        while (loader->next(1, 10s, window) == Fetch::Ready) {}
        loader->begin({.epoch = 0, .batches = 1});
        REQUIRE(loader->next(1, 10s, window) == Fetch::Ready);
        weights.push_back(window.batches.front().weight);
        valid.push_back(window.batches.front().valid);
    }
    CHECK(weights == std::vector<double>{1, 1, 0});
    CHECK(valid == std::vector<std::int64_t>{1, 1, 0});
    CHECK_THROWS_WITH(make_loader(seeded(8), {.batch_size = 3, .shard = {0, 3}, .drop_last = true}), containing("batch_size: 3 on each of 3 ranks is above the 8 samples of an epoch"));
}

TEST_CASE("shards of a stream take turns in it", "[data][loader]") {
    std::vector<std::vector<Indices>> shards;
    for (std::int64_t index = 0; index < 2; ++index) {
        const auto loader = make_loader(std::make_shared<CountingStream>(7), {.batch_size = 2, .shard = {index, 2}});
        loader->begin({});
        shards.push_back(numbers_of(*loader));
    }
    CHECK(shards[0] == std::vector<Indices>{{0, 1}, {4, 5}});
    CHECK(shards[1] == std::vector<Indices>{{2, 3}, {6}});
}

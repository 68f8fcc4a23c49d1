#include <torchbus/data/sampler.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include <fmt/format.h>

#include <torchbus/data/dataset.hpp>
#include <torchbus/error.hpp>

namespace torchbus {
namespace {

using Indices = std::vector<std::int64_t>;

std::mt19937_64 generator_of(std::uint64_t seed, std::int64_t epoch) { return std::mt19937_64(SampleSeed{seed, epoch}.of(-1)); }

/// A number below `bound`, without the bias of a remainder. Source: Lemire 2019, arXiv:1805.10941.
std::uint64_t bounded(std::mt19937_64& generator, std::uint64_t bound) {
    __extension__ using Wide = unsigned __int128;
    Wide product = static_cast<Wide>(generator()) * bound;
    auto low = static_cast<std::uint64_t>(product);
    if (low < bound) {
        const std::uint64_t threshold = (0 - bound) % bound;
        while (low < threshold) {
            product = static_cast<Wide>(generator()) * bound;
            low = static_cast<std::uint64_t>(product);
        }
    }
    return static_cast<std::uint64_t>(product >> 64);
}

/// std::shuffle differs between standard libraries; this one does not.
template <class Values>
void shuffle(Values& values, std::mt19937_64& generator) {
    for (std::size_t left = values.size(); left > 1; --left) std::swap(values[left - 1], values[bounded(generator, left)]);
}

Indices counting(std::int64_t size) {
    Indices indices(static_cast<std::size_t>(size));
    std::iota(indices.begin(), indices.end(), std::int64_t{0});
    return indices;
}

class SequentialSampler final : public Sampler {
public:
    Indices order(std::int64_t size, std::uint64_t, std::int64_t) const override { return counting(size); }
};

class RandomSampler final : public Sampler {
public:
    Indices order(std::int64_t size, std::uint64_t seed, std::int64_t epoch) const override {
        auto generator = generator_of(seed, epoch);
        Indices indices = counting(size);
        shuffle(indices, generator);
        return indices;
    }
};

class WeightedSampler final : public Sampler {
public:
    WeightedSampler(const std::vector<double>& weights, std::int64_t count) : count_(count), probability_(weights.size(), 1.0), alias_(weights.size()) {
        if (count < 1) throw ConfigError(fmt::format("a weighted sampler of {} draws has nothing to do; give a count of at least 1", count));
        const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
        for (std::size_t i = 0; i < weights.size(); ++i)
            if (!(weights[i] >= 0) || !std::isfinite(weights[i]))
                throw ConfigError(fmt::format("weights[{}]: {} is not a weight; give finite numbers of at least 0", i, weights[i]));
        if (!std::isfinite(sum)) throw ConfigError("the sum of a weighted sampler's weights is too large for a double; give smaller ones");
        if (!(sum > 0)) throw ConfigError("the weights of a weighted sampler sum to zero; at least one must be positive");
        std::vector<double> scaled;
        std::vector<std::size_t> small, large;
        for (std::size_t i = 0; i < weights.size(); ++i) {
            scaled.push_back(weights[i] * static_cast<double>(weights.size()) / sum);
            alias_[i] = i;
            (scaled[i] < 1.0 ? small : large).push_back(i);
        }
        while (!small.empty() && !large.empty()) {
            const std::size_t less = small.back(), more = large.back();
            small.pop_back();
            probability_[less] = scaled[less];
            alias_[less] = more;
            scaled[more] -= 1.0 - scaled[less];
            if (scaled[more] < 1.0) {
                large.pop_back();
                small.push_back(more);
            }
        }
    }
    Indices order(std::int64_t size, std::uint64_t seed, std::int64_t epoch) const override {
        if (size != static_cast<std::int64_t>(alias_.size()))
            throw ConfigError(fmt::format("{} weights for {} samples; a weighted sampler needs one for each", alias_.size(), size));
        auto generator = generator_of(seed, epoch);
        Indices indices(static_cast<std::size_t>(count_));
        for (auto& index : indices) {
            const std::uint64_t column = bounded(generator, alias_.size());
            const double draw = static_cast<double>(generator() >> 11) * 0x1.0p-53;
            index = static_cast<std::int64_t>(draw < probability_[column] ? column : alias_[column]);
        }
        return indices;
    }
    std::int64_t count(std::int64_t) const override { return count_; }

private:
    std::int64_t count_;
    std::vector<double> probability_;
    std::vector<std::size_t> alias_;
};

class LengthBucketSampler final : public Sampler {
public:
    LengthBucketSampler(std::vector<std::int64_t> lengths, std::int64_t batch_size, std::int64_t batches)
        : lengths_(std::move(lengths)), batch_size_(static_cast<std::size_t>(batch_size)), bucket_(static_cast<std::size_t>(batch_size * batches)) {
        if (batch_size < 1 || batches < 1) throw ConfigError("a length bucket needs a batch size and batches_per_bucket of at least 1");
    }
    Indices order(std::int64_t size, std::uint64_t seed, std::int64_t epoch) const override {
        if (size != static_cast<std::int64_t>(lengths_.size()))
            throw ConfigError(fmt::format("{} lengths for {} samples; a length bucket sampler needs one for each", lengths_.size(), size));
        auto generator = generator_of(seed, epoch);
        Indices indices = counting(size);
        shuffle(indices, generator);
        const auto length_of = [&](std::int64_t index) { return lengths_[static_cast<std::size_t>(index)]; };
        for (std::size_t begin = 0; begin < indices.size(); begin += bucket_) {
            const auto end = std::min(begin + bucket_, indices.size());
            const auto first = indices.begin() + static_cast<std::ptrdiff_t>(begin), last = indices.begin() + static_cast<std::ptrdiff_t>(end);
            std::ranges::stable_sort(first, last, {}, length_of);
            if (end == indices.size()) move_short_batch_last(first, last, generator);
        }
        return shuffled_batches(indices, generator);
    }

private:
    /// The short batch is taken anywhere in the last bucket: were it always the longest samples, drop_last would never
    /// let them be seen.
    void move_short_batch_last(Indices::iterator first, Indices::iterator last, std::mt19937_64& generator) const {
        const auto count = static_cast<std::size_t>(last - first);
        const std::size_t rest = count % batch_size_;
        if (rest == 0) return;
        const std::size_t place = bounded(generator, count / batch_size_ + 1) * batch_size_;
        const auto from = first + static_cast<std::ptrdiff_t>(place);
        std::rotate(from, from + static_cast<std::ptrdiff_t>(rest), last);
    }
    /// The short last batch stays last: anywhere else it would shift the borders of the others.
    Indices shuffled_batches(const Indices& indices, std::mt19937_64& generator) const {
        std::vector<std::size_t> starts;
        for (std::size_t begin = 0; begin + batch_size_ <= indices.size(); begin += batch_size_) starts.push_back(begin);
        const std::size_t full = starts.size() * batch_size_;
        shuffle(starts, generator);
        Indices result;
        result.reserve(indices.size());
        for (const std::size_t begin : starts)
            result.insert(result.end(), indices.begin() + static_cast<std::ptrdiff_t>(begin), indices.begin() + static_cast<std::ptrdiff_t>(begin + batch_size_));
        result.insert(result.end(), indices.begin() + static_cast<std::ptrdiff_t>(full), indices.end());
        return result;
    }
    std::vector<std::int64_t> lengths_;
    std::size_t batch_size_, bucket_;
};

}  // namespace

std::shared_ptr<Sampler> make_sequential_sampler() { return std::make_shared<SequentialSampler>(); }
std::shared_ptr<Sampler> make_random_sampler() { return std::make_shared<RandomSampler>(); }
std::shared_ptr<Sampler> make_weighted_sampler(std::vector<double> weights, std::int64_t count) {
    return std::make_shared<WeightedSampler>(weights, count);
}
std::shared_ptr<Sampler> make_length_bucket_sampler(std::vector<std::int64_t> lengths, std::int64_t batch_size, std::int64_t batches_per_bucket) {
    return std::make_shared<LengthBucketSampler>(std::move(lengths), batch_size, batches_per_bucket);
}

}  // namespace torchbus

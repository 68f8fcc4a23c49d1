#include <torchbus/callbacks/micro_batch_halving.hpp>

#include <algorithm>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/error.hpp>

#include "entries.hpp"
#include "parts/generator_state.hpp"

namespace torchbus {
namespace {

class MicroBatchHalving final : public Callback {
public:
    explicit MicroBatchHalving(MicroBatchHalvingOptions options) : options_(options) {}
    std::string kind() const override { return "micro_batch_halving"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "train_step_start", "micro_batch_failed"}, .reads = {"parameters"}, .writes = {"window"},
                .publishes = {{"micro_batch_parts", "train_step_start", Stage::Transform}}};
    }
    void attach(Attachment& run) override {
        if (run.consensus.world_size() > 1)
            throw ConfigError(fmt::format("micro_batch_halving: it works in one process, and there are {} ranks; make the batch smaller and accumulate instead", run.consensus.world_size()));
        run_ = &run;
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) {
            model_ = event.model;
            parts_ = 1;
        });
        connections_ += run.bus.intercept<TrainStepStart>([this](TrainStepStart& event) { begin(event.window); });
        connections_ += run.bus.intercept<MicroBatchFailed>([this](MicroBatchFailed& event) {
            if (event.out_of_memory && halve(event)) event.again();
        });
    }
    void detach() override {
        connections_.clear();
        if (run_) run_->blackboard.withdraw("micro_batch_parts");
        originals_.clear();
        model_ = {};
        run_ = nullptr;
    }

private:
    /// A batch of the window as it is divided now: samples of one that the loader delivered.
    struct Piece {
        std::size_t original;
        std::int64_t first, count;
    };

    void begin(Window& window) {
        if (!options_.keep) parts_ = 1;
        originals_ = window.batches;
        pieces_.clear();
        for (std::size_t i = 0; i < originals_.size(); ++i) {
            const std::int64_t samples = originals_[i].samples, parts = std::clamp<std::int64_t>(samples / options_.min_samples, 1, parts_);
            for (std::int64_t part = 0; part < parts; ++part) pieces_.push_back({i, samples * part / parts, samples * (part + 1) / parts - samples * part / parts});
        }
        keep_surroundings();
        if (parts_ == 1) return;
        window.batches.clear();
        for (const Piece& piece : pieces_) window.batches.push_back(batch_of(piece, originals_[piece.original].progress));
    }

    /// Returns whether it could.
    bool halve(const MicroBatchFailed& event) {
        std::int64_t largest = 0;
        for (const Piece& piece : pieces_) largest = std::max(largest, piece.count);
        if (largest / 2 < options_.min_samples) {
            warn(fmt::format("out of memory at step {} with micro-batches of {} samples; parts of less than {} are not made", event.position.step, largest, options_.min_samples));
            return false;
        }
        std::vector<Piece> halves;
        std::vector<Batch> batches;
        for (std::size_t i = 0; i < pieces_.size(); ++i) {
            const auto [original, first, count] = pieces_[i];
            const std::int64_t half = count / 2 < options_.min_samples ? count : count / 2;
            for (const Piece& piece : {Piece{original, first, half}, Piece{original, first + half, count - half}}) {
                if (piece.count == 0) continue;
                halves.push_back(piece);
                batches.push_back(batch_of(piece, event.window.batches[i].progress));
            }
        }
        pieces_ = std::move(halves);
        event.window.batches = std::move(batches);
        put_surroundings_back();
        const std::int64_t before = std::exchange(parts_, parts_ * 2);
        run_->blackboard.publish("micro_batch_parts", static_cast<double>(parts_));
        warn(fmt::format("out of memory at step {} with micro-batches of {} samples; trying again in {} parts", event.position.step, largest, parts_));
        run_->bus.emit(OptionChanged{event.position, run_->bus.id(), "parts", fmt::format("{}", before), fmt::format("{}", parts_), "out of memory"});
        return true;
    }

    /// From the batch as it was before BatchReady, which fires for the part; what was told of its samples stays told.
    Batch batch_of(const Piece& piece, BatchProgress told) const {
        Batch part = part_of(originals_[piece.original], piece.first, piece.count, "micro_batch_halving");
        part.progress = {originals_[piece.original].progress.prepared, told.measured, told.counted};
        return part;
    }

    void keep_surroundings() {
        generators_.clear();
        buffers_.clear();
        buffers_before_.clear();
        generators_.emplace_back(c10::Device(c10::kCPU));
        const auto parameters = model_->named_parameters();
        if (!parameters.empty() && !parameters.front().second.is_cpu()) generators_.emplace_back(parameters.front().second.device());
        for (const auto& [name, buffer] : model_->named_buffers()) {
            if (!buffer.defined()) continue;
            buffers_.push_back(buffer.detach());
            buffers_before_.push_back(buffer.detach().clone());
        }
    }
    void put_surroundings_back() const {
        const at::NoGradGuard no_grad;
        for (const GeneratorState& generator : generators_) generator.put_back();
        if (!buffers_.empty()) at::_foreach_copy_(buffers_, buffers_before_);
    }

    MicroBatchHalvingOptions options_;
    Attachment* run_ = nullptr;
    Model model_;
    std::int64_t parts_ = 1;          ///< of each batch of a window
    std::vector<Batch> originals_;    ///< the window's batches as they were delivered
    std::vector<Piece> pieces_;       ///< one a batch of the window
    std::vector<GeneratorState> generators_;
    std::vector<at::Tensor> buffers_, buffers_before_;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_micro_batch_halving(MicroBatchHalvingOptions options) {
    if (options.min_samples < 1) throw ConfigError(fmt::format("micro_batch_halving: min_samples: {} is too few; give at least 1", options.min_samples));
    return std::make_unique<MicroBatchHalving>(options);
}

std::unique_ptr<Callback> micro_batch_halving_from_json(OptionReader& reader) {
    MicroBatchHalvingOptions options;
    reader.integer("min_samples", options.min_samples, "samples; parts are not made smaller, the run fails instead", Range::at_least(1))
        .boolean("keep", options.keep, "whether later windows are divided from the start");
    return make_micro_batch_halving(options);
}

}  // namespace torchbus

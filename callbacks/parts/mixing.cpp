#include "mixing.hpp"

#include <cstdint>

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/changed_option.hpp>
#include <torchbus/error.hpp>
#include <torchbus/events.hpp>
#include <torchbus/label_range.hpp>


namespace torchbus {
namespace {

void require_valid(const std::string& kind, const MixingOptions& options) {
    const auto refuse = [&](const char* name, double value, const char* what) {
        throw ConfigError(fmt::format("{}: {}: {} is out of range; give {}", kind, name, value, what));
    };
    if (!(options.alpha > 0)) refuse("alpha", options.alpha, "a positive number, e.g. 0.8");
    if (!(options.probability >= 0 && options.probability <= 1)) refuse("probability", options.probability, "a number between 0 and 1");
    if (!(options.label_smoothing >= 0 && options.label_smoothing < 1)) refuse("label_smoothing", options.label_smoothing, "a number in [0, 1), e.g. 0.1");
}

class Mixing final : public Callback {
public:
    Mixing(std::string kind, MixingOptions options, MixInputs mix) : kind_(std::move(kind)), options_(options), mix_(mix) {}
    std::string kind() const override { return kind_; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "batch_ready", "output_ready"}, .reads = {"output"}, .writes = {"batch", "loss"}};
    }
    void attach(Attachment& run) override {
        rank_ = run.consensus.rank();
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { seed_ = event.plan.seed; });
        connections_ += run.bus.intercept<BatchReady>([this](BatchReady& event) { mix(event); }, in(Mode::Train));
        connections_ += run.bus.intercept<OutputReady>([this](OutputReady& event) { supply(event); }, in(Mode::Train));
    }
    void detach() override { connections_.clear(); }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        using Options = MixingOptions;
        return change_number(options_, {{"alpha", &Options::alpha}, {"probability", &Options::probability}, {"label_smoothing", &Options::label_smoothing}}, kind_, option, value,
                             [this](const Options& options) { require_valid(kind_, options); });
    }

private:
    static bool is_mixed(const Batch& batch, std::string_view by) {
        const at::Tensor* share = batch.extras.find(std::string(by) + ".share");
        return share && share->defined();
    }
    /// splitmix64 of what names this batch in this run, on this rank, for this kind.
    at::Generator generator_at(const Position& position) const {
        std::uint64_t state = seed_;
        for (const std::uint64_t part : {static_cast<std::uint64_t>(position.micro_batch), static_cast<std::uint64_t>(rank_), static_cast<std::uint64_t>(kind_.size())}) {
            state += part + 0x9e3779b97f4a7c15;
            state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9;
            state = (state ^ (state >> 27)) * 0x94d049bb133111eb;
            state ^= state >> 31;
        }
        return at::make_generator<at::CPUGeneratorImpl>(state);
    }

    void mix(BatchReady& event) const {
        Batch& batch = event.batch;
        if (is_mixed(batch, "mixup") || is_mixed(batch, "cutmix")) return;
        const at::Generator generator = generator_at(event.position);
        if (uniform(generator) >= options_.probability) return;
        // Beta(alpha, alpha) is the first part of a Dirichlet draw with both parameters alpha.
        double share = at::_sample_dirichlet(at::full({2}, options_.alpha, at::kDouble), generator)[0].item<double>();
        at::Tensor permutation = at::randperm(batch.inputs.size(0), generator, at::TensorOptions(at::kLong)).to(batch.inputs.device());
        batch.inputs = mix_(batch.inputs, permutation, share, generator);
        batch.extras[kind_ + ".permutation"] = permutation;
        batch.extras[kind_ + ".share"] = at::full({}, share, at::kDouble);
    }

    /// λ · L(t) + (1 − λ) · L(t permuted): cross entropy is linear in the targets, so this is that of λ · t + (1 − λ) · t permuted.
    void supply(OutputReady& event) const {
        const Batch& batch = event.batch;
        if (!is_mixed(batch, kind_)) {
            const bool smooths = options_.label_smoothing > 0 && !event.loss.defined() && !is_mixed(batch, "mixup") && !is_mixed(batch, "cutmix");
            if (smooths) event.loss = loss_of(event, targets_of(batch));
            return;
        }
        if (event.loss.defined())
            throw ConfigError(fmt::format("{}: the loss is supplied already, by a step function or by a callback before it; leave one of them out", kind_));
        const double share = batch.extras.find(kind_ + ".share")->item<double>();
        const at::Tensor& targets = targets_of(batch);
        const at::Tensor permuted = targets.index_select(0, batch.extras.find(kind_ + ".permutation")->to(targets.device()));
        event.loss = loss_of(event, targets) * share + loss_of(event, permuted) * (1 - share);
    }
    const at::Tensor& targets_of(const Batch& batch) const {
        if (!batch.targets.defined()) throw ConfigError(fmt::format("{}: the batch has no targets; give data with classes, or leave it out", kind_));
        return batch.targets;
    }
    at::Tensor loss_of(const OutputReady& event, const at::Tensor& targets) const {
        const at::Tensor& output = event.output.tensor;
        return with_labels_explained([&] { return at::cross_entropy_loss(output, targets, {}, at::Reduction::Mean, -100, options_.label_smoothing); }, output, event.batch);
    }

    std::string kind_;
    MixingOptions options_;
    MixInputs mix_;
    std::uint64_t seed_ = 0;
    int rank_ = 0;
    Connections connections_;
};

}  // namespace

double uniform(const at::Generator& generator) { return at::rand({}, generator, at::TensorOptions(at::kDouble)).item<double>(); }

MixingOptions read_mixing_options(OptionReader& reader, MixingOptions options) {
    reader.number("alpha", options.alpha, "both parameters of the Beta distribution of a sample's share; > 0", Range::positive()).changeable()
        .number("probability", options.probability, "of a batch being mixed; between 0 and 1", Range::between(0, 1)).changeable()
        .number("label_smoothing", options.label_smoothing, "share of a label that all classes get alike; in [0, 1)", Range::from_to_below(0, 1)).changeable();
    return options;
}

std::unique_ptr<Callback> make_mixing(const std::string& kind, MixingOptions options, MixInputs mix) {
    require_valid(kind, options);
    return std::make_unique<Mixing>(kind, options, mix);
}

}  // namespace torchbus

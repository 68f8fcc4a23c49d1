#include <torchbus/callbacks/label_smoothing.hpp>

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/changed_option.hpp>
#include <torchbus/error.hpp>
#include <torchbus/label_range.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

constexpr const char* kBothSupply = "both supply the loss, and it has an option label_smoothing of its own";

void require_valid(const LabelSmoothingOptions& options) {
    if (!(options.smoothing >= 0 && options.smoothing < 1))
        throw ConfigError(fmt::format("label_smoothing: smoothing: {} is out of range; give a number in [0, 1), e.g. 0.1", options.smoothing));
}

class LabelSmoothing final : public Callback {
public:
    explicit LabelSmoothing(LabelSmoothingOptions options) : options_(options) {}
    std::string kind() const override { return "label_smoothing"; }
    Declaration declare() const override { return {.listens = {"output_ready"}, .reads = {"output"}, .writes = {"loss"}, .excludes = {{"mixup", kBothSupply}, {"cutmix", kBothSupply}}}; }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<OutputReady>([this](OutputReady& event) { supply(event); }, in(Mode::Train));
    }
    void detach() override { connections_.clear(); }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        return change_number(options_, {{"smoothing", &LabelSmoothingOptions::smoothing}}, kind(), option, value,
                             [](const LabelSmoothingOptions& changed) { require_valid(changed); });
    }

private:
    void supply(OutputReady& event) const {
        if (event.loss.defined())
            throw ConfigError("label_smoothing: the loss is supplied already, by a step function or by a callback before it; leave one of them out");
        if (!event.batch.targets.defined()) throw ConfigError("label_smoothing: the batch has no targets; give data with classes, or leave it out");
        const at::Tensor& output = event.output.tensor;
        event.loss = with_labels_explained([&] {
            return at::cross_entropy_loss(output, event.batch.targets, {}, at::Reduction::Mean, options_.ignore_index, options_.smoothing);
        }, output, event.batch, options_.ignore_index);
    }

    LabelSmoothingOptions options_;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_label_smoothing(LabelSmoothingOptions options) {
    require_valid(options);
    return std::make_unique<LabelSmoothing>(options);
}

std::unique_ptr<Callback> label_smoothing_from_json(OptionReader& reader) {
    LabelSmoothingOptions options;
    reader.number("smoothing", options.smoothing, "share of a label that all classes get alike; in [0, 1)", Range::from_to_below(0, 1)).changeable()
        .integer("ignore_index", options.ignore_index, "target of samples that count nothing");
    return make_label_smoothing(options);
}

}  // namespace torchbus

#include <torchbus/callbacks/gradient_accumulation.hpp>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

class GradientAccumulation final : public Callback {
public:
    explicit GradientAccumulation(GradientAccumulationOptions options) : options_(options) {}
    std::string kind() const override { return "gradient_accumulation"; }
    Declaration declare() const override { return {.listens = {"run_configured"}, .writes = {"plan.window"}}; }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>(
            [this](RunConfigured& event) { event.plan.micro_batches_per_step = options_.micro_batches; });
    }
    void detach() override { connections_.clear(); }
    std::vector<Finding> check(const Outlook& run) const override {
        if (options_.micro_batches == 1) return {};
        for (const auto& [name, buffer] : run.model->named_buffers())
            if (name.ends_with("running_mean"))
                return {{Finding::Weight::Warning, fmt::format("'gradient_accumulation' makes an update of {} batches, and batch norm ({}) takes its statistics from each of them alone, so the gradient is "
                                                               "not that of one large batch; freeze it (callback freeze, batch_norm), or take a norm without batch statistics",
                                                               options_.micro_batches, name.substr(0, name.rfind('.')))}};
        return {};
    }

private:
    GradientAccumulationOptions options_;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_gradient_accumulation(GradientAccumulationOptions options) {
    if (options.micro_batches < 1)
        throw ConfigError(fmt::format("gradient_accumulation: micro_batches: {} is too few; give at least 1", options.micro_batches));
    return std::make_unique<GradientAccumulation>(options);
}

std::unique_ptr<Callback> gradient_accumulation_from_json(OptionReader& reader) {
    GradientAccumulationOptions options;
    reader.integer("micro_batches", options.micro_batches, "batches an update; >= 1", Range::at_least(1));
    return make_gradient_accumulation(options);
}

}  // namespace torchbus

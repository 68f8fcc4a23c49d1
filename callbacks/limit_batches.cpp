#include <torchbus/callbacks/limit_batches.hpp>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

class LimitBatches final : public Callback {
public:
    explicit LimitBatches(LimitBatchesOptions options) : options_(options) {}
    std::string kind() const override { return "limit_batches"; }
    Declaration declare() const override { return {.listens = {"run_configured"}, .writes = {"plan.limits"}}; }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) {
            for (SplitPlan& split : event.plan.splits) {
                const auto& limit = split.mode == Mode::Train ? options_.train : options_.eval;
                narrow(split.max_batches, limit);
                if (split.mode == Mode::Eval) narrow(split.max_batches_within_epoch, options_.eval_within_epoch);
            }
        });
    }
    void detach() override { connections_.clear(); }

private:
    /// The smallest limit holds.
    static void narrow(std::optional<std::int64_t>& place, const std::optional<std::int64_t>& limit) {
        if (limit) place = std::min(*limit, place.value_or(*limit));
    }

    LimitBatchesOptions options_;
    Connections connections_;
};

void require_positive(const std::optional<std::int64_t>& limit, const char* name) {
    if (limit && *limit < 1) throw ConfigError(fmt::format("limit_batches: {}: {} is too few; give at least 1 batch", name, *limit));
}

}  // namespace

std::unique_ptr<Callback> make_limit_batches(LimitBatchesOptions options) {
    require_positive(options.train, "train");
    require_positive(options.eval, "eval");
    require_positive(options.eval_within_epoch, "eval_within_epoch");
    return std::make_unique<LimitBatches>(options);
}

std::unique_ptr<Callback> limit_batches_from_environment() {
    const char* text = std::getenv("TORCHBUS_LIMIT_BATCHES");
    if (!text || !*text) return nullptr;
    const std::string_view digits(text);
    std::int64_t limit = 0;
    const auto [end, status] = std::from_chars(digits.data(), digits.data() + digits.size(), limit);
    if (status != std::errc() || end != digits.data() + digits.size() || limit < 1)
        throw ConfigError(fmt::format("TORCHBUS_LIMIT_BATCHES: '{}' is not a number of batches; give at least 1, or unset it", digits));
    return make_limit_batches({.train = limit, .eval = limit});
}

std::unique_ptr<Callback> limit_batches_from_json(OptionReader& reader) {
    std::int64_t train = 0, eval = 0, eval_within_epoch = 0;  // 0 stands for no limit
    reader.integer("train", train, "batches of a training epoch; 0: all", Range::at_least(0))
        .integer("eval", eval, "batches of an evaluation; 0: all", Range::at_least(0))
        .integer("eval_within_epoch", eval_within_epoch, "batches of an evaluation between two steps; 0: all", Range::at_least(0));
    LimitBatchesOptions options;
    if (train > 0) options.train = train;
    if (eval > 0) options.eval = eval;
    if (eval_within_epoch > 0) options.eval_within_epoch = eval_within_epoch;
    return make_limit_batches(options);
}

}  // namespace torchbus

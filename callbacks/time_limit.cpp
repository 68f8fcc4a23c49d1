#include <torchbus/callbacks/time_limit.hpp>

#include <fmt/format.h>

#include <torchbus/changed_option.hpp>
#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

void require_duration(const Interval& limit) {
    if (limit.unit != Interval::Unit::Second || !(limit.amount > 0))
        throw ConfigError(fmt::format("time_limit: limit: {} is not a duration; give one in s, min or h, e.g. \"2h\"", to_string(limit)));
}

class TimeLimit final : public Callback {
public:
    explicit TimeLimit(TimeLimitOptions options) : options_(options) {}
    std::string kind() const override { return "time_limit"; }
    Declaration declare() const override {
        Declaration declared{.listens = {"train_step_end", "eval_step_end"}, .asks = {Decision::StopRun}};
        if (options_.save) declared.asks.push_back(Decision::SaveNow);
        return declared;
    }
    void attach(Attachment& run) override {
        const auto look = [this, &run](const auto&) {
            if (run.moment.seconds < options_.limit.amount || run.consensus.rank() != 0) return;
            const std::string reason = fmt::format("the run has taken {}, its limit is {}", duration(run.moment.seconds), duration(options_.limit.amount));
            run.asker.ask(Decision::StopRun, reason);
            if (options_.save) run.asker.ask(Decision::SaveNow, reason);
        };
        connections_ += run.bus.observe<TrainStepEnd>(Stage::Report, look);
        connections_ += run.bus.observe<EvalStepEnd>(Stage::Report, look);
    }
    void detach() override { connections_.clear(); }
    nlohmann::json change_option(std::string_view option, const nlohmann::json& value) override {
        Interval limit = options_.limit;
        const auto before = change_interval(limit, "limit", kind(), option, value);
        require_duration(limit);
        options_.limit = limit;
        return before;
    }

private:
    /// 1:30:05 for what takes minutes, 0.25 s for what does not.
    static std::string duration(double seconds) {
        if (seconds < 60) return fmt::format("{:.3g} s", seconds);
        const auto whole = static_cast<std::int64_t>(seconds);
        return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
    }

    TimeLimitOptions options_;
    Connections connections_;
};

}  // namespace

std::unique_ptr<Callback> make_time_limit(TimeLimitOptions options) {
    require_duration(options.limit);
    return std::make_unique<TimeLimit>(options);
}

std::unique_ptr<Callback> time_limit_from_json(OptionReader& reader) {
    TimeLimitOptions options;
    reader.interval("limit", options.limit, "how long the run may take, e.g. 90min or 2h; > 0").changeable()
        .boolean("save", options.save, "whether a save is asked for with the stop");
    return make_time_limit(options);
}

}  // namespace torchbus

#include <torchbus/callbacks/metric_expression.hpp>

#include <algorithm>

#include <fmt/format.h>

#include <torchbus/error.hpp>
#include <torchbus/metrics/expression.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

class MetricExpression final : public Callback {
public:
    MetricExpression(std::string name, Expression expression) : name_(std::move(name)), expression_(std::move(expression)) {
        const auto is_of_evaluation = [](const std::string& read) { return read.starts_with("eval."); };
        after_evaluation_ = std::ranges::any_of(expression_.names(), is_of_evaluation);
    }
    std::string kind() const override { return "metric_expression"; }
    Declaration declare() const override {
        const char* event = after_evaluation_ ? "eval_epoch_end" : "train_epoch_end";
        Declaration declared{.listens = {event}, .reads = {"blackboard"}, .publishes = {{name_, event, Stage::Report}}};
        for (const std::string& read : expression_.names()) declared.needs.emplace_back(read, event, Stage::Report);
        return declared;
    }
    void attach(Attachment& run) override {
        run_ = &run;
        if (after_evaluation_) connections_ += run.bus.observe<EvalEpochEnd>(Stage::Report, [this](const EvalEpochEnd&) { publish(); });
        else connections_ += run.bus.observe<TrainEpochEnd>(Stage::Report, [this](const TrainEpochEnd&) { publish(); });
    }
    void detach() override {
        connections_.clear();
        if (run_) run_->blackboard.withdraw(name_);
        run_ = nullptr;
    }

private:
    void publish() {
        Blackboard& blackboard = run_->blackboard;
        const auto value = expression_.evaluate([&](std::string_view name) { return blackboard.number(name); });
        if (value) blackboard.publish(name_, *value);
        else blackboard.withdraw(name_);
    }

    std::string name_;
    Expression expression_;
    bool after_evaluation_ = false;
    Attachment* run_ = nullptr;
    Connections connections_;
};

void check_name(const std::string& name, const Expression& expression) {
    const std::string where = "metric_expression: name";
    if (!is_number_name(name)) throw ConfigError(fmt::format("{}: '{}' is not a name; give letters, digits, _ and dots, e.g. eval.harmonic", where, name));
    if (std::ranges::count(expression.names(), name) > 0)
        throw ConfigError(fmt::format("{}: '{}' is what the expression reads; give the result another name", where, name));
}

}  // namespace

std::unique_ptr<Callback> make_metric_expression(MetricExpressionOptions options) {
    Expression expression(options.expression, "metric_expression: expression");
    check_name(options.name, expression);
    return std::make_unique<MetricExpression>(std::move(options.name), std::move(expression));
}

std::unique_ptr<Callback> metric_expression_from_json(OptionReader& reader) {
    MetricExpressionOptions options;
    reader.text("name", options.name, "what the number is called, e.g. eval.harmonic")
        .text("expression", options.expression, "arithmetic on numbers of the blackboard: + - * / ^, parentheses, sqrt, exp, log, abs, pow, min, max");
    return make_metric_expression(std::move(options));
}

}  // namespace torchbus

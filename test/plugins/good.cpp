// A plug-in with one entry for every table. Its callback throws where it is told to.
#include <cmath>
#include <stdexcept>

#include <nlohmann/json.hpp>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <torchbus/metrics/measure_callback.hpp>
#include <torchbus/plugin.hpp>

using namespace torchbus;

namespace {

/// Counts updates, and publishes the count.
class PluginProbe final : public Callback {
public:
    explicit PluginProbe(std::string throws_in) : throws_in_(std::move(throws_in)) {}
    std::string kind() const override { return "plugin_probe"; }
    Declaration declare() const override {
        throw_in("declare");
        return {.listens = {"train_step_end", "batch_ready", "forward"}, .writes = {"batch"}, .publishes = {{"probe_steps", "train_step_end"}}};
    }
    void attach(Attachment& run) override {
        connections_ += run.bus.observe<TrainStepEnd>(Stage::Observe, [this, &run](const TrainStepEnd&) {
            throw_in("slot");
            run.blackboard.publish("probe_steps", static_cast<double>(++steps_));
        });
        connections_ += run.bus.intercept<BatchReady>([this](BatchReady&) { throw_in("interceptor"); });
        connections_ += run.bus.around<Forward>([this](const Forward&) { throw_in("enter"); }, [this] { throw_in("leave"); });
        throw_in("attach");
    }
    void detach() override {
        throw_in("detach");  // before the connections are dropped
        connections_.clear();
    }
    std::vector<Finding> check(const Outlook&) const override {
        throw_in("check");
        return {};
    }
    nlohmann::json change_option(std::string_view, const nlohmann::json&) override {
        throw_in("change_option");
        return 0;
    }
    SavedState state() const override {
        throw_in("state");
        return {{{"steps", steps_}}};
    }
    void load_state(const SavedState& state) override {
        throw_in("load_state");
        state.values.at("steps").get_to(steps_);
    }

private:
    void throw_in(const char* hook) const {
        if (throws_in_ == hook) throw std::runtime_error(std::string("plugin_probe throws in ") + hook);
    }
    std::string throws_in_;
    std::int64_t steps_ = 0;
    Connections connections_;
};

std::unique_ptr<Callback> probe_from_json(OptionReader& reader) {
    std::string throws_in = "nowhere";
    reader.choice("throws_in", throws_in, {"nowhere", "make", "declare", "attach", "slot", "interceptor", "enter", "leave", "detach", "check", "change_option", "state", "load_state"},
                  "the hook that throws");
    if (throws_in == "make") throw std::runtime_error("plugin_probe throws in make");
    return std::make_unique<PluginProbe>(throws_in);
}

/// A metric: the share of outputs that are above zero.
class PositiveShare final : public Measure {
public:
    std::vector<std::string> names() const override { return {"positive_share"}; }
    std::int64_t size(std::int64_t) const override { return 2; }
    void gather(const Batch& batch, const at::Tensor& output, Statistics& into) const override {
        const at::Tensor valid = output.narrow(0, 0, batch.valid);
        into.width = 1;
        if (!into.totals.defined()) into.totals = torch::zeros({2}, at::kDouble);
        into.totals += torch::stack({valid.gt(0).sum().to(at::kDouble), torch::full({}, valid.numel(), at::kDouble)});
    }
    double value(std::size_t, const Statistics& statistics) const override {
        const auto sums = sums_of(statistics.totals, 0, 2);
        return sums[0] / sums[1];
    }
};

std::unique_ptr<Callback> positive_share_from_json(OptionReader& reader) {
    MeasureSchedule schedule;
    read_schedule(reader, schedule);
    return make_measure_callback("positive_share", std::make_shared<PositiveShare>(), std::move(schedule));
}

/// y = scale · x · w, without a torch::nn module.
class LineModel final : public ModelInterface {
public:
    LineModel(std::int64_t inputs, std::int64_t outputs) : weight_(torch::zeros({inputs, outputs}).requires_grad_()) {}
    Output forward(const Batch& batch) override { return batch.inputs.mm(weight_); }
    std::vector<NamedTensor> named_parameters() const override { return {{"weight", weight_}}; }
    std::vector<NamedTensor> named_buffers() const override { return {}; }
    void set_training(bool) override {}
    void to(c10::Device) override {}

private:
    at::Tensor weight_;
};

ModelMaker line_from_json(OptionReader& reader) {
    std::int64_t inputs = 2, outputs = 1;
    reader.integer("inputs", inputs, "elements of a sample", Range::at_least(1)).integer("outputs", outputs, "elements of an output", Range::at_least(1));
    return [=] { return Model(std::shared_ptr<ModelInterface>(std::make_shared<LineModel>(inputs, outputs))); };
}

/// Inputs (i, 1), targets 2 i + 1, with i in 0 … 1.
DataMaker ramp_from_json(OptionReader& reader) {
    std::int64_t samples = 8;
    reader.integer("samples", samples, "samples of each split", Range::at_least(1));
    return [samples] {
        const at::Tensor x = torch::linspace(0, 1, samples).unsqueeze(1);
        const auto data = std::make_shared<TensorDataset>(torch::cat({x, torch::ones_like(x)}, 1), 2 * x + 1);
        return DataSplits{data, data};
    };
}

Loss huber_from_json(OptionReader& reader) {
    double delta = 1.0;
    reader.number("delta", delta, "where the square ends; > 0, in units of the output", Range::positive());
    return [delta](const at::Tensor& output, const at::Tensor& targets) { return at::huber_loss(output, targets, 1, delta); };
}

OptimizerMaker plain_from_json(OptionReader& reader) {
    double learning_rate = 0.5;
    reader.number("learning_rate", learning_rate, "step size; >= 0", Range::at_least(0));
    return [learning_rate](std::vector<at::Tensor> parameters) {
        return std::make_shared<torch::optim::SGD>(std::move(parameters), torch::optim::SGDOptions(learning_rate));
    };
}

Schedule halving_from_json(OptionReader& reader) {
    std::int64_t every = 10;
    reader.integer("every", every, "updates between two halvings", Range::at_least(1));
    return [every](const Moment& moment) { return std::pow(0.5, static_cast<double>(moment.position.step / every)); };
}

void register_all(PluginRegistry& registry) {
    // The texts are gone when this returns: the tables keep copies.
    registry.callback(std::string("plugin_probe"), std::string("Counts updates."), probe_from_json)
        .callback("positive_share", "The share of outputs above zero.", positive_share_from_json)
        .model("line", "A linear map.", line_from_json)
        .data("ramp", "A straight line.", ramp_from_json)
        .loss("huber", "Huber's loss.", huber_from_json)
        .optimizer("plain", "Gradient descent.", plain_from_json)
        .schedule("halving", "Halves after every so many updates.", halving_from_json);
}

}  // namespace

TORCHBUS_PLUGIN("good", register_all)

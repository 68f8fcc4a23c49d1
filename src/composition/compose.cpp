#include <cerrno>
#include <cstring>
#include <fstream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>
#include <torch/utils.h>

#include <torchbus/callbacks/learning_rate_schedule.hpp>
#include <torchbus/callbacks/registry.hpp>
#include <torchbus/composition.hpp>
#include <torchbus/data/fetch.hpp>
#include <torchbus/data/mnist.hpp>
#include <torchbus/error.hpp>
#include <torchbus/models/registry.hpp>
#include <torchbus/optim/optimizers.hpp>
#include <torchbus/optim/schedule.hpp>

namespace torchbus {
namespace {

using nlohmann::json;

struct Data {
    std::shared_ptr<TensorDataset> train, eval;
    std::string about;
};

Data mnist_from(OptionReader& reader) {
    std::string folder = default_mnist_folder().string();
    bool flatten = false;
    reader.text("folder", folder, "where the four files lie").boolean("flatten", flatten, "samples of 784 elements instead of images");
    const MnistOptions options{.flatten = flatten};
    return {load_mnist(folder, MnistPart::Train, options), load_mnist(folder, MnistPart::Test, options), "mnist"};
}

/// Classes of a random linear rule: learnable by any model, and nothing need be fetched.
Data synthetic_from(OptionReader& reader) {
    std::int64_t samples = 1024, features = 16, classes = 4, seed = 0;
    reader.integer("samples", samples, "training samples; a quarter as many are for evaluation", Range::at_least(4))
        .integer("features", features, "elements of a sample", Range::at_least(1))
        .integer("classes", classes, "number of classes", Range::at_least(2))
        .integer("seed", seed, "seed of the samples and the rule", Range::at_least(0));
    auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(seed));
    const at::Tensor rule = torch::randn({features, classes}, generator);
    const auto make = [&](std::int64_t count) {
        const at::Tensor inputs = torch::randn({count, features}, generator);
        return std::make_shared<TensorDataset>(inputs, inputs.mm(rule).argmax(1));
    };
    auto train = make(samples);
    return {train, make(samples / 4), "synthetic"};
}

Data data_from_json(const json& part, const std::string& where) {
    OptionReader reader(part, where);
    std::string kind = "mnist";
    reader.choice("kind", kind, {"mnist", "synthetic"}, "which data");
    Data data;
    try {
        data = kind == "mnist" ? mnist_from(reader) : synthetic_from(reader);
    } catch (const DataError& error) {
        throw DataError(fmt::format("{}: {}", where, error.what()));
    }
    reader.finish();
    data.about = fmt::format("{}: {} training and {} evaluation samples", data.about, data.train->size(), data.eval->size());
    return data;
}

TrainOptions train_from_json(const json& part, const std::string& where) {
    TrainOptions options;
    OptionReader reader(part, where);
    std::int64_t max_steps = 0, eval_batch_size = 0;
    reader.integer("epochs", options.epochs, "passes over the training data", Range::at_least(1))
        .integer("max_steps", max_steps, "updates after which the run ends; 0: all epochs", Range::at_least(0))
        .integer("batch_size", options.batch_size, "samples of a training batch", Range::at_least(1))
        .integer("eval_batch_size", eval_batch_size, "samples of an evaluation batch; 0: as batch_size", Range::at_least(0))
        .boolean("shuffle", options.shuffle, "a new order every epoch, of seed and epoch")
        .boolean("drop_last", options.drop_last, "leave out a last batch that is not full");
    reader.finish();
    if (max_steps > 0) options.max_steps = max_steps;
    if (eval_batch_size > 0) options.eval_batch_size = eval_batch_size;
    return options;
}

std::vector<ComposedCallback> callbacks_from_json(const json& part, const std::string& where) {
    if (!part.is_array()) throw ConfigError(fmt::format("{}: expected an array of callbacks, found a {}", where, part.type_name()));
    std::vector<ComposedCallback> callbacks;
    for (std::size_t i = 0; i < part.size(); ++i) {
        const std::string at = fmt::format("{}[{}]", where, i);
        OptionReader reader(part[i], at);
        std::string kind, id;
        std::vector<std::string> before, after;
        reader.text("kind", kind, "which callback").text("id", id, "a name of its own; default: the kind")
            .texts("before", before, "ids or kinds of callbacks that must run later at the same event; overrides the library's order")
            .texts("after", after, "ids or kinds of callbacks that must run earlier");
        if (kind.empty()) throw ConfigError(fmt::format("{}: a callback needs its kind, e.g. {{\"kind\": \"progress_bar\"}}", at));
        std::shared_ptr<Callback> callback = find_callback(kind, at).from_json(reader);
        reader.finish();
        callbacks.emplace_back(id.empty() ? kind : id, std::move(callback), std::move(before), std::move(after));
    }
    return callbacks;
}

json part_of(const json& run, const char* name, json fallback) {
    const auto found = run.find(name);
    return found == run.end() ? std::move(fallback) : *found;
}

}  // namespace

Loss loss_from_json(const json& part, const std::string& where) {
    OptionReader reader(json{{"loss", part}}, where);
    std::string kind;
    reader.choice("loss", kind, {"cross_entropy", "mse", "l1", "binary_cross_entropy"}, "loss of output and targets, a mean over the batch");
    if (kind == "mse") return [](const at::Tensor& output, const at::Tensor& targets) { return at::mse_loss(output, targets); };
    if (kind == "l1") return [](const at::Tensor& output, const at::Tensor& targets) { return at::l1_loss(output, targets); };
    if (kind == "binary_cross_entropy")
        return [](const at::Tensor& output, const at::Tensor& targets) { return at::binary_cross_entropy_with_logits(output, targets); };
    return [](const at::Tensor& output, const at::Tensor& targets) { return at::cross_entropy_loss(output, targets); };
}

Composition compose(const json& run, const std::string& name) {
    const std::string prefix = name + ": ";
    Composition made;
    made.name = name;
    std::int64_t seed = 0;
    std::string output;
    OptionReader reader(run, prefix, {"model", "data", "loss", "optimizer", "schedule", "train", "callbacks"});
    reader.integer("seed", seed, "of the weights, the order of the data and dropout", Range::at_least(0))
        .text("output", output, "folder for weights and history; empty: nothing is written");
    reader.finish();
    for (const char* needed : {"model", "data", "optimizer"})
        if (!run.contains(needed)) throw ConfigError(fmt::format("{}'{}' is missing; a run file names model, data and optimizer", prefix, needed));
    torch::manual_seed(static_cast<std::uint64_t>(seed));  // the weights are drawn here
    made.trainer.seed = static_cast<std::uint64_t>(seed);
    made.trainer.callbacks = callbacks_from_json(part_of(run, "callbacks", json::array()), prefix + "callbacks");
    made.train = train_from_json(part_of(run, "train", json::object()), prefix + "train");
    made.trainer.model = model_from_json(run["model"], prefix + "model");
    made.trainer.loss = loss_from_json(part_of(run, "loss", "cross_entropy"), prefix);
    std::vector<at::Tensor> parameters;
    for (const auto& [parameter, tensor] : made.trainer.model->named_parameters()) parameters.push_back(tensor);
    made.trainer.optimizer = optimizer_from_json(run["optimizer"], prefix + "optimizer", std::move(parameters));
    if (run.contains("schedule"))
        made.trainer.callbacks.emplace_back("schedule", make_learning_rate_schedule({schedule_from_json(run["schedule"], prefix + "schedule")}));
    if (!output.empty()) made.output = output;
    const Data data = data_from_json(run["data"], prefix + "data");
    made.train_dataset = data.train;
    made.eval_dataset = data.eval;
    made.data = data.about;
    return made;
}

void require_writable_folder(const std::filesystem::path& folder, const std::string& where, Probe probe_how) {
    std::error_code error;
    std::vector<std::filesystem::path> made;  // folders that are not there yet, innermost first
    for (auto path = folder; probe_how == Probe::LeaveNoTrace && !path.empty() && !std::filesystem::exists(path, error); path = path.parent_path()) made.push_back(path);
    error.clear();
    std::filesystem::create_directories(folder, error);
    const auto probe = folder / ".torchbus-probe";
    errno = 0;
    const bool writable = !error && std::ofstream(probe).put('x').flush().good();
    const std::string why = error ? error.message() : std::strerror(errno);
    std::error_code ignored;
    std::filesystem::remove(probe, ignored);
    for (const auto& path : made) std::filesystem::remove(path, ignored);
    if (!writable) throw ConfigError(fmt::format("{}: cannot write to the folder '{}': {}; give another folder, or leave the key out to write nothing",
                                                 where, folder.string(), why));
}

}  // namespace torchbus

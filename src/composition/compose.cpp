#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>
#include <torch/utils.h>

#include <torchbus/callbacks/learning_rate_schedule.hpp>
#include <torchbus/callbacks/registry.hpp>
#include <torchbus/composition.hpp>
#include <torchbus/data/registry.hpp>
#include <torchbus/error.hpp>
#include <torchbus/models/registry.hpp>
#include <torchbus/optim/optimizers.hpp>
#include <torchbus/optim/registry.hpp>
#include <torchbus/plugin.hpp>

#include "parts.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

/// What a plug-in throws knows nothing of the place.
std::shared_ptr<Callback> made_callback(const std::string& kind, const std::string& where, OptionReader& reader) {
    const CallbackEntry& entry = find_callback(kind, where);
    try {
        return entry.from_json(reader);
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {
        throw ConfigError(fmt::format("{}: '{}' cannot be made: {}", where, kind, error.what()));
    }
}

/// `part` is a file's name, or an object.
void load_initial_weights(const json& part, const std::string& where, Model& model) {
    OptionReader reader(part.is_string() ? json{{"file", part}} : part, where);
    const InitialWeights initial = read_initial_weights(reader);
    reader.finish();
    if (initial.file.empty()) throw ConfigError(where + ": a file is missing; give its name, or an object with file, key, include, skip, rename and strict");
    const LoadedWeights loaded = load_weights(initial.file, model, initial.options);
    if (!loaded.missing.empty()) warn(fmt::format("{}: random weights stay in {}", where, fmt::join(loaded.missing, ", ")));
    if (!loaded.left_over.empty()) warn(fmt::format("{}: not in the model: {}", where, fmt::join(loaded.left_over, ", ")));
}

json part_of(const json& run, const char* name, json fallback) {
    const auto found = run.find(name);
    return found == run.end() ? std::move(fallback) : *found;
}

}  // namespace

std::vector<ComposedCallback> callbacks_from_json(const json& part, const std::string& where) {
    if (!part.is_array()) throw ConfigError(fmt::format("{}: expected an array of callbacks, found a {}", where, part.type_name()));
    std::vector<ComposedCallback> callbacks;
    for (std::size_t i = 0; i < part.size(); ++i) {
        const std::string at = fmt::format("{}[{}]", where, i);
        OptionReader reader(part[i], at);
        CallbackPlace place = read_callback_place(reader);
        if (place.kind.empty()) throw ConfigError(fmt::format("{}: a callback needs its kind, e.g. {{\"kind\": \"progress_bar\"}}", at));
        std::shared_ptr<Callback> callback = made_callback(place.kind, at, reader);
        reader.finish();
        callbacks.emplace_back(place.id.empty() ? place.kind : place.id, std::move(callback), std::move(place.before), std::move(place.after)).options = part[i];
    }
    return callbacks;
}

RunOptions read_run(OptionReader& reader) {
    RunOptions options;
    reader.integer("seed", options.seed, "of the weights, the order of the data and dropout", Range::at_least(0))
        .text("output", options.output, "folder for weights and history; empty: nothing is written")
        .texts("plugins", options.plugins, "shared objects that bring callbacks, models and the like, relative to the file that names them");
    return options;
}

TrainOptions read_train(OptionReader& reader) {
    TrainOptions options;
    std::int64_t max_steps = 0, eval_batch_size = 0;
    std::string sharding = "uneven";
    reader.integer("epochs", options.epochs, "passes over the training data", Range::at_least(1))
        .integer("max_steps", max_steps, "updates after which the run ends; 0: all epochs", Range::at_least(0))
        .integer("batch_size", options.batch_size, "samples of a training batch", Range::at_least(1))
        .integer("eval_batch_size", eval_batch_size, "samples of an evaluation batch; 0: as batch_size", Range::at_least(0))
        .boolean("shuffle", options.shuffle, "a new order every epoch, of seed and epoch")
        .boolean("drop_last", options.drop_last, "leave out a last batch that is not full")
        .choice("sharding", sharding, {"uneven", "even", "dispatch"},
                "how several ranks share a batch: each sample once; filled up, so that all have as many; or read by rank 0 alone, and sent");
    options.sharding = sharding == "even" ? Sharding::Even : sharding == "dispatch" ? Sharding::Dispatch : Sharding::Uneven;
    if (max_steps > 0) options.max_steps = max_steps;
    if (eval_batch_size > 0) options.eval_batch_size = eval_batch_size;
    return options;
}

InitialWeights read_initial_weights(OptionReader& reader) {
    InitialWeights initial;
    WeightsSelection& selection = initial.options.selection;
    const auto rename = [](OptionReader& rule) {
        std::pair<std::string, std::string> names;
        rule.text("from", names.first, "a name in the file, e.g. module.*").text("to", names.second, "what it is called in the model, e.g. *");
        return names;
    };
    reader.text("file", initial.file, "safetensors, a file of Python's torch.save, or the folder of a training state")
        .text("key", selection.key, "of a Python file: the dictionary that holds them, e.g. state_dict; empty: the only one")
        .texts("include", selection.include, "patterns of the model's names; empty: all")
        .texts("skip", selection.skip, "patterns of the model's names that keep their random weights, e.g. head.*")
        .objects("rename", selection.rename, rename, "rules with from and to; the first that fits counts, and * stands for the same characters in both")
        .boolean("strict", initial.options.strict, "whether a name that only the file or only the model has is an error");
    return initial;
}

CallbackPlace read_callback_place(OptionReader& reader) {
    CallbackPlace place;
    reader.text("kind", place.kind, "which callback").text("id", place.id, "a name of its own; default: the kind")
        .texts("before", place.before, "ids or kinds of callbacks that must run later at the same event; overrides the library's order")
        .texts("after", place.after, "ids or kinds of callbacks that must run earlier");
    return place;
}

Loss loss_from_json(const json& part, const std::string& where) {
    const bool has_options = part.is_object();
    OptionReader outer(json{{"loss", part}}, where);
    OptionReader reader(has_options ? part : json::object(), outer.path_of("loss"));
    const LossEntry* entry = nullptr;
    if (has_options) {
        entry = &loss_table().chosen(reader, "loss of output and targets, a mean over the batch");
    } else {
        std::string kind;
        outer.choice("loss", kind, loss_table().kinds(), "loss of output and targets, a mean over the batch");
        entry = loss_table().find(kind);
    }
    Loss loss = entry->from_json(reader);
    reader.finish();
    return loss;
}

Composition compose(const json& run, const std::string& name) {
    const std::string prefix = name + ": ";
    Composition made;
    made.name = name;
    OptionReader reader(run, prefix, {"$schema", "model", "data", "loss", "optimizer", "schedule", "train", "callbacks", "weights"});
    const RunOptions options = read_run(reader);
    reader.finish();
    for (const char* needed : {"model", "data", "optimizer"})
        if (!run.contains(needed)) throw ConfigError(fmt::format("{}'{}' is missing; a run file names model, data and optimizer", prefix, needed));
    load_plugins(options.plugins, prefix + "plugins");
    made.trainer.callbacks = callbacks_from_json(part_of(run, "callbacks", json::array()), prefix + "callbacks");  // a device is known before LibTorch is asked for any
    torch::manual_seed(static_cast<std::uint64_t>(options.seed));  // the weights are drawn here
    made.trainer.seed = static_cast<std::uint64_t>(options.seed);
    OptionReader train(part_of(run, "train", json::object()), prefix + "train");
    made.train = read_train(train);
    train.finish();
    made.trainer.model = model_from_json(run["model"], prefix + "model");
    if (run.contains("weights")) load_initial_weights(run["weights"], prefix + "weights", made.trainer.model);
    made.trainer.loss = loss_from_json(part_of(run, "loss", "cross_entropy"), prefix);
    made.trainer.optimizer = grouped_optimizer_from_json(run["optimizer"], prefix + "optimizer", made.trainer.model->named_parameters());
    if (run.contains("schedule"))
        made.trainer.callbacks.emplace_back("schedule", make_learning_rate_schedule({schedule_from_json(run["schedule"], prefix + "schedule")})).options = run["schedule"];
    for (const char* part : {"model", "data", "loss"})
        if (run.contains(part)) made.trainer.configuration[part] = run[part];
    if (!options.output.empty()) made.output = options.output;
    const DataSplits data = data_from_json(run["data"], prefix + "data", &made.data);
    made.train_dataset = data.train;
    made.eval_dataset = data.eval;
    return made;
}

void require_writable_folder(const std::filesystem::path& folder, const std::string& where, Probe probe) {
    if (const std::string why = against_writing_in(folder, probe); !why.empty())
        throw ConfigError(fmt::format("{}: cannot write to the folder '{}': {}; give another folder, or leave the key out to write nothing", where, folder.string(), why));
}

}  // namespace torchbus

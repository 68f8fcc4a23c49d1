#include <torchbus/composition/deepspeed_config.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <utility>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "deepspeed_file.hpp"
#include "deepspeed_keys.hpp"
#include "../json_text.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

/// Names a key that is there, as one without effect.
void note(const DeepSpeedFile& file, const std::string& section, const char* key, RunChanges& changes) {
    if (file.find(section, key)) changes.not_supported.push_back(section + "." + key);
}

void take_batches(const DeepSpeedFile& file, RunChanges& changes) {
    const char *train = "train_batch_size", *micro = "train_micro_batch_size_per_gpu", *accumulation = "gradient_accumulation_steps";
    BatchTriple given{file.size("", train), file.size("", micro), file.size("", accumulation)};
    const auto of_run = [&](const json& value, const char* name) { return value.is_number_integer() ? file.size_of(&value, fmt::format("{} of the run file", name)) : std::nullopt; };
    if (!given.micro && (file.says_auto("", micro) || !given.train)) given.micro = of_run(file.of_run("train", "batch_size"), "train.batch_size");
    if (!given.accumulation && file.says_auto("", accumulation)) given.accumulation = of_run(file.of_callback("gradient_accumulation", "micro_batches"), "gradient_accumulation's micro_batches");
    const BatchTriple all = completed(given, file.world_size(), file.name());
    changes.values.push_back({"train.batch_size", *all.micro, file.find("", micro) ? micro : train});
    // What the run file accumulates besides is compared.
    if (*all.accumulation > 1 || !file.of_callback("gradient_accumulation", "micro_batches").is_null())
        changes.callbacks.push_back({"gradient_accumulation", {{"micro_batches", *all.accumulation}}, file.find("", accumulation) ? accumulation : train});
}

void take_precision(const DeepSpeedFile& file, RunChanges& changes) {
    const std::string bf16 = file.find("", "bf16") ? "bf16" : "bfloat16";
    const bool half = file.flag("fp16", "enabled").value_or(false), brain = file.flag(bf16, "enabled").value_or(false);
    if (half && brain) throw ConfigError(fmt::format("{}: fp16.enabled and {}.enabled are both true; leave one of them", file.name(), bf16));
    if (brain) changes.callbacks.push_back({"mixed_precision", {{"precision", "bf16"}}, bf16 + ".enabled"});
    for (const char* key : {"immediate_grad_update", "check_grad_overflow", "bf16_master_weights_and_grads", "bf16_optimizer_states"})
        if (brain) note(file, bf16, key, changes);
    if (!half) return;
    json options = {{"precision", "fp16"}};
    const double fixed = file.number("fp16", "loss_scale").value_or(0);
    if (fixed < 0) file.refuse("fp16.loss_scale", fmt::format("{} is negative; give a scale, or 0 for one that adapts", fixed));
    if (fixed > 0) {
        options["initial_scale"] = fixed;
        options["growth_factor"] = 1.0;
        options["backoff_factor"] = 1.0;
    } else {
        options["initial_scale"] = std::ldexp(1.0, static_cast<int>(std::clamp<std::int64_t>(file.integer("fp16", "initial_scale_power").value_or(16), 0, 64)));
        options["growth_interval"] = file.size("fp16", "loss_scale_window").value_or(1000);
    }
    for (const char* key : {"auto_cast", "hysteresis", "consecutive_hysteresis", "min_loss_scale", "fp16_master_weights_and_grads", "opt_level"}) note(file, "fp16", key, changes);
    changes.callbacks.push_back({"mixed_precision", std::move(options), "fp16"});
}

void take_clipping(const DeepSpeedFile& file, RunChanges& changes) {
    const auto norm = file.number("", "gradient_clipping");
    if (norm && *norm < 0) file.refuse("gradient_clipping", fmt::format("{} is negative; give the largest allowed gradient norm, or 0 for none", *norm));
    if (norm && *norm > 0) changes.callbacks.push_back({"gradient_clipping", {{"max_norm", *norm}}, "gradient_clipping"});
}

void take_communication(const DeepSpeedFile& file, RunChanges& changes) {
    if (const auto type = file.text("", "communication_data_type")) {
        if (*type == "bf16") changes.callbacks.push_back({"data_parallel", {{"bf16", true}}, "communication_data_type"});
        else if (*type != "fp32") file.refuse("communication_data_type", fmt::format("'{}' is not supported; give fp32 or bf16", *type));
    }
    if (const auto operation = file.text("", "gradient_allreduce_op"); operation && *operation != "mean")
        file.refuse("gradient_allreduce_op", fmt::format("'{}' is not supported: an update is that of one process on the whole batch; give mean", *operation));
}

void take_zero(const DeepSpeedFile& file, RunChanges& changes) {
    const json* found = file.find("", "zero_optimization");
    if (!found) return;
    std::int64_t stage = 0;
    if (found->is_boolean()) stage = *found == true ? 1 : 0;
    else stage = file.integer("zero_optimization", "stage").value_or(0);
    if (stage < 0 || stage > 3) file.refuse("zero_optimization.stage", fmt::format("{} is no stage of ZeRO; give 0 or 1", stage));
    if (stage > 1)
        file.refuse("zero_optimization.stage", fmt::format("stage {} is not supported, as it divides {} among ranks; supported are 0, and 1, which divides the optimizer's state", stage, stage == 2 ? "gradients, too," : "gradients and parameters, too,"));
    for (const char* key : {"offload_optimizer", "offload_param"})
        if (const json* offload = file.find("zero_optimization", key)) {
            const json device = offload->is_object() ? offload->value("device", json("none")) : *offload;
            if (device != "none" && !is_auto(device)) file.refuse(fmt::format("zero_optimization.{}", key), fmt::format("offloading to {} is not supported; leave it out: {}", device.dump(), kSupportedOfZero));
        }
    for (const char* key : {"cpu_offload", "cpu_offload_param"})
        if (file.flag("zero_optimization", key).value_or(false)) file.refuse(fmt::format("zero_optimization.{}", key), fmt::format("offloading is not supported; leave it out: {}", kSupportedOfZero));
    if (stage == 1) changes.callbacks.push_back({"zero_redundancy", json::object(), "zero_optimization.stage"});
    if (!found->is_object()) return;
    for (const auto& [key, value] : found->items())
        if (key != "stage" && key != "offload_optimizer" && key != "offload_param" && key != "cpu_offload" && key != "cpu_offload_param") changes.not_supported.push_back("zero_optimization." + key);
}

}  // namespace

BatchTriple completed(BatchTriple given, int world_size, const std::string& name) {
    auto& [train, micro, accumulation] = given;
    if (!train && !micro)
        throw ConfigError(fmt::format("{}: neither train_batch_size nor train_micro_batch_size_per_gpu is given, and the run file has no train.batch_size; give one of them", name));
    for (const auto& [key, size] : {std::pair{"train_batch_size", train}, {"train_micro_batch_size_per_gpu", micro}, {"gradient_accumulation_steps", accumulation}})
        if (size && (*size < 1 || *size > kLargestSize)) throw ConfigError(fmt::format("{}: {}: {} is out of range; give 1 to {}", name, key, *size, kLargestSize));
    if (train && micro && !accumulation) accumulation = *train / *micro / world_size;
    else if (train && !micro && accumulation) micro = *train / world_size / *accumulation;
    else if (train && !micro) accumulation = 1, micro = *train / world_size;
    else if (!accumulation) accumulation = 1;
    std::int64_t product = 0;
    const bool is_size = !__builtin_mul_overflow(*micro * *accumulation, static_cast<std::int64_t>(world_size), &product) && product <= kLargestSize;
    const std::string factors = fmt::format("train_micro_batch_size_per_gpu {} x gradient_accumulation_steps {} x {} rank{}", *micro, *accumulation, world_size, world_size == 1 ? "" : "s");
    if (!train && !is_size) throw ConfigError(fmt::format("{}: {} is more than {}; give smaller sizes", name, factors, kLargestSize));
    if (!train) train = product;
    const std::string equation = fmt::format("train_batch_size {} = {}", *train, factors);
    if (*micro == 0 || *accumulation == 0) throw ConfigError(fmt::format("{}: {}: each must be above 0; give sizes that multiply", name, equation));
    if (!is_size || *train != product)
        throw ConfigError(fmt::format("{}: {} does not hold: that is {}{}; change one of them, or leave it out", name, equation, is_size ? "" : "more than ", is_size ? product : kLargestSize));
    return given;
}

namespace {

DeepSpeedFile opened(const std::filesystem::path& file, const json& run, int world_size) {
    std::ifstream stream(file);
    if (!stream || std::filesystem::is_directory(file)) throw ConfigError(fmt::format("{}: cannot open the configuration of DeepSpeed; is the name right?", file.string()));
    const std::string content{std::istreambuf_iterator<char>(stream), {}};
    return {file.string(), json_of_text(without_comments(content), file.string()), run, world_size};
}

}  // namespace

RunChanges changes_of_deepspeed(const std::filesystem::path& file, const json& run, int world_size) {
    const DeepSpeedFile configuration = opened(file, run, world_size);
    RunChanges changes{.name = configuration.name(), .not_supported = configuration.without_effect()};
    for (const auto take : {take_batches, take_optimizer, take_scheduler, take_precision, take_clipping, take_communication, take_zero}) take(configuration, changes);
    if (world_size > 1) changes.callbacks.push_back({"data_parallel", json::object(), "it"});
    return changes;
}

std::optional<int> world_size_of_deepspeed(const std::filesystem::path& file) {
    const json none;
    const DeepSpeedFile configuration = opened(file, none, 1);
    const auto train = configuration.size("", "train_batch_size"), micro = configuration.size("", "train_micro_batch_size_per_gpu"), accumulation = configuration.size("", "gradient_accumulation_steps");
    if (!train || !micro) return std::nullopt;
    const std::int64_t of_rank = *micro * accumulation.value_or(1);
    return *train >= of_rank && *train % of_rank == 0 ? std::optional(static_cast<int>(*train / of_rank)) : std::nullopt;
}

}  // namespace torchbus

// The sections optimizer and scheduler of a DeepSpeed file.
#include <algorithm>
#include <cctype>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/error.hpp>

#include "deepspeed_file.hpp"
#include "known_keys.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

double not_negative(const DeepSpeedFile& file, double found, const std::string& path) {
    if (found < 0) file.refuse(path, fmt::format("{} is negative; give at least 0", found));
    return found;
}

/// Reads the parameters of one optimizer into the options of ours, and knows which there are.
class OptimizerParams {
public:
    OptimizerParams(const DeepSpeedFile& file, RunChanges& changes, std::string type) : file_(file), changes_(changes), type_(std::move(type)) {
        if (const json* given = file.find("optimizer", "params")) given_ = *given;
        if (!given_.is_object()) file.refuse_value("optimizer.params", given_, "an object");
    }
    json made = json::object();

    const json* find(const char* param) {
        known_.emplace_back(param);
        const auto found = given_.find(param);
        return found == given_.end() || found->is_null() ? nullptr : &*found;
    }
    void number(const char* param, const char* option, double otherwise) {
        const json* found = find(param);
        if (found && is_auto(*found))
            if (const json own = file_.of_run("optimizer", option); !own.is_null()) return void(made[option] = own);
        made[option] = not_negative(file_, file_.number_of(found, path_of(param)).value_or(otherwise), path_of(param));
    }
    const json* flag(const char* param) {
        const json* found = find(param);
        if (found && !found->is_boolean()) file_.refuse_value(path_of(param), *found, "true or false");
        return found;
    }
    void flag(const char* param, const char* option) {
        if (const json* found = flag(param)) made[option] = *found;
    }
    void betas() {
        const json* found = find("betas");
        json betas = found ? *found : json::array({0.9, 0.999});
        if (is_auto(betas)) {
            const json first = file_.of_run("optimizer", "beta1"), second = file_.of_run("optimizer", "beta2");
            betas = json::array({first.is_null() ? json(0.9) : first, second.is_null() ? json(0.999) : second});
        }
        const auto is_decay = [](const json& beta) { return beta.is_number() && beta >= 0.0 && beta < 1.0; };
        if (!betas.is_array() || betas.size() != 2 || !is_decay(betas[0]) || !is_decay(betas[1])) file_.refuse_value(path_of("betas"), betas, "two numbers in [0, 1), e.g. [0.9, 0.999]");
        made["beta1"] = betas[0];
        made["beta2"] = betas[1];
    }
    void must_be(const char* param, const json& value, const char* why) {
        const json* found = find(param);
        if (found && !is_auto(*found) && *found != value) file_.refuse(path_of(param), fmt::format("{} is not supported: {}; give {}", found->dump(), why, value.dump()));
    }
    void flag_without_effect(const char* param) {
        if (flag(param)) changes_.not_supported.push_back(path_of(param));
    }
    void refuse_others() {
        if (find("max_grad_norm")) file_.refuse(path_of("max_grad_norm"), "gradients are clipped by gradient_clipping; give it there");
        for (const auto& [param, value] : given_.items())
            if (std::ranges::find(known_, param) == known_.end())
                throw ConfigError(fmt::format("{}: optimizer.params: unknown key '{}'{}; {} takes {}", file_.name(), param, did_you_mean(param, known_), type_, fmt::join(known_, ", ")));
    }

private:
    static std::string path_of(const char* param) { return std::string("optimizer.params.") + param; }
    const DeepSpeedFile& file_;
    RunChanges& changes_;
    std::string type_;
    json given_ = json::object();
    std::vector<std::string> known_;
};

void read_adam(OptimizerParams& params, bool decoupled) {
    const json* mode = params.flag("adam_w_mode");
    // DeepSpeed's Adam is AdamW unless it is told otherwise.
    params.made["kind"] = decoupled || !mode || *mode == true ? "adamw" : "adam";
    params.number("lr", "learning_rate", 1e-3);
    params.number("eps", "epsilon", 1e-8);
    const json* of_torch = params.flag("torch_adam");
    params.number("weight_decay", "weight_decay", of_torch && *of_torch == true && params.made["kind"] == "adamw" ? 0.01 : 0);  // PyTorch's default
    params.betas();
    params.must_be("bias_correction", true, "moments are always corrected");
    params.flag("amsgrad", "amsgrad");
    for (const char* one : {"torch_adam", "fused", "foreach", "set_grad_none", "fp32_optimizer_states"}) params.flag_without_effect(one);
}

void read_sgd(OptimizerParams& params) {
    params.made["kind"] = "sgd";
    params.number("lr", "learning_rate", 1e-3);
    params.number("momentum", "momentum", 0);
    params.number("weight_decay", "weight_decay", 0);
    params.must_be("dampening", 0, "the gradient enters the momentum whole");
    params.flag("nesterov", "nesterov");
}

void read_adagrad(OptimizerParams& params) {
    params.made["kind"] = "adagrad";
    params.number("lr", "learning_rate", 1e-2);
    params.number("weight_decay", "weight_decay", 0);
    params.must_be("eps", 1e-10, "it is fixed");
}

[[noreturn]] void refuse_optimizer(const DeepSpeedFile& file, const std::string& name) {
    static const std::vector<std::string> kOurs = {"Adam", "AdamW", "SGD", "Adagrad"};
    static const std::vector<std::string> kOthers = words_of("Lamb Lion Muon MuAdam MuAdamW MuSGD OneBitAdam OneBitLamb ZeroOneAdam RMSprop NAdam RAdam Adadelta Adamax ASGD Rprop LBFGS");
    const bool is_known = std::ranges::find(kOthers, name) != kOthers.end();
    file.refuse("optimizer.type", fmt::format("'{}' is {}{}; give one of {}", name, is_known ? "not supported" : "no optimizer of DeepSpeed's", is_known ? "" : did_you_mean(name, kOurs), fmt::join(kOurs, ", ")));
}

/// The optimizer's; null where neither file gives one.
json learning_rate_of(const DeepSpeedFile& file, const RunChanges& changes) {
    const auto found = std::ranges::find(changes.values, "optimizer.learning_rate", &RunChanges::Value::path);
    return found != changes.values.end() ? found->value : file.of_run("optimizer", "learning_rate");
}

/// The parameters of a scheduler, and those of them that it needs.
std::pair<const char*, const char*> params_of(const std::string& type) {
    if (type == "WarmupLR") return {"warmup_min_lr warmup_max_lr warmup_num_steps warmup_type last_batch_iteration", ""};
    if (type == "WarmupDecayLR") return {"total_num_steps warmup_min_lr warmup_max_lr warmup_num_steps warmup_type last_batch_iteration", "total_num_steps"};
    if (type == "WarmupCosineLR") return {"total_num_steps warmup_min_ratio warmup_num_steps cos_min_ratio warmup_type last_batch_iteration", "total_num_steps"};
    if (type == "LRRangeTest") return {"lr_range_test_min_lr lr_range_test_step_size lr_range_test_step_rate lr_range_test_staircase last_batch_iteration", ""};
    return {"cycle_min_lr cycle_max_lr decay_lr_rate cycle_first_step_size cycle_second_step_size cycle_first_stair_count cycle_second_stair_count decay_step_size cycle_momentum cycle_min_mom "
            "cycle_max_mom decay_mom_rate last_batch_iteration",
            "cycle_min_lr cycle_max_lr"};
}

/// A scheduler's parameter, of the type that its name tells.
json checked(const DeepSpeedFile& file, const std::string& param, const json& value, const std::string& path) {
    if (param == "warmup_type") {
        if (value != "log" && value != "linear") file.refuse_value(path, value, "\"log\" or \"linear\"");
    } else if (param == "lr_range_test_staircase" || param == "cycle_momentum") {
        if (!value.is_boolean()) file.refuse_value(path, value, "true or false");
    } else if (param.ends_with("_steps") || param.ends_with("_step_size") || param.ends_with("_stair_count")) {
        const bool divides = param == "lr_range_test_step_size" || param == "cycle_first_step_size";
        return *file.size_of(&value, path, divides ? 1 : 0);
    } else {
        if (value.is_array()) file.refuse_value(path, value, "one number for all parameter groups");
        not_negative(file, *file.number_of(&value, path), path);
    }
    return value;
}

}  // namespace

void take_optimizer(const DeepSpeedFile& file, RunChanges& changes) {
    if (file.find("optimizer", "legacy_fusion")) changes.not_supported.emplace_back("optimizer.legacy_fusion");
    const json* type = file.find("optimizer", "type");
    if (!type) return;
    if (!type->is_string()) file.refuse_value("optimizer.type", *type, "a text, e.g. \"AdamW\"");
    const std::string name = type->get<std::string>();
    std::string lower = name;
    std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    OptimizerParams params(file, changes, name);
    if (lower == "adam" || lower == "adamw") read_adam(params, lower == "adamw");
    else if (lower == "sgd") read_sgd(params);
    else if (lower == "adagrad") read_adagrad(params);
    else refuse_optimizer(file, name);
    params.refuse_others();
    // A run file's optimizer of the same kind may say more, and not say otherwise.
    for (const auto& [option, value] : params.made.items()) changes.values.push_back({"optimizer." + option, value, option == "kind" ? "optimizer.type" : "optimizer.params"});
}

void take_scheduler(const DeepSpeedFile& file, RunChanges& changes) {
    const auto type = file.text("scheduler", "type");
    if (!type) return;
    static const std::vector<std::string> kTypes = {"LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR"};
    if (std::ranges::find(kTypes, *type) == kTypes.end()) file.refuse("scheduler.type", fmt::format("'{}' is not supported{}; give one of {}", *type, did_you_mean(*type, kTypes), fmt::join(kTypes, ", ")));
    const json* params = file.find("scheduler", "params");
    if (!params || !params->is_object()) file.refuse("scheduler.params", fmt::format("{} needs an object here, e.g. {{\"warmup_num_steps\": 100}}", *type));
    const auto [names, required] = params_of(*type);
    std::vector<std::string> known = words_of(names);
    json made = {{"kind", "deepspeed"}, {"type", *type}};
    const json learning_rate = learning_rate_of(file, changes);
    if (learning_rate.is_number()) made["learning_rate"] = learning_rate;
    for (const auto& [param, value] : params->items()) {
        const std::string path = fmt::format("scheduler.params.{}", param);
        if (std::ranges::find(known, param) == known.end())
            throw ConfigError(fmt::format("{}: scheduler.params: unknown key '{}'{}; {} takes {}", file.name(), param, did_you_mean(param, known), *type, fmt::join(known, ", ")));
        if (param == "last_batch_iteration") {
            if (value != -1) file.refuse(path, "a run goes on by --resume; take it out");
        } else if (is_auto(value) || value.is_null()) {
            if (param == "warmup_max_lr" && learning_rate.is_number()) made[param] = learning_rate;
            if (param == "warmup_num_steps" && is_auto(value)) made[param] = 0;  // as transformers fills it in where nothing else is said
        } else {
            const json found = checked(file, param, value, path);
            if (param == "cycle_momentum" && found == true) file.refuse(path, "a momentum that cycles is not supported; give false, and an option_schedule if it is to");
            if (param != "cycle_momentum" && !param.ends_with("_mom") && param != "decay_mom_rate") made[param] = found;
        }
    }
    if (*type == "OneCycle" && !params->contains("cycle_momentum")) file.refuse("scheduler.params.cycle_momentum", "it is true where it is left out, and a momentum that cycles is not supported; give false");
    for (const std::string& one : words_of(required))
        if (!params->contains(one)) file.refuse(fmt::format("scheduler.params.{}", one), fmt::format("{} needs it", *type));
    changes.values.push_back({"schedule", made, "scheduler"});
}

}  // namespace torchbus

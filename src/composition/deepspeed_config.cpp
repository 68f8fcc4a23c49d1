#include <torchbus/composition/deepspeed_config.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <iterator>
#include <sstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/error.hpp>

#include "json_text.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

/// Keys of a section, with blanks between them. What is not read has no effect here; nothing: any keys.
struct Section {
    const char* name;
    const char* keys;
};

// Source: deepspeed/runtime/config.py and the sections it reads, of DeepSpeed 0.19.8; older names, down to 0.9, too.
constexpr const char* kTopLevel =
    "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps managed_gradient_accumulation gradient_clipping zero_allow_untested_optimizer zero_force_ds_cpu_optimizer "
    "steps_per_print wall_clock_breakdown memory_breakdown dump_state disable_allgather disable_python_gc communication_data_type seq_parallel_communication_data_type prescale_gradients "
    "gradient_predivide_factor gradient_allreduce_op sparse_gradients dataloader_drop_last use_data_before_expert_parallelism vocabulary_size log_level sequence_parallel_size data_parallel_size "
    "graph_harvesting allgather_size $schema";
constexpr Section kSections[] = {
    {"optimizer", "type params legacy_fusion"},
    {"scheduler", "type params"},
    {"fp16", "enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis min_loss_scale fp16_master_weights_and_grads opt_level"},
    {"bf16", "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states"},
    {"bfloat16", "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states"},
    {"torch_autocast", "enabled dtype lower_precision_safe_modules"},
    {"zero_optimization",
     "stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce allgather_partitions allgather_bucket_size overlap_comm compute_grad_norm load_from_fp32_weights "
     "elastic_checkpoint offload_param offload_optimizer sub_group_size stage3_prefetch_bucket_size prefetch_bucket_size stage3_param_persistence_threshold param_persistence_threshold "
     "stage3_model_persistence_threshold model_persistence_threshold stage3_max_live_parameters max_live_parameters stage3_max_reuse_distance max_reuse_distance "
     "stage3_gather_16bit_weights_on_model_save gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save stage3_module_granularity_threshold module_granularity_threshold "
     "stage3_use_all_reduce_for_fetch_params use_all_reduce_for_fetch_params stage3_allgather_sequential allgather_sequential ignore_unused_parameters legacy_stage1 round_robin_gradients "
     "parameter_alignment zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients memory_efficient_linear pipeline_loading_checkpoint "
     "override_module_apply log_trace_cache_warnings enable_sanity_checks save_muon_momentum_buffer_in_memory leaf_module zenflow cpu_offload cpu_offload_param cpu_offload_use_pin_memory "
     "mics_shard_size mics_hierarchical_params_gather zeropp_loco_param"},
    {"activation_checkpointing", "partition_activations number_checkpoints contiguous_memory_optimization cpu_checkpointing synchronize_checkpoint_boundary profile"},
    {"flops_profiler", "enabled recompute_fwd_factor profile_step module_depth top_modules detailed output_file"},
    {"comms_logger", "enabled prof_all prof_ops verbose debug"},
    {"tensorboard", "enabled output_path job_name"},
    {"csv_monitor", "enabled output_path job_name"},
    {"wandb", "enabled group team project"},
    {"comet", "enabled samples_log_interval project workspace api_key experiment_name experiment_key online mode"},
    {"monitor_config", ""},
    {"autotuning", ""},
    {"aio", "block_size queue_depth intra_op_parallelism thread_count single_submit overlap_events use_gds"},
    {"checkpoint", "tag_validation load_universal use_node_local_storage parallel_write checkpoint_serialization writer"},
    {"data_types", "grad_accum_dtype param_dtype buffer_dtype keep_in_fp32_modules"},
    {"data_efficiency", ""},
    {"compile", ""},
    {"tensor_parallel", ""},
    {"expert_parallel", ""},
    {"pipeline", ""},
    {"hybrid_engine", ""},
    {"weight_quantization", ""},
    {"quantize_training", ""},
    {"compression_training", ""},
    {"timers", "throughput"},
    {"datastates_ckpt", ""},
    {"msamp", "enabled opt_level"},
    {"amp", ""},
    {"elasticity", ""},
    {"curriculum_learning", ""},
    {"progressive_layer_drop", "enabled theta gamma"},
    {"eigenvalue", ""},
    {"sparse_attention", ""},
    {"nebula", ""},
};
/// Sections that would train another model, where they are there and not disabled.
constexpr const char* kChangeTraining[] = {"torch_autocast", "data_efficiency", "tensor_parallel", "expert_parallel", "weight_quantization", "quantize_training", "compression_training", "msamp",
                                           "amp", "elasticity", "curriculum_learning", "progressive_layer_drop", "sparse_attention", "pipeline"};

std::vector<std::string> words(const char* text) {
    std::istringstream stream(text);
    return {std::istream_iterator<std::string>(stream), {}};
}

bool is_auto(const json& value) { return value == "auto"; }

class DeepSpeedFile {
public:
    DeepSpeedFile(std::string name, json content, const json& run, int world_size) : file_(std::move(content)), run_(run), world_size_(world_size) {
        changes_.name = std::move(name);
    }
    RunChanges read() {
        if (!file_.is_object()) throw ConfigError(fmt::format("{}: a configuration of DeepSpeed is a JSON object; found a {}", changes_.name, file_.type_name()));
        check_keys();
        batches();
        optimizer();
        scheduler();
        precision();
        clipping();
        communication();
        zero();
        if (world_size_ > 1) changes_.callbacks.push_back({"data_parallel", json::object(), "it"});
        return std::move(changes_);
    }

private:
    [[noreturn]] void refuse(const std::string& path, const std::string& what) const { throw ConfigError(fmt::format("{}: {}: {}", changes_.name, path, what)); }
    [[noreturn]] void refuse_value(const std::string& path, const json& found, const std::string& expected) const { refuse(path, fmt::format("{} is {}, expected {}", found.dump(), found.type_name(), expected)); }

    // ---- keys
    void check_keys() {
        std::vector<std::string> known = words(kTopLevel);
        for (const Section& section : kSections) known.emplace_back(section.name);
        for (const auto& [key, value] : file_.items()) {
            if (std::ranges::find(known, key) == known.end())
                throw ConfigError(fmt::format("{}: unknown key '{}'{}; it is none of DeepSpeed's", changes_.name, key, did_you_mean(key, known)));
            const auto section = std::ranges::find_if(kSections, [&](const Section& one) { return key == one.name; });
            if (section != std::end(kSections)) check_section(*section, value);
        }
        for (const char* one : kChangeTraining)
            if (is_on(one)) refuse(one, "it is not supported, and would train another model; take it out, or disable it");
        for (const char* scalar : {"managed_gradient_accumulation", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state",
                                   "disable_allgather", "disable_python_gc", "seq_parallel_communication_data_type", "prescale_gradients", "gradient_predivide_factor", "sparse_gradients", "dataloader_drop_last",
                                   "use_data_before_expert_parallelism", "vocabulary_size", "log_level", "graph_harvesting", "allgather_size"})
            if (file_.contains(scalar)) changes_.not_supported.emplace_back(scalar);
        for (const Section& section : kSections)
            if (file_.contains(section.name) && !is_read(section.name) && std::ranges::find(kChangeTraining, std::string_view(section.name), [](const char* one) { return std::string_view(one); }) == std::end(kChangeTraining))
                changes_.not_supported.emplace_back(section.name);
        for (const char* size : {"sequence_parallel_size", "data_parallel_size"})
            if (const auto value = integer("", size); value && *value > 1 && !(std::string_view(size) == "data_parallel_size" && *value == world_size_))
                refuse(size, fmt::format("{} is not supported; take it out: every rank trains on its part of a batch", *value));
    }
    static bool is_read(std::string_view section) {
        return section == "optimizer" || section == "scheduler" || section == "fp16" || section == "bf16" || section == "bfloat16" || section == "zero_optimization";
    }
    void check_section(const Section& section, const json& value) const {
        const bool may_be_flag = std::string_view(section.name) == "zero_optimization" && value.is_boolean();
        if (may_be_flag || value.is_null()) return;
        if (!value.is_object()) {
            if (*section.keys == '\0' || is_auto(value)) return;
            refuse_value(section.name, value, "an object");
        }
        const std::vector<std::string> known = words(section.keys);
        if (known.empty()) return;
        for (const auto& [key, inner] : value.items())
            if (std::ranges::find(known, key) == known.end())
                throw ConfigError(fmt::format("{}: {}: unknown key '{}'{}; known are {}", changes_.name, section.name, key, did_you_mean(key, known), fmt::join(known, ", ")));
    }
    /// A section that says nothing of being enabled is.
    bool is_on(const char* section) const {
        const auto found = file_.find(section);
        if (found == file_.end() || found->is_null() || *found == false) return false;
        if (!found->is_object()) return true;
        if (found->empty()) return false;
        if (std::string_view(section) == "tensor_parallel") return found->value("autotp_size", json(0)) != 0;
        if (std::string_view(section) == "pipeline") return false;  // of a model that is cut in stages, which this one is not
        const auto enabled = found->find("enabled");
        return enabled == found->end() ? std::string_view(section) != "msamp" : *enabled != false;
    }

    // ---- values; nothing where they are not there, or null
    const json* find(const std::string& section, const std::string& key) const {
        const json* place = &file_;
        if (!section.empty()) {
            const auto found = file_.find(section);
            if (found == file_.end() || !found->is_object()) return nullptr;
            place = &*found;
        }
        const auto found = place->find(key);
        return found == place->end() || found->is_null() ? nullptr : &*found;
    }
    static std::string path_of(const std::string& section, const std::string& key) { return section.empty() ? key : section + "." + key; }
    /// "auto" is as if it were not there.
    std::optional<double> number_of(const json* value, const std::string& path) const {
        if (!value || is_auto(*value)) return std::nullopt;
        if (!value->is_number()) refuse_value(path, *value, "a number");
        return value->get<double>();
    }
    std::optional<double> number(const std::string& section, const std::string& key) const { return number_of(find(section, key), path_of(section, key)); }
    std::optional<std::int64_t> whole(const json* value, const std::string& path) const {
        const auto found = number_of(value, path);
        if (!found) return std::nullopt;
        if (*found != std::floor(*found) || std::abs(*found) > 1e15) refuse_value(path, *value, "a whole number");
        return static_cast<std::int64_t>(*found);
    }
    std::optional<std::int64_t> integer(const std::string& section, const std::string& key) const { return whole(find(section, key), path_of(section, key)); }
    std::optional<bool> flag(const std::string& section, const std::string& key) const {
        const json* value = find(section, key);
        if (!value || is_auto(*value)) return std::nullopt;
        if (!value->is_boolean()) refuse_value(path_of(section, key), *value, "true, false or \"auto\"");
        return value->get<bool>();
    }
    std::optional<std::string> text(const std::string& section, const std::string& key) const {
        const json* value = find(section, key);
        if (!value || is_auto(*value)) return std::nullopt;
        if (!value->is_string()) refuse_value(path_of(section, key), *value, "a text");
        return value->get<std::string>();
    }
    bool says_auto(const std::string& section, const std::string& key) const {
        const json* value = find(section, key);
        return value && is_auto(*value);
    }
    void no_effect(const std::string& section, const std::string& key) {
        if (find(section, key)) changes_.not_supported.push_back(path_of(section, key));
    }

    // ---- what the run file says
    json of_run(const char* section, const char* key) const {
        const auto found = run_.find(section);
        return found != run_.end() && found->is_object() && found->contains(key) ? found->at(key) : json();
    }
    json of_callback(const char* kind, const char* option) const {
        const auto callbacks = run_.find("callbacks");
        if (callbacks == run_.end() || !callbacks->is_array()) return nullptr;
        for (const json& one : *callbacks)
            if (one.is_object() && one.value("kind", json()) == kind) return one.value(option, json());
        return nullptr;
    }

    // ---- sections
    void batches() {
        const char *train = "train_batch_size", *micro = "train_micro_batch_size_per_gpu", *accumulation = "gradient_accumulation_steps";
        BatchTriple given{integer("", train), integer("", micro), integer("", accumulation)};
        const auto positive = [](const json& value) { return value.is_number_integer() ? std::optional(value.get<std::int64_t>()) : std::nullopt; };
        if (!given.micro && (says_auto("", micro) || !given.train)) given.micro = positive(of_run("train", "batch_size"));
        if (!given.accumulation && says_auto("", accumulation)) given.accumulation = positive(of_callback("gradient_accumulation", "micro_batches"));
        const BatchTriple all = completed(given, world_size_, changes_.name);
        changes_.values.push_back({"train.batch_size", *all.micro, find("", micro) ? micro : train});
        if (*all.accumulation > 1 || find("", accumulation)) {
            const json own = of_callback("gradient_accumulation", "micro_batches");
            if (*all.accumulation > 1 || !own.is_null()) changes_.callbacks.push_back({"gradient_accumulation", {{"micro_batches", *all.accumulation}}, find("", accumulation) ? accumulation : train});
        }
    }

    void optimizer() {
        const json* type = find("optimizer", "type");
        if (!type) return;
        if (!type->is_string()) refuse_value("optimizer.type", *type, "a text, e.g. \"AdamW\"");
        const json none = json::object();
        const json* params = find("optimizer", "params");
        if (!params) params = &none;
        if (!params->is_object()) refuse_value("optimizer.params", *params, "an object");
        const std::string name = type->get<std::string>();
        std::string lower = name;
        std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
        json made;
        std::vector<std::string> known;
        const auto take = [&](const char* param, const char* option, double otherwise) {
            known.emplace_back(param);
            const auto found = params->find(param);
            if (found != params->end() && is_auto(*found)) {
                if (const json own = of_run("optimizer", option); !own.is_null()) return void(made[option] = own);
            }
            made[option] = found == params->end() ? otherwise : number_of(&*found, fmt::format("optimizer.params.{}", param)).value_or(otherwise);
        };
        const auto must_be = [&](const char* param, const json& value, const char* why) {
            known.emplace_back(param);
            if (params->contains(param) && !is_auto(params->at(param)) && params->at(param) != value) refuse(fmt::format("optimizer.params.{}", param), fmt::format("{} is not supported: {}; give {}", params->at(param).dump(), why, value.dump()));
        };
        const auto ignore = [&](const char* param) {
            known.emplace_back(param);
            if (params->contains(param)) changes_.not_supported.push_back(fmt::format("optimizer.params.{}", param));
        };
        if (lower == "adam" || lower == "adamw") {
            known.emplace_back("adam_w_mode");
            const json mode = params->value("adam_w_mode", json(true));
            if (!mode.is_boolean()) refuse_value("optimizer.params.adam_w_mode", mode, "true or false");
            // DeepSpeed's Adam is AdamW unless it is told otherwise.
            made["kind"] = lower == "adamw" || mode == true ? "adamw" : "adam";
            take("lr", "learning_rate", 1e-3);
            take("eps", "epsilon", 1e-8);
            take("weight_decay", "weight_decay", 0);
            take_betas(*params, made, known);
            must_be("bias_correction", true, "moments are always corrected");
            known.emplace_back("amsgrad");
            if (const auto amsgrad = params->find("amsgrad"); amsgrad != params->end()) {
                if (!amsgrad->is_boolean()) refuse_value("optimizer.params.amsgrad", *amsgrad, "true or false");
                made["amsgrad"] = *amsgrad;
            }
            for (const char* one : {"torch_adam", "fused", "foreach", "set_grad_none", "fp32_optimizer_states"}) ignore(one);
        } else if (lower == "sgd") {
            made["kind"] = "sgd";
            take("lr", "learning_rate", 1e-3);
            take("momentum", "momentum", 0);
            take("weight_decay", "weight_decay", 0);
            must_be("dampening", 0, "the gradient enters the momentum whole");
            known.emplace_back("nesterov");
            if (const auto nesterov = params->find("nesterov"); nesterov != params->end()) {
                if (!nesterov->is_boolean()) refuse_value("optimizer.params.nesterov", *nesterov, "true or false");
                made["nesterov"] = *nesterov;
            }
        } else if (lower == "adagrad") {
            made["kind"] = "adagrad";
            take("lr", "learning_rate", 1e-2);
            take("weight_decay", "weight_decay", 0);
            must_be("eps", 1e-10, "it is fixed");
        } else {
            static const std::vector<std::string> kOthers = {"Lamb", "Lion", "Muon", "MuAdam", "MuAdamW", "MuSGD", "OneBitAdam", "OneBitLamb", "ZeroOneAdam", "RMSprop", "NAdam", "RAdam", "Adadelta", "Adamax", "ASGD", "Rprop", "LBFGS"};
            const bool is_known = std::ranges::find(kOthers, name) != kOthers.end();
            static const std::vector<std::string> kOurs = {"Adam", "AdamW", "SGD", "Adagrad"};
            refuse("optimizer.type", fmt::format("'{}' is {}{}; give one of {}", name, is_known ? "not supported" : "no optimizer of DeepSpeed's", is_known ? "" : did_you_mean(name, kOurs), fmt::join(kOurs, ", ")));
        }
        known.emplace_back("max_grad_norm");
        if (params->contains("max_grad_norm")) refuse("optimizer.params.max_grad_norm", "gradients are clipped by gradient_clipping; give it there");
        for (const auto& [param, value] : params->items())
            if (std::ranges::find(known, param) == known.end())
                throw ConfigError(fmt::format("{}: optimizer.params: unknown key '{}'{}; {} takes {}", changes_.name, param, did_you_mean(param, known), name, fmt::join(known, ", ")));
        learning_rate_ = made.at("learning_rate").is_number() ? made.at("learning_rate").get<double>() : learning_rate_;
        put_optimizer(made);
    }
    void take_betas(const json& params, json& made, std::vector<std::string>& known) const {
        known.emplace_back("betas");
        json betas = params.value("betas", json::array({0.9, 0.999}));
        if (is_auto(betas)) {
            const json first = of_run("optimizer", "beta1"), second = of_run("optimizer", "beta2");
            betas = json::array({first.is_null() ? json(0.9) : first, second.is_null() ? json(0.999) : second});
        }
        if (!betas.is_array() || betas.size() != 2 || !betas[0].is_number() || !betas[1].is_number()) refuse_value("optimizer.params.betas", betas, "two numbers, e.g. [0.9, 0.999]");
        made["beta1"] = betas[0];
        made["beta2"] = betas[1];
    }
    /// A run file's optimizer of the same kind may say more, and not say otherwise.
    void put_optimizer(const json& made) {
        for (const auto& [option, value] : made.items()) changes_.values.push_back({"optimizer." + option, value, option == "kind" ? "optimizer.type" : "optimizer.params"});
    }

    void scheduler() {
        const auto type = text("scheduler", "type");
        if (!type) return;
        static const std::vector<std::string> kTypes = {"LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR"};
        if (std::ranges::find(kTypes, *type) == kTypes.end()) refuse("scheduler.type", fmt::format("'{}' is not supported{}; give one of {}", *type, did_you_mean(*type, kTypes), fmt::join(kTypes, ", ")));
        const json* params = find("scheduler", "params");
        if (!params || !params->is_object()) refuse("scheduler.params", fmt::format("{} needs an object here, e.g. {{\"warmup_num_steps\": 100}}", *type));
        const auto [names, required] = scheduler_params(*type);
        std::vector<std::string> known = words(names);
        json made = {{"kind", "deepspeed"}, {"type", *type}};
        if (const json own = of_run("optimizer", "learning_rate"); !learning_rate_ && own.is_number()) learning_rate_ = own.get<double>();
        if (learning_rate_) made["learning_rate"] = *learning_rate_;
        for (const auto& [param, value] : params->items()) {
            const std::string path = fmt::format("scheduler.params.{}", param);
            if (std::ranges::find(known, param) == known.end())
                throw ConfigError(fmt::format("{}: scheduler.params: unknown key '{}'{}; {} takes {}", changes_.name, param, did_you_mean(param, known), *type, fmt::join(known, ", ")));
            if (param == "last_batch_iteration") {
                if (value != -1) refuse(path, "a run goes on by --resume; take it out");
            } else if (is_auto(value) || value.is_null()) {
                if (param == "warmup_max_lr" && learning_rate_) made[param] = *learning_rate_;
            } else if (param == "cycle_momentum" || param.ends_with("_mom") || param == "decay_mom_rate") {
                if (param == "cycle_momentum" && value == true) refuse(path, "a momentum that cycles is not supported; give false, and an option_schedule if it is to");
            } else {
                if (value.is_array()) refuse_value(path, value, "one number for all parameter groups");
                made[param] = value;
            }
        }
        if (*type == "OneCycle" && !params->contains("cycle_momentum")) refuse("scheduler.params.cycle_momentum", "it is true where it is left out, and a momentum that cycles is not supported; give false");
        for (const std::string& one : words(required))
            if (!params->contains(one)) refuse(fmt::format("scheduler.params.{}", one), fmt::format("{} needs it", *type));
        changes_.values.push_back({"schedule", made, "scheduler"});
    }
    static std::pair<const char*, const char*> scheduler_params(const std::string& type) {
        if (type == "WarmupLR") return {"warmup_min_lr warmup_max_lr warmup_num_steps warmup_type last_batch_iteration", ""};
        if (type == "WarmupDecayLR") return {"total_num_steps warmup_min_lr warmup_max_lr warmup_num_steps warmup_type last_batch_iteration", "total_num_steps"};
        if (type == "WarmupCosineLR") return {"total_num_steps warmup_min_ratio warmup_num_steps cos_min_ratio warmup_type last_batch_iteration", "total_num_steps"};
        if (type == "LRRangeTest") return {"lr_range_test_min_lr lr_range_test_step_size lr_range_test_step_rate lr_range_test_staircase last_batch_iteration", ""};
        return {"cycle_min_lr cycle_max_lr decay_lr_rate cycle_first_step_size cycle_second_step_size cycle_first_stair_count cycle_second_stair_count decay_step_size cycle_momentum cycle_min_mom "
                "cycle_max_mom decay_mom_rate last_batch_iteration",
                "cycle_min_lr cycle_max_lr"};
    }

    void precision() {
        const std::string bf16 = file_.contains("bf16") ? "bf16" : "bfloat16";
        const bool half = flag("fp16", "enabled").value_or(false), brain = flag(bf16, "enabled").value_or(false);
        if (half && brain) throw ConfigError(fmt::format("{}: fp16.enabled and {}.enabled are both true; leave one of them", changes_.name, bf16));
        if (brain) changes_.callbacks.push_back({"mixed_precision", {{"precision", "bf16"}}, bf16 + ".enabled"});
        for (const char* key : {"immediate_grad_update", "check_grad_overflow", "bf16_master_weights_and_grads", "bf16_optimizer_states"})
            if (brain) no_effect(bf16, key);
        if (!half) return;
        json options = {{"precision", "fp16"}};
        const double fixed = number("fp16", "loss_scale").value_or(0);
        if (fixed < 0) refuse("fp16.loss_scale", fmt::format("{} is negative; give a scale, or 0 for one that adapts", fixed));
        if (fixed > 0) {
            options["initial_scale"] = fixed;
            options["growth_factor"] = 1.0;
            options["backoff_factor"] = 1.0;
        } else {
            options["initial_scale"] = std::ldexp(1.0, static_cast<int>(std::clamp<std::int64_t>(integer("fp16", "initial_scale_power").value_or(16), 0, 64)));
            options["growth_interval"] = integer("fp16", "loss_scale_window").value_or(1000);
        }
        for (const char* key : {"auto_cast", "hysteresis", "consecutive_hysteresis", "min_loss_scale", "fp16_master_weights_and_grads", "opt_level"}) no_effect("fp16", key);
        changes_.callbacks.push_back({"mixed_precision", std::move(options), "fp16"});
    }

    void clipping() {
        const auto norm = number("", "gradient_clipping");
        if (norm && *norm < 0) refuse("gradient_clipping", fmt::format("{} is negative; give the largest allowed gradient norm, or 0 for none", *norm));
        if (norm && *norm > 0) changes_.callbacks.push_back({"gradient_clipping", {{"max_norm", *norm}}, "gradient_clipping"});
    }

    void communication() {
        if (const auto type = text("", "communication_data_type")) {
            if (*type == "bf16") changes_.callbacks.push_back({"data_parallel", {{"bf16", true}}, "communication_data_type"});
            else if (*type != "fp32") refuse("communication_data_type", fmt::format("'{}' is not supported; give fp32 or bf16", *type));
        }
        if (const auto operation = text("", "gradient_allreduce_op"); operation && *operation != "mean")
            refuse("gradient_allreduce_op", fmt::format("'{}' is not supported: an update is that of one process on the whole batch; give mean", *operation));
    }

    void zero() {
        const auto found = file_.find("zero_optimization");
        if (found == file_.end() || found->is_null()) return;
        std::int64_t stage = 0;
        if (found->is_boolean()) stage = *found == true ? 1 : 0;
        else stage = integer("zero_optimization", "stage").value_or(0);
        if (stage < 0 || stage > 3) refuse("zero_optimization.stage", fmt::format("{} is no stage of ZeRO; give 0 or 1", stage));
        if (stage > 1)
            refuse("zero_optimization.stage", fmt::format("stage {} is not supported, as it divides {} among ranks; supported are 0, and 1, which divides the optimizer's state", stage, stage == 2 ? "gradients, too," : "gradients and parameters, too,"));
        for (const char* key : {"offload_optimizer", "offload_param"})
            if (const json* offload = find("zero_optimization", key)) {
                const json device = offload->is_object() ? offload->value("device", json("none")) : *offload;
                if (device != "none" && !is_auto(device)) refuse(fmt::format("zero_optimization.{}", key), fmt::format("offloading to {} is not supported; leave it out: what is supported is stage 1 with its share of the state on each rank's device", device.dump()));
            }
        for (const char* key : {"cpu_offload", "cpu_offload_param"})
            if (flag("zero_optimization", key).value_or(false)) refuse(fmt::format("zero_optimization.{}", key), "offloading is not supported; leave it out");
        if (stage == 1) changes_.callbacks.push_back({"zero_redundancy", json::object(), "zero_optimization.stage"});
        if (!found->is_object()) return;
        for (const auto& [key, value] : found->items())
            if (key != "stage" && key != "offload_optimizer" && key != "offload_param" && key != "cpu_offload" && key != "cpu_offload_param") changes_.not_supported.push_back("zero_optimization." + key);
    }

    json file_;
    const json& run_;
    int world_size_;
    std::optional<double> learning_rate_;  ///< of the optimizer
    RunChanges changes_;
};

}  // namespace

BatchTriple completed(BatchTriple given, int world_size, const std::string& name) {
    auto& [train, micro, accumulation] = given;
    if (!train && !micro)
        throw ConfigError(fmt::format("{}: neither train_batch_size nor train_micro_batch_size_per_gpu is given, and the run file has no train.batch_size; give one of them", name));
    if (train && micro && !accumulation) accumulation = *micro > 0 ? *train / *micro / world_size : 0;
    else if (train && !micro && accumulation) micro = *accumulation > 0 ? *train / world_size / *accumulation : 0;
    else if (train && !micro) accumulation = 1, micro = *train / world_size;
    else if (!accumulation) accumulation = 1;
    if (!train) train = *micro * *accumulation * world_size;
    const auto product = fmt::format("train_batch_size {} = train_micro_batch_size_per_gpu {} x gradient_accumulation_steps {} x {} rank{}", *train, *micro, *accumulation, world_size, world_size == 1 ? "" : "s");
    if (*train <= 0 || *micro <= 0 || *accumulation <= 0) throw ConfigError(fmt::format("{}: {}: each must be above 0; give sizes that multiply", name, product));
    if (*train != *micro * *accumulation * world_size) throw ConfigError(fmt::format("{}: {} does not hold: that is {}; change one of them, or leave it out", name, product, *micro * *accumulation * world_size));
    return given;
}

RunChanges changes_of_deepspeed(const std::filesystem::path& file, const json& run, int world_size) {
    std::ifstream stream(file);
    if (!stream || std::filesystem::is_directory(file)) throw ConfigError(fmt::format("{}: cannot open the configuration of DeepSpeed; is the name right?", file.string()));
    const std::string content{std::istreambuf_iterator<char>(stream), {}};
    return DeepSpeedFile(file.string(), json_of_text(without_comments(content), file.string()), run, world_size).read();
}

}  // namespace torchbus

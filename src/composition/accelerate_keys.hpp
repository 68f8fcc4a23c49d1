#pragma once
/// The keys of Accelerate's YAML. Source: commands/config/config_args.py and the sections it reads, of Accelerate 1.15.0; older
/// names, down to 0.12, too.

namespace torchbus {

enum class YamlType { Text, Bool, Integer, Number, List, Section };

struct AccelerateKey {
    const char* name;
    YamlType type;
    bool has_effect;             ///< here
    const char* otherwise = "";  ///< of one without: what is written where nobody has asked for anything
};
inline constexpr AccelerateKey kAccelerateKeys[] = {
    {"compute_environment", YamlType::Text, true},
    {"distributed_type", YamlType::Text, true},
    {"mixed_precision", YamlType::Text, true},
    {"fp16", YamlType::Bool, true},  // before mixed_precision was there
    {"use_cpu", YamlType::Bool, true},
    {"num_processes", YamlType::Integer, true},
    {"num_machines", YamlType::Integer, true},
    {"machine_rank", YamlType::Integer, true},
    {"main_process_ip", YamlType::Text, true},
    {"main_process_port", YamlType::Integer, true},
    {"deepspeed_config", YamlType::Section, true},
    {"debug", YamlType::Bool, false, "false"},
    {"gpu_ids", YamlType::Text, true},
    {"rdzv_backend", YamlType::Text, false, "static"},
    {"same_network", YamlType::Bool, false, "any"},  // Accelerate itself writes either
    {"main_training_function", YamlType::Text, false, "main"},
    {"enable_cpu_affinity", YamlType::Bool, false, "false"},
    {"downcast_bf16", YamlType::Bool, false, "false"},
    {"fp8_config", YamlType::Section, false},
    {"fsdp_config", YamlType::Section, false},
    {"parallelism_config", YamlType::Section, false},
    {"megatron_lm_config", YamlType::Section, false},
    {"mpirun_config", YamlType::Section, false},
    {"dynamo_config", YamlType::Section, false},
    {"dynamo_backend", YamlType::Text, false, "no"},
    {"ipex_config", YamlType::Section, false},
    {"tp_config", YamlType::Section, false},
    {"tpu_name", YamlType::Text, false},
    {"tpu_zone", YamlType::Text, false},
    {"tpu_use_cluster", YamlType::Bool, false, "false"},
    {"tpu_use_sudo", YamlType::Bool, false, "false"},
    {"tpu_vm", YamlType::List, false},
    {"tpu_env", YamlType::List, false},
    {"command_file", YamlType::Text, false},
    {"commands", YamlType::List, false},
};

/// Keys of a section, with blanks between them; where Accelerate puts a prefix before those without, both are known.
struct AccelerateSection {
    const char* name;
    const char* prefix;
    const char* keys;
};
inline constexpr AccelerateSection kAccelerateSections[] = {
    {"deepspeed_config", "",
     "deepspeed_config_file zero_stage offload_optimizer_device offload_param_device offload_optimizer_nvme_path offload_param_nvme_path gradient_accumulation_steps gradient_clipping "
     "zero3_init_flag zero3_save_16bit_model deepspeed_hostfile deepspeed_exclusion_filter deepspeed_inclusion_filter deepspeed_multinode_launcher deepspeed_moe_layer_cls_names"},
    {"fsdp_config", "fsdp_",
     "version reshard_after_forward sharding_strategy offload_params auto_wrap_policy transformer_layer_cls_to_wrap min_num_params backward_prefetch backward_prefetch_policy forward_prefetch "
     "state_dict_type use_orig_params cpu_ram_efficient_loading sync_module_states activation_checkpointing activation_checkpointing_offload ignored_modules"},
    {"megatron_lm_config", "megatron_lm_",
     "tp_degree pp_degree num_micro_batches gradient_clipping sequence_parallelism recompute_activations use_distributed_optimizer use_custom_fsdp no_load_optim eod_mask_loss no_save_optim "
     "optimizer_cpu_offload use_precision_aware_optimizer overlap_cpu_optimizer_d2h_h2d decoder_last_pipeline_num_layers recompute_granularity recompute_method recompute_num_layers attention_backend "
     "attention_softmax_in_fp32 calculate_per_token_loss use_rotary_position_embeddings expert_model_parallel_size expert_tensor_parallel_size context_parallel_size attention_dropout hidden_dropout"},
    {"parallelism_config", "parallelism_config_",
     "dp_replicate_size dp_shard_size tp_size cp_size sp_size cp_backend cp_comm_strategy sp_backend sp_seq_length sp_seq_length_is_variable sp_attn_implementation"},
    {"fp8_config", "fp8_",
     "backend use_autocast_during_eval margin interval fp8_format format amax_history_length amax_history_len amax_compute_algorithm amax_compute_algo override_linear_precision use_mxfp8_block_scaling "
     "optimization_level opt_level enable_fsdp_float8_all_gather pad_inner_dim"},
    {"mpirun_config", "mpirun_", "hostfile ccl"},
    {"dynamo_config", "dynamo_", "backend mode use_fullgraph use_dynamic use_regional_compilation"},
    {"ipex_config", "", "ipex use_xpu"},
    {"tp_config", "", "tp_size"},
};

}  // namespace torchbus

#pragma once
/// The keys of DeepSpeed's JSON. Source: deepspeed/runtime/config.py and the sections it reads, of DeepSpeed 0.19.8; older names,
/// down to 0.9, too.

namespace torchbus {

/// What an offload is refused with.
inline constexpr const char* kSupportedOfZero = "supported are ZeRO stages 0 and 1, without offloading";

/// Keys of a section, with blanks between them; nothing: any keys.
struct DeepSpeedSection {
    const char* name;
    const char* keys;
};

// At the top level, beside the sections.
inline constexpr const char* kDeepSpeedRead =
    "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping communication_data_type gradient_allreduce_op "
    "sequence_parallel_size data_parallel_size $schema";
inline constexpr const char* kDeepSpeedWithoutEffect =
    "managed_gradient_accumulation zero_allow_untested_optimizer zero_force_ds_cpu_optimizer steps_per_print wall_clock_breakdown memory_breakdown dump_state disable_allgather "
    "disable_python_gc seq_parallel_communication_data_type prescale_gradients gradient_predivide_factor sparse_gradients dataloader_drop_last use_data_before_expert_parallelism "
    "vocabulary_size log_level graph_harvesting allgather_size";
inline constexpr DeepSpeedSection kDeepSpeedSections[] = {
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
inline constexpr const char* kChangeTraining[] = {"torch_autocast", "data_efficiency", "tensor_parallel", "expert_parallel", "weight_quantization", "quantize_training", "compression_training", "msamp",
                                           "amp", "elasticity", "curriculum_learning", "progressive_layer_drop", "sparse_attention"};

}  // namespace torchbus

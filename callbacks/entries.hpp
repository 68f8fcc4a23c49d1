#pragma once
/// What each callback's file gives to the registry: reading its options and making it.

#include <memory>

#include <torchbus/callback.hpp>
#include <torchbus/option_reader.hpp>

namespace torchbus {

std::unique_ptr<Callback> classification_metrics_from_json(OptionReader& reader);
std::unique_ptr<Callback> console_report_from_json(OptionReader& reader);
std::unique_ptr<Callback> csv_file_from_json(OptionReader& reader);
std::unique_ptr<Callback> cutmix_from_json(OptionReader& reader);
std::unique_ptr<Callback> data_parallel_from_json(OptionReader& reader);
std::unique_ptr<Callback> device_placement_from_json(OptionReader& reader);
std::unique_ptr<Callback> early_stopping_from_json(OptionReader& reader);
std::unique_ptr<Callback> event_file_from_json(OptionReader& reader);
std::unique_ptr<Callback> event_server_from_json(OptionReader& reader);
std::unique_ptr<Callback> fingerprint_from_json(OptionReader& reader);
std::unique_ptr<Callback> freeze_from_json(OptionReader& reader);
std::unique_ptr<Callback> gradient_accumulation_from_json(OptionReader& reader);
std::unique_ptr<Callback> gradient_clipping_from_json(OptionReader& reader);
std::unique_ptr<Callback> gradient_statistics_from_json(OptionReader& reader);
std::unique_ptr<Callback> label_smoothing_from_json(OptionReader& reader);
std::unique_ptr<Callback> learning_rate_finder_from_json(OptionReader& reader);
std::unique_ptr<Callback> learning_rate_monitor_from_json(OptionReader& reader);
std::unique_ptr<Callback> learning_rate_schedule_from_json(OptionReader& reader);
std::unique_ptr<Callback> limit_batches_from_json(OptionReader& reader);
std::unique_ptr<Callback> mean_iou_from_json(OptionReader& reader);
std::unique_ptr<Callback> metric_expression_from_json(OptionReader& reader);
std::unique_ptr<Callback> metrics_from_json(OptionReader& reader);
std::unique_ptr<Callback> micro_batch_halving_from_json(OptionReader& reader);
std::unique_ptr<Callback> mixed_precision_from_json(OptionReader& reader);
std::unique_ptr<Callback> mixup_from_json(OptionReader& reader);
std::unique_ptr<Callback> mlflow_from_json(OptionReader& reader);
std::unique_ptr<Callback> model_ema_from_json(OptionReader& reader);
std::unique_ptr<Callback> nan_policy_from_json(OptionReader& reader);
std::unique_ptr<Callback> option_schedule_from_json(OptionReader& reader);
std::unique_ptr<Callback> perplexity_from_json(OptionReader& reader);
std::unique_ptr<Callback> profiler_from_json(OptionReader& reader);
std::unique_ptr<Callback> progress_bar_from_json(OptionReader& reader);
std::unique_ptr<Callback> progress_lines_from_json(OptionReader& reader);
std::unique_ptr<Callback> reduce_on_plateau_from_json(OptionReader& reader);
std::unique_ptr<Callback> regression_metrics_from_json(OptionReader& reader);
std::unique_ptr<Callback> save_best_from_json(OptionReader& reader);
std::unique_ptr<Callback> save_training_state_from_json(OptionReader& reader);
std::unique_ptr<Callback> sharpness_aware_from_json(OptionReader& reader);
std::unique_ptr<Callback> step_evaluation_from_json(OptionReader& reader);
std::unique_ptr<Callback> stochastic_weight_averaging_from_json(OptionReader& reader);
std::unique_ptr<Callback> sync_batch_norm_from_json(OptionReader& reader);
std::unique_ptr<Callback> tensorboard_from_json(OptionReader& reader);
std::unique_ptr<Callback> terminate_on_nan_from_json(OptionReader& reader);
std::unique_ptr<Callback> throughput_monitor_from_json(OptionReader& reader);
std::unique_ptr<Callback> time_limit_from_json(OptionReader& reader);
std::unique_ptr<Callback> webhook_from_json(OptionReader& reader);
std::unique_ptr<Callback> zero_redundancy_from_json(OptionReader& reader);

}  // namespace torchbus

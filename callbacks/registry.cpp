#include <torchbus/callbacks/registry.hpp>

#include <array>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

constexpr auto kCallbacks = std::to_array<CallbackEntry>({
    {"classification_metrics", "Accuracy, top-k accuracy, precision, recall, F-beta, confusion matrix, AUROC and average precision over an epoch.",
     classification_metrics_from_json},
    {"console_report", "Prints outcome, metrics, decisions and the cost of every subscriber when a run has ended.",
     console_report_from_json},
    {"csv_file", "Writes numbers to a table, a row for every step, evaluation and epoch.",
     csv_file_from_json},
    {"cutmix", "Pastes a box of another sample into every training sample, and mixes the loss by its area.",
     cutmix_from_json},
    {"data_parallel", "Trains one model on several processes, each on a part of every batch; one process where the environment names no others.",
     data_parallel_from_json},
    {"device_placement", "Moves the model and every batch to one device.",
     device_placement_from_json},
    {"early_stopping", "Stops a run whose metric has stopped improving, and may put back its best weights.",
     early_stopping_from_json},
    {"event_file", "Writes every event as a line of JSON, for dashboards and to be replayed.",
     event_file_from_json},
    {"event_server", "Serves every event to programs and dashboards: lines, Server-Sent Events, WebSocket and Prometheus, and takes commands.",
     event_server_from_json},
    {"fingerprint", "Writes hashes of samples, loss, gradients, weights and generators, to find where two runs part.",
     fingerprint_from_json},
    {"freeze", "Freezes layers by name, and unfreezes groups of them as the run goes on, each with a learning rate of its own.",
     freeze_from_json},
    {"gradient_accumulation", "Makes one update of several batches.",
     gradient_accumulation_from_json},
    {"gradient_clipping", "Bounds the gradients of an update by norm, by value or adaptively.",
     gradient_clipping_from_json},
    {"gradient_statistics", "Norm, mean, largest value and zeros of gradients and weights, and the update-to-weight ratio.",
     gradient_statistics_from_json},
    {"label_smoothing", "Trains on cross entropy with smoothed targets.",
     label_smoothing_from_json},
    {"learning_rate_finder", "Raises the learning rate step by step, suggests one, and puts everything back.",
     learning_rate_finder_from_json},
    {"learning_rate_monitor", "Publishes the learning rate of every update and parameter group.",
     learning_rate_monitor_from_json},
    {"learning_rate_schedule", "Sets the learning rate before each update by a function of the position.",
     learning_rate_schedule_from_json},
    {"limit_batches", "Ends every epoch and evaluation after so many batches.",
     limit_batches_from_json},
    {"mean_iou", "Mean intersection over union of a segmentation over an epoch.",
     mean_iou_from_json},
    {"metric_expression", "Publishes a number that is computed from others, by an expression.",
     metric_expression_from_json},
    {"metrics", "Mean loss and accuracy over an epoch, for training and every evaluation split.",
     metrics_from_json},
    {"micro_batch_halving", "Halves the micro-batches of a window that runs out of memory, and tries it again.",
     micro_batch_halving_from_json},
    {"mixed_precision", "Runs forward under bf16 or fp16 autocast, with loss scaling for fp16.",
     mixed_precision_from_json},
    {"mixup", "Mixes pairs of training samples, and their losses alike.",
     mixup_from_json},
    {"mlflow", "Tells an MLflow server of the run, through files that survive a dead server.",
     mlflow_from_json},
    {"model_ema", "Keeps an exponential moving average of the weights, and evaluates it under a view of its own.",
     model_ema_from_json},
    {"nan_policy", "Stops at, skips, rolls back or warns of updates whose loss or gradient is not finite or a spike, and names the samples.",
     nan_policy_from_json},
    {"option_schedule", "Sets momentum, betas or weight decay before each update by a function of the position.",
     option_schedule_from_json},
    {"perplexity", "Perplexity over an epoch, padding left out.",
     perplexity_from_json},
    {"profiler", "Writes a Chrome trace of the phases and subscribers of some steps.",
     profiler_from_json},
    {"progress_bar", "A bar for what is under way, and a line with its metrics when it is over.",
     progress_bar_from_json},
    {"progress_lines", "Plain lines with metrics at an interval and after every epoch: for logs.",
     progress_lines_from_json},
    {"reduce_on_plateau", "Lowers the learning rate when a number has stopped to become better.",
     reduce_on_plateau_from_json},
    {"regression_metrics", "Mean absolute, squared and root mean squared error, and R2, over an epoch.",
     regression_metrics_from_json},
    {"save_best", "Keeps the weights of the best checks of a metric as safetensors files.",
     save_best_from_json},
    {"save_training_state", "Saves all of a run at an interval and after epochs, and keeps the newest.",
     save_training_state_from_json},
    {"sharpness_aware", "Sharpness-aware minimization: takes the gradient of every update where the loss is highest nearby.",
     sharpness_aware_from_json},
    {"step_evaluation", "Evaluates within an epoch, at an interval.",
     step_evaluation_from_json},
    {"stochastic_weight_averaging", "Averages the weights of the last part of a run, with batch-norm statistics computed anew.",
     stochastic_weight_averaging_from_json},
    {"sync_batch_norm", "Takes the statistics of batch norm over all ranks; one process where the environment names no others.",
     sync_batch_norm_from_json},
    {"tensorboard", "Writes numbers, texts, histograms and hyperparameters for TensorBoard, which may read while they are written.",
     tensorboard_from_json},
    {"terminate_on_nan", "Ends the run as failed at a NaN or infinite loss, before its update is made.",
     terminate_on_nan_from_json},
    {"throughput_monitor", "Samples, tokens and steps a second, the share of time waiting for data, and memory.",
     throughput_monitor_from_json},
    {"time_limit", "Stops the run in order after a duration, with a save.",
     time_limit_from_json},
    {"webhook", "Posts events to an address as CloudEvents, and tries again.",
     webhook_from_json},
    {"zero_redundancy", "Divides the state of the optimizer among ranks (ZeRO stage 1), beside data_parallel.",
     zero_redundancy_from_json},
});

}  // namespace

Registry<CallbackEntry>& callback_table() {
    static auto* const kTable = new Registry<CallbackEntry>("callback", kCallbacks);  // outlives whatever plug-ins left behind
    return *kTable;
}

std::span<const CallbackEntry> callback_registry() { return callback_table().entries(); }

const CallbackEntry& find_callback(std::string_view kind, std::string_view where) {
    if (const CallbackEntry* found = callback_table().find(kind)) return *found;
    throw ConfigError(fmt::format("{}{}unknown callback '{}'{} (torchbus callbacks lists them)", where, where.empty() ? "" : ": ", kind,
                                  did_you_mean(kind, callback_table().kinds())));
}

std::vector<OptionDescription> describe_callback(std::string_view kind) { return callback_table().describe(find_callback(kind)); }

}  // namespace torchbus

#include <torchbus/callbacks/registry.hpp>

#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

#include "entries.hpp"

namespace torchbus {
namespace {

constexpr auto kCallbacks = std::to_array<CallbackEntry>({
    {"device_placement", "Moves the model and every batch to one device.",
     device_placement_from_json},
    {"gradient_accumulation", "Makes one update of several batches.",
     gradient_accumulation_from_json},
    {"gradient_clipping", "Bounds the gradients of an update by norm, by value or adaptively.",
     gradient_clipping_from_json},
    {"learning_rate_schedule", "Sets the learning rate before each update by a function of the position.",
     learning_rate_schedule_from_json},
    {"limit_batches", "Ends every epoch and evaluation after so many batches.",
     limit_batches_from_json},
    {"metrics", "Mean loss and accuracy over an epoch, for training and every evaluation split.",
     metrics_from_json},
    {"mixed_precision", "Runs forward under bf16 or fp16 autocast, with loss scaling for fp16.",
     mixed_precision_from_json},
    {"progress_bar", "A bar for what is under way, and a line with its metrics when it is over.",
     progress_bar_from_json},
    {"progress_lines", "Plain lines with metrics at an interval and after every epoch: for logs.",
     progress_lines_from_json},
    {"terminate_on_nan", "Ends the run as failed at a NaN or infinite loss, before its update is made.",
     terminate_on_nan_from_json},
});

}  // namespace

std::span<const CallbackEntry> callback_registry() { return kCallbacks; }

const CallbackEntry& find_callback(std::string_view kind, std::string_view where) {
    const auto found = std::ranges::find(kCallbacks, kind, &CallbackEntry::kind);
    if (found != kCallbacks.end()) return *found;
    std::vector<std::string> known;
    for (const CallbackEntry& entry : kCallbacks) known.emplace_back(entry.kind);
    throw ConfigError(fmt::format("{}{}unknown callback '{}'{} (torchbus callbacks lists them)", where, where.empty() ? "" : ": ", kind,
                                  did_you_mean(kind, known)));
}

std::vector<OptionDescription> describe_callback(std::string_view kind) {
    OptionReader reader(nlohmann::json::object(), std::string(kind));
    find_callback(kind).from_json(reader);
    return reader.described();
}

}  // namespace torchbus

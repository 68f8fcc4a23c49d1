#pragma once
/// What each callback's file gives to the registry: reading its options and making it.

#include <memory>

#include <torchbus/callback.hpp>
#include <torchbus/option_reader.hpp>

namespace torchbus {

std::unique_ptr<Callback> device_placement_from_json(OptionReader& reader);
std::unique_ptr<Callback> gradient_accumulation_from_json(OptionReader& reader);
std::unique_ptr<Callback> gradient_clipping_from_json(OptionReader& reader);
std::unique_ptr<Callback> learning_rate_schedule_from_json(OptionReader& reader);
std::unique_ptr<Callback> limit_batches_from_json(OptionReader& reader);
std::unique_ptr<Callback> metrics_from_json(OptionReader& reader);
std::unique_ptr<Callback> mixed_precision_from_json(OptionReader& reader);
std::unique_ptr<Callback> progress_bar_from_json(OptionReader& reader);
std::unique_ptr<Callback> progress_lines_from_json(OptionReader& reader);
std::unique_ptr<Callback> terminate_on_nan_from_json(OptionReader& reader);

}  // namespace torchbus

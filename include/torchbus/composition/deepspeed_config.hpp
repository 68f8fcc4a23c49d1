#pragma once
/// DeepSpeed's JSON configuration, as it is written in the field.

#include <filesystem>
#include <optional>
#include <string>

#include <torchbus/composition/run_changes.hpp>

namespace torchbus {

/// train_batch_size = train_micro_batch_size_per_gpu × gradient_accumulation_steps × ranks; each is from 1 to 2147483647.
struct BatchTriple {
    std::optional<std::int64_t> train, micro, accumulation;
};
/// Fills in what is missing, as DeepSpeed does, and checks it. `name` is the file's.
/// Throws: ConfigError where neither batch size is given, one is out of range, or they do not multiply.
BatchTriple completed(BatchTriple given, int world_size, const std::string& name);

/// What such a file asks of the run in `run` on `world_size` ranks. Comments and commas before a closing bracket are
/// passed over. "auto" is what the run file says, or else the default of DeepSpeed. Supported are: the batch sizes,
/// optimizer, scheduler, fp16, bf16, gradient_clipping, communication_data_type, and zero_optimization of stages 0 and 1;
/// what has no effect here is named. Throws: ConfigError that names the path, what was found and what is expected: for
/// malformed JSON, a key twice, an unknown key (with the nearest), a wrong type, what is not supported and would train
/// another model.
RunChanges changes_of_deepspeed(const std::filesystem::path& file, const nlohmann::json& run, int world_size);

/// The number of ranks that its batch sizes multiply to; the accumulation is 1 where it is left out. Nothing where they do not multiply. Throws: as changes_of_deepspeed().
std::optional<int> world_size_of_deepspeed(const std::filesystem::path& file);

}  // namespace torchbus

#pragma once
/// Accelerate's YAML configuration: how many processes, and in which precision.

#include <filesystem>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include <torchbus/composition/run_changes.hpp>

namespace torchbus {

/// What of such a file is supported. `processes` are those of all machines together, as there.
struct AccelerateConfig {
    /// The section deepspeed_config: a file of DeepSpeed's, or the few values that stand in its place.
    struct DeepSpeed {
        std::string file = {};
        std::optional<std::int64_t> zero_stage = {}, accumulation = {};
        std::optional<double> clipping = {};
    };
    std::string name = {};                  ///< of the file
    std::string distributed_type = "NO";    ///< NO, MULTI_CPU, MULTI_GPU or DEEPSPEED
    std::string mixed_precision = "no";     ///< no, fp16 or bf16
    bool use_cpu = false;
    std::string gpu_ids = {};               ///< which CUDA devices processes see; empty: all
    int processes = 1, machines = 1, machine_rank = 0;
    std::string main_address = {};          ///< of machine 0
    int main_port = 0;                      ///< 0: a free one, on one machine
    std::optional<DeepSpeed> deepspeed = {};
    std::vector<std::string> not_supported = {};  ///< keys that have no effect here, in the file's order; one that another key overrides, with that key

    int processes_per_machine() const { return processes / machines; }
};

/// Reads a file that `accelerate config` or `torchbus config` has written. Scalars are taken as they are written: an unquoted
/// NO is the text. Throws: ConfigError with file and line, what was found and what is expected: for malformed YAML, a key
/// twice, an unknown key (with the nearest), a wrong type, what is not supported.
AccelerateConfig read_accelerate_config(const std::filesystem::path& file);

/// What it asks of the run in `run`, on `world_size` ranks. Throws: ConfigError where another number of processes was
/// started; as changes_of_deepspeed() for the file that it names.
std::vector<RunChanges> changes_of_accelerate(const AccelerateConfig& config, const nlohmann::json& run, int world_size);

/// As YAML that Accelerate reads, too.
std::string to_yaml(const AccelerateConfig& config);

/// Asks the questions that such a file answers; an empty answer is the default, and what makes no sense is asked again.
/// Throws: ConfigError where `answers` ends.
AccelerateConfig ask_for_config(std::istream& answers, std::ostream& questions);

}  // namespace torchbus

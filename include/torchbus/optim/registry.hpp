#pragma once
/// The optimizers, schedules and losses that run files know by name.

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include <torchbus/model.hpp>
#include <torchbus/optim/parameter_groups.hpp>
#include <torchbus/optim/schedule.hpp>
#include <torchbus/registry.hpp>
#include <torchbus/update.hpp>

namespace torchbus {

/// Makes an optimizer of these parameters, once all options are read.
using OptimizerMaker = std::function<std::shared_ptr<torch::optim::Optimizer>(std::vector<at::Tensor> parameters)>;

struct OptimizerEntry {
    std::string_view kind;
    std::string_view summary;
    OptimizerMaker (*from_json)(OptionReader& options);
};

struct ScheduleEntry {
    std::string_view kind;
    std::string_view summary;
    Schedule (*from_json)(OptionReader& options);
};

struct LossEntry {
    std::string_view kind;
    std::string_view summary;
    Loss (*from_json)(OptionReader& options);
};

/// `groups` and `decay_biases_and_norms` of an optimizer.
ParameterGroupOptions read_parameter_groups(OptionReader& reader);

/// An optimizer of named parameters, with `groups` and `decay_biases_and_norms` beside its own options.
/// Throws: ConfigError with the JSON path.
std::shared_ptr<torch::optim::Optimizer> grouped_optimizer_from_json(const nlohmann::json& json, const std::string& where,
                                                                     const std::vector<NamedTensor>& named);

/// Each has the library's entries and those of plug-ins. Thread: any.
Registry<OptimizerEntry>& optimizer_table();
Registry<ScheduleEntry>& schedule_table();
Registry<LossEntry>& loss_table();

}  // namespace torchbus

#pragma once
/// Numeric options of an optimizer's parameter groups, by name.

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/update.hpp>

namespace torch::optim {
class OptimizerParamGroup;
}

namespace torchbus {

/// learning_rate, weight_decay, and by optimizer: momentum, dampening (SGD); beta1, beta2, epsilon (Adam, AdamW, where
/// momentum is another name of beta1); learning_rate_decay, epsilon (Adagrad); momentum, alpha, epsilon (RMSprop).
/// Throws: ConfigError for an option that the optimizer does not have.
double& group_option(torch::optim::OptimizerParamGroup& group, std::string_view name);
/// All of them by name.
std::map<std::string, double> group_options(const torch::optim::OptimizerParamGroup& group);

/// The values that an optimizer's groups came with, taken once: a second run starts from them, not from where the first
/// one ended. Another optimizer under the same name of an update brings its own.
class BaseValues {
public:
    explicit BaseValues(std::string option) : option_(std::move(option)) {}
    /// One value a group. Groups added since then come with theirs.
    const std::vector<double>& of(const Update& update);
    /// By update, for SavedState.
    nlohmann::json saved() const;
    void load(const nlohmann::json& saved);

private:
    struct Values {
        std::weak_ptr<torch::optim::Optimizer> optimizer;
        std::vector<double> by_group;
        bool loaded = false;  ///< from a checkpoint: they hold for the optimizer that comes next
    };
    std::string option_;
    std::map<std::string, Values> by_update_;
};

}  // namespace torchbus

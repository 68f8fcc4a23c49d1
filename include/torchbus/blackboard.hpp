#pragma once
/// Where subscribers publish values under declared names, and others read them.
/// Names of metrics: `<role>.<metric>` with the split and the weights view in between where they are not the only
/// ones: train.loss, eval.accuracy, eval.noisy.loss, eval.noisy.ema.loss.

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace torchbus {

/// It is emptied when a training run begins, before RunConfigured: publish at that event or later.
/// Thread: the training thread.
class Blackboard {
public:
    /// Publishes a number; a later one of the same name replaces it.
    void publish(std::string_view name, double value);
    /// Publishes a number that is computed when it is read: running means that lie on a device.
    void publish_lazy(std::string_view name, std::function<double()> value);
    /// The number of that name, or nothing. Syncs: may wait for a device, for lazy values.
    std::optional<double> number(std::string_view name) const;
    bool has(std::string_view name) const { return values_.contains(name); }
    /// Forgets a name; unknown names are fine.
    void withdraw(std::string_view name);
    void clear() { values_.clear(); }
    /// All names, sorted.
    std::vector<std::string> names() const;

private:
    std::map<std::string, std::function<double()>, std::less<>> values_;
};

}  // namespace torchbus

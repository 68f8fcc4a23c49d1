#pragma once
/// Where subscribers publish values under declared names, and others read them.
/// Names of metrics: `<role>.<metric>` with the split and the weights view in between where they are not the only
/// ones: train.loss, eval.accuracy, eval.noisy.loss, eval.noisy.ema.loss.

#include <cstdint>
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
    /// How often anything was published, ever.
    std::int64_t publications() const { return publications_; }
    /// Calls `take(name, number, is_new)` for each name, sorted. Those are new that were published after the first `since`
    /// publications, and those that are computed when they are read. Syncs: as number().
    template <class Take>
    void for_each(std::int64_t since, Take&& take) const {
        for (const auto& [name, entry] : values_) take(std::string_view(name), entry.number(), entry.is_lazy() || entry.publication > since);
    }

private:
    struct Entry {
        double value = 0;
        std::function<double()> compute = {};  ///< in place of `value`, where there is one
        std::int64_t publication = 0;          ///< its number, from 1 on
        bool is_lazy() const { return static_cast<bool>(compute); }
        double number() const { return compute ? compute() : value; }
    };
    void put(std::string_view name, Entry entry);

    std::map<std::string, Entry, std::less<>> values_;
    std::int64_t publications_ = 0;
};

}  // namespace torchbus

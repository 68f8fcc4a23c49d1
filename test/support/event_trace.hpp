#pragma once
/// Records every event of a run as a line, and compares the lines with a golden file.

#include <string>
#include <vector>

#include <torchbus/callback.hpp>

namespace torchbus::test {

/// Observes every event in stage Persist, after everyone else. A line reads
///     train_step_end          epoch 0 step 1/1 micro_batch 3 samples 12 | {"loss":…}
/// where step n/m says updates made / attempted.
class EventTrace final : public Callback {
public:
    std::string kind() const override { return "recording"; }
    Declaration declare() const override { return {}; }
    void attach(Attachment& run) override;
    void detach() override { connections_.clear(); }

    const std::vector<std::string>& lines() const { return lines_; }
    /// The event names alone, in order.
    std::vector<std::string> names() const;

private:
    std::vector<std::string> lines_;
    Connections connections_;
};

/// Compares with test/golden/<name>.txt. With TORCHBUS_UPDATE_GOLDEN=1 it writes the file instead.
/// Returns an empty string, or what differs first.
std::string compare_with_golden(const std::string& name, const std::vector<std::string>& lines);

}  // namespace torchbus::test

#include "progress_text.hpp"

#include <cmath>
#include <cstdio>

#include <fmt/format.h>

namespace torchbus {
namespace {

bool is_share(std::string_view name) { return name.ends_with("accuracy"); }

}  // namespace

std::string metrics_text(const Blackboard& blackboard, std::string_view role) {
    std::string text;
    const std::string prefix = fmt::format("{}.", role);
    for (const std::string& name : blackboard.names()) {
        if (!name.starts_with(prefix)) continue;
        const double value = *blackboard.number(name);
        const std::string_view shown = std::string_view(name).substr(prefix.size());
        const std::string number = is_share(name) ? fmt::format("{:.2f} %", value * 100) : fmt::format("{:.4f}", value);
        // Loss first, as everybody looks for it there.
        if (shown == "loss") text = text.empty() ? fmt::format("loss {}", number) : fmt::format("loss {}, {}", number, text);
        else text += fmt::format("{}{} {}", text.empty() ? "" : ", ", shown, number);
    }
    return text;
}

std::string epoch_text(const Blackboard& blackboard, std::int64_t epoch, std::int64_t epochs) {
    std::string text = fmt::format("epoch {}", epoch);
    if (epochs > 0) text += fmt::format("/{}", epochs);
    std::string_view separator = ": ";
    for (const char* role : {"train", "eval"}) {
        const std::string metrics = metrics_text(blackboard, role);
        if (metrics.empty()) continue;
        text += fmt::format("{}{} {}", separator, role, metrics);
        separator = "; ";
    }
    return text;
}

std::string stop_text(const TrainingRunEnd& event) {
    return fmt::format("stopped after {} steps by {}: {}", event.position.step, event.result.requester, event.result.reason);
}

std::string roll_back_text(const RolledBack& event) {
    const auto& [batches, requester, reason] = event.left_out;
    return fmt::format("rolled back from step {} to step {} by {}, leaving out {} of epoch {}: {}", event.from.step, event.position.step, requester,
                       batches.count == 1 ? fmt::format("batch {}", batches.first + 1) : fmt::format("batches {} to {}", batches.first + 1, batches.first + batches.count), batches.epoch + 1, reason);
}

void write_to_stderr(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
}

std::string duration_text(double seconds) {
    if (!(seconds >= 0) || seconds > 1e9) return "?";
    const auto whole = static_cast<std::int64_t>(std::llround(seconds));
    const std::int64_t hours = whole / 3600, minutes = whole / 60 % 60;
    return hours > 0 ? fmt::format("{}:{:02}:{:02}", hours, minutes, whole % 60) : fmt::format("{}:{:02}", minutes, whole % 60);
}

std::string quantity_text(double value) {
    if (value >= 1e6) return fmt::format("{:.1f}M", value / 1e6);
    return value >= 1e4 ? fmt::format("{:.1f}k", value / 1e3) : fmt::format("{:.0f}", value);
}

}  // namespace torchbus

#include <torchbus/decision.hpp>

#include <algorithm>
#include <utility>

namespace torchbus {

std::string_view name_of(Decision decision) {
    constexpr std::array<std::string_view, kDecisionCount> kNames = {
        "fail_run", "stop_run", "stop_epoch", "skip_batch", "skip_update", "evaluate_now", "save_now", "roll_back", "pause", "resume", "change_option"};
    return kNames[static_cast<std::size_t>(decision)];
}

std::string_view name_of(Outcome outcome) {
    constexpr std::array<std::string_view, 4> kNames = {"finished", "stopped", "signalled", "failed"};
    return kNames[static_cast<std::size_t>(outcome)];
}

void merge(std::optional<Request>& waiting, Request later) {
    if (!waiting || (later.by_signal && !waiting->by_signal)) waiting = std::move(later);
    else waiting->changes.insert(waiting->changes.end(), later.changes.begin(), later.changes.end());
}

void Requests::ask(Decision decision, Request request) {
    const std::lock_guard lock(mutex_);
    merge(waiting_[static_cast<std::size_t>(decision)], std::move(request));
}

bool Requests::is_any_waiting() {
    const std::lock_guard lock(mutex_);
    return std::ranges::any_of(waiting_, [](const auto& request) { return request.has_value(); });
}

RequestSet Requests::take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(waiting_, {});
}

}  // namespace torchbus

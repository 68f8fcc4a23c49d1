#include "passed_on_signals.hpp"

#include <atomic>

namespace torchbus {
namespace {

/// Ranks save and stop at SIGINT and SIGTERM; that a terminal has gone is no signal of theirs.
constexpr auto kPassedOn = std::to_array<PassedOnSignal>({{SIGINT, SIGINT, true}, {SIGTERM, SIGTERM, true}, {SIGHUP, SIGTERM, true}, {SIGQUIT, SIGTERM, true}, {SIGUSR1, SIGUSR1, false}, {SIGUSR2, SIGUSR2, false}});

std::array<std::atomic<int>, kPassedOn.size()> arrived{};

extern "C" void note_for_ranks(int number) {
    for (std::size_t i = 0; i < kPassedOn.size(); ++i)
        if (kPassedOn[i].number == number) arrived[i].fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

PassedOnSignals::PassedOnSignals() {
    static_assert(kPassedOn.size() == std::tuple_size_v<decltype(former_)>);
    for (std::size_t i = 0; i < kPassedOn.size(); ++i) {
        arrived[i] = 0;
        struct sigaction action = {};
        action.sa_handler = note_for_ranks;
        ::sigaction(kPassedOn[i].number, &action, &former_[i]);
        if (kPassedOn[i].number == SIGHUP && former_[i].sa_handler == SIG_IGN) ::sigaction(SIGHUP, &former_[i], nullptr);  // as nohup has it
    }
}

PassedOnSignals::~PassedOnSignals() {
    for (std::size_t i = 0; i < kPassedOn.size(); ++i) ::sigaction(kPassedOn[i].number, &former_[i], nullptr);
}

void PassedOnSignals::take(const std::function<void(const PassedOnSignal&)>& pass_on) {
    for (std::size_t i = 0; i < kPassedOn.size(); ++i)
        for (int left = arrived[i].exchange(0); left > 0; --left) pass_on(kPassedOn[i]);
}

}  // namespace torchbus

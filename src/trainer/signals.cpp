#include "signals.hpp"

#include <csignal>
#include <unistd.h>

#include <array>
#include <atomic>
#include <mutex>
#include <utility>

#include <torchbus/error.hpp>
#include <torchbus/signals.hpp>

namespace torchbus {
namespace {

struct Known {
    int number;
    const char* name;
    bool stops;
    int exit_code;
};
constexpr std::array<Known, 4> kSignals = {{
    {SIGINT, "SIGINT", true, 128 + SIGINT},
    {SIGTERM, "SIGTERM", true, 128 + SIGTERM},
    {SIGUSR1, "SIGUSR1", false, 0},
    {SIGUSR2, "SIGUSR2", true, 0},
}};

std::mutex installing;  ///< guards the next four
bool is_installed = false, has_catcher = false, until_exit = false;
std::array<struct sigaction, kSignals.size()> former;
std::array<std::atomic<bool>, kSignals.size()> arrived{};
std::atomic<int> endings{0};  ///< SIGINT and SIGTERM since the handlers were installed
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free, "the handler may only touch lock-free atomics");

extern "C" void note_signal(int number) {
    const bool ends = number == SIGINT || number == SIGTERM;
    if (ends && endings.fetch_add(1) > 0) _exit(128 + number);
    for (std::size_t i = 0; i < kSignals.size(); ++i)
        if (kSignals[i].number == number) arrived[i] = true;
}

void install() {
    if (std::exchange(is_installed, true)) return;
    for (auto& flag : arrived) flag = false;
    endings = 0;
    struct sigaction action = {};
    action.sa_handler = note_signal;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;
    for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i].number, &action, &former[i]);
}

}  // namespace

void catch_signals_until_exit() {
    const std::lock_guard lock(installing);
    install();
    until_exit = true;
}

SignalCatcher::SignalCatcher() {
    const std::lock_guard lock(installing);
    if (std::exchange(has_catcher, true)) return;
    active_ = true;
    install();
}

SignalCatcher::~SignalCatcher() {
    if (!active_) return;
    const std::lock_guard lock(installing);
    has_catcher = false;
    if (until_exit) return;
    for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i].number, &former[i], nullptr);
    is_installed = false;
    // What arrived after the last look finds the handler that it would have found without a run; but a save that was asked
    // for when there is nothing more to save ends no process.
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
        if (!arrived[i]) continue;
        if (kSignals[i].exit_code != 0 || former[i].sa_handler != SIG_DFL)
            std::raise(kSignals[i].number);
        else
            warn(std::string(kSignals[i].name) + " was received when the run was over; there is nothing more to save");
    }
}

void SignalCatcher::poll(Requests& requests) {
    if (!active_) return;
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
        if (!arrived[i].load(std::memory_order_relaxed)) continue;
        arrived[i] = false;
        const Known& signal = kSignals[i];
        const Request request{signal.name, std::string(signal.name) + " was received", 0, signal.exit_code, true};
        requests.ask(Decision::SaveNow, request);
        if (signal.stops) requests.ask(Decision::StopRun, request);
    }
}

}  // namespace torchbus

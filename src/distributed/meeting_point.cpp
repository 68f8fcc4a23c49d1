#include "meeting_point.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <utility>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "c10d_process.hpp"

namespace torchbus {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kShortWait{200};  ///< for an answer; who has none by then goes on without
constexpr milliseconds kLongestSilence{3000};   ///< without one

c10::intrusive_ptr<c10d::TCPStore> open_store_of(const LaunchOptions& options, const std::string& address) {
    const bool is_server = options.node == 0;
    const auto began = steady_clock::now();
    try {
        return open_store(options.master_address, options.master_port, is_server, options.join_timeout);
    } catch (const std::exception& error) {
        const std::string waited = seconds_text(std::chrono::duration_cast<milliseconds>(steady_clock::now() - began));
        if (const std::string unknown = why_unknown(options.master_address); !unknown.empty())
            throw DistributedError(fmt::format("the meeting point {} was not found in {}: '{}' has no address here ({}); give that of node 0 to --master-addr", address, waited, options.master_address, unknown));
        if (is_server) throw DistributedError(fmt::format("cannot open the meeting point {}: {}; is the port taken? give another --master-port", address, first_line(error)));
        throw DistributedError(fmt::format("nobody answers at the meeting point {} after {}: {}; is the launcher of node 0 running there?", address, waited, first_line(error)));
    }
}

}  // namespace

/// Between who asks and the thread that does.
struct MeetingPoint::Exchange {
    explicit Exchange(c10::intrusive_ptr<c10d::TCPStore> its_store) : store(std::move(its_store)) {}
    const c10::intrusive_ptr<c10d::TCPStore> store;
    mutable std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::string> to_say;  // guarded by mutex, like all below
    std::vector<std::string> question;  // that waits for an answer
    std::set<std::string> said;         // what was answered with yes: it stays so
    std::optional<steady_clock::time_point> busy_since;
    bool is_over = false, has_ended = false;
    std::optional<std::string> lost;

    bool has_work() const { return !question.empty() || !to_say.empty(); }
    bool is_said(const std::vector<std::string>& keys) const {
        return std::ranges::all_of(keys, [this](const std::string& key) { return said.contains(key); });
    }
    bool is_silent() const { return busy_since && steady_clock::now() - *busy_since > kLongestSilence; }
    void run() {
        std::unique_lock lock(mutex);
        while (changed.wait(lock, [this] { return is_over || has_work(); }), !is_over && !lost) {
            const bool says = !to_say.empty();
            const std::string word = says ? to_say.front() : "";
            const std::vector<std::string> keys = question;
            busy_since = steady_clock::now();
            lock.unlock();
            bool found = false;
            std::optional<std::string> failure;
            try {
                const QuietC10d quiet;  // what fails is told
                if (says) store->set(word, {});
                else found = store->check(keys);
            } catch (const std::exception& error) {
                failure = first_line(error);
            }
            lock.lock();
            busy_since.reset();
            lost = std::move(failure);
            if (says) to_say.pop_front();
            else question.clear();
            if (found) said.insert(keys.begin(), keys.end());
            changed.notify_all();
        }
        has_ended = true;
        changed.notify_all();
    }
    template <class Done>
    void wait_shortly(std::unique_lock<std::mutex>& lock, Done&& done) {
        changed.notify_all();
        if (!busy_since || steady_clock::now() - *busy_since < kShortWait) changed.wait_for(lock, kShortWait, [&] { return lost || done(); });
    }
};

MeetingPoint::MeetingPoint(const LaunchOptions& options) : address_(fmt::format("{}:{}", options.master_address, options.master_port)) {
    auto store = open_store_of(options, address_);
    port_ = store->getPort();
    exchange_ = std::make_shared<Exchange>(std::move(store));
    thread_ = std::thread([exchange = exchange_] { exchange->run(); });
}

MeetingPoint::~MeetingPoint() {
    std::unique_lock lock(exchange_->mutex);
    exchange_->wait_shortly(lock, [this] { return exchange_->to_say.empty(); });
    exchange_->is_over = true;
    exchange_->changed.notify_all();
    const bool has_ended = exchange_->changed.wait_for(lock, kShortWait, [this] { return exchange_->has_ended; });
    lock.unlock();
    if (has_ended) thread_.join();
    else thread_.detach();
}

void MeetingPoint::say(const std::string& key) {
    std::unique_lock lock(exchange_->mutex);
    if (exchange_->lost) return;
    exchange_->to_say.push_back(key);
    exchange_->wait_shortly(lock, [this] { return exchange_->to_say.empty(); });
}

bool MeetingPoint::is_said(const std::vector<std::string>& keys) {
    std::unique_lock lock(exchange_->mutex);
    if (exchange_->lost || exchange_->is_said(keys)) return !exchange_->lost;
    if (exchange_->question.empty()) exchange_->question = keys;  // one at a time
    exchange_->wait_shortly(lock, [this] { return exchange_->question.empty(); });
    return !exchange_->lost && exchange_->is_said(keys);
}

bool MeetingPoint::is_silent() const {
    const std::lock_guard lock(exchange_->mutex);
    return exchange_->is_silent();
}

std::optional<std::string> MeetingPoint::lost() const {
    const std::lock_guard lock(exchange_->mutex);
    return exchange_->lost;
}

}  // namespace torchbus

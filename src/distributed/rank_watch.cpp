#include "rank_watch.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <future>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/csrc/distributed/c10d/FlightRecorder.hpp>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/error.hpp>

#include "c10d_process.hpp"

namespace torchbus {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::size_t kKeptCollectives = 24;
constexpr milliseconds kLongestAnswer{4000};  ///< of the store: it is silent after that
constexpr milliseconds kLongestWrite{1000};

double seconds_since(steady_clock::time_point time) { return std::chrono::duration<double>(steady_clock::now() - time).count(); }
/// Whatever bytes a message has.
std::string dumped(const json& values) { return values.dump(-1, ' ', false, json::error_handler_t::replace); }
std::string key_of(int rank) { return fmt::format("watch/{}", rank); }

/// Of this process; more than one where ranks are threads.
struct Watches {
    std::mutex mutex;
    std::set<RankWatch*> all;
    std::terminate_handler before = nullptr;
};
Watches& watches() {
    static auto* const kWatches = new Watches;  // a thread of Gloo's may end the process at any time
    return *kWatches;
}

/// Gloo ends the process where a message has another size than was expected: what this rank has begun is put down first, from
/// which the others see who is to blame.
[[noreturn]] void tell_and_terminate() {
    for (RankWatch* watch : watches().all) watch->last_words();
    if (watches().before) watches().before();
    std::abort();
}

}  // namespace

/// What is put down at the store, by a thread that may be left alone.
struct RankWatch::Beats {
    Beats(std::string its_key, c10::intrusive_ptr<c10d::Store> own) : key(std::move(its_key)), store(std::move(own)) {}
    const std::string key;
    const c10::intrusive_ptr<c10d::Store> store;
    std::mutex mutex;
    std::condition_variable changed;
    std::string status;  // guarded by mutex, like all below
    std::int64_t put = 0, written = 0;
    bool looks_for_loss = false, has_lost = false, is_over = false, has_ended = false;

    void put_down(std::string text) {
        const std::lock_guard lock(mutex);
        status = std::move(text);
        ++put;
        changed.notify_all();
    }
    void wait_until_written() {
        std::unique_lock lock(mutex);
        changed.wait_for(lock, kLongestWrite, [this, last = put] { return written >= last || has_ended; });
    }
    bool ends_in_time() {
        std::unique_lock lock(mutex);
        is_over = true;
        changed.notify_all();
        return changed.wait_for(lock, kLongestWrite, [this] { return has_ended; });
    }
    void run() {
        std::unique_lock lock(mutex);
        while (changed.wait(lock, [this] { return is_over || put > written; }), put > written) {
            const std::string text = status;
            const std::int64_t number = put;
            const bool looks = looks_for_loss && !has_lost;
            lock.unlock();
            bool has_first = false;
            try {
                const QuietC10d quiet;
                store->set(key, bytes_of(text));
                has_first = looks && store->check({"watch/first"});
            } catch (const std::exception&) {
                // The store has gone with its process, as it does when all is well, too: who waits for that one is told so.
            }
            lock.lock();
            written = number;
            has_lost = has_lost || has_first;
            changed.notify_all();
        }
        has_ended = true;
        changed.notify_all();
    }
};

/// What is asked of the store by threads that may be left alone.
struct RankWatch::Questions {
    Questions(Ranks of_rank, std::chrono::milliseconds beat, c10::intrusive_ptr<c10d::Store> own) : ranks(std::move(of_rank)), interval(beat), store(std::move(own)) {}
    Ranks ranks;
    std::chrono::milliseconds interval;
    c10::intrusive_ptr<c10d::Store> store;
    std::atomic<bool> has_fallen_silent = false;  ///< somebody waits for it still, and nobody does a second time

    std::vector<RankStatus> statuses() {
        std::vector<RankStatus> all;
        for (int rank = 0; rank < ranks.world_size; ++rank) all.push_back(status_from(json::parse(text_of(store->get(key_of(rank))))));
        return all;
    }
    std::string blame() {
        const auto before = statuses();
        std::this_thread::sleep_for(std::max(interval * 5 / 2, milliseconds(250)));  // who lives has put down what it does meanwhile
        auto now = statuses();
        for (std::size_t rank = 0; rank < now.size(); ++rank) now[rank].is_silent = now[rank].beat == before[rank].beat;
        return blamed(now);
    }
    /// Of another rank.
    std::string first_failure() {
        if (!store->check({"watch/first"})) return "";
        const json first = json::parse(text_of(store->get("watch/first")));
        return first.at("rank") == ranks.rank ? std::string() : first.at("words").get<std::string>();
    }
    std::string host() const { return ranks.launcher_hosts_store ? "the launcher" : "rank 0"; }

    /// What `ask` finds, or what keeps it from finding anything.
    static std::string answer(const std::shared_ptr<Questions>& questions, const std::function<std::string(Questions&)>& ask) {
        const std::string silence = fmt::format("the meeting point {}:{} does not answer: {}, which hosts it, is stopped or cannot be reached", questions->ranks.master_address, questions->ranks.master_port, questions->host());
        if (questions->has_fallen_silent) return silence;
        const auto promise = std::make_shared<std::promise<std::string>>();
        std::future<std::string> words = promise->get_future();
        std::thread([questions, promise, ask] {
            const QuietC10d quiet;  // what fails here is told
            try {
                promise->set_value(ask(*questions));
            } catch (const std::exception&) {
                promise->set_value(fmt::format("the meeting point is gone, and with it {}, which hosted it", questions->host()));
            }
            questions->has_fallen_silent = false;  // after the answer: who has given it up looks once more
        }).detach();
        if (words.wait_for(kLongestAnswer + questions->interval * 3) == std::future_status::ready) return words.get();
        questions->has_fallen_silent = true;
        if (words.wait_for(milliseconds(0)) == std::future_status::ready) questions->has_fallen_silent = false;
        return silence;
    }
};

RankWatch::RankWatch(const Ranks& ranks, const WorldOptions& options, const c10d::Store& store)
    : ranks_(ranks), options_(options), interval_(std::clamp(milliseconds(5 * ranks.world_size), milliseconds(20), milliseconds(1000))) {
    auto& shared = const_cast<c10d::Store&>(store);  // to clone one is to open a connection
    beats_ = std::make_shared<Beats>(key_of(ranks.rank), shared.clone());
    writer_ = std::thread([beats = beats_] { beats->run(); });
    questions_ = std::make_shared<Questions>(ranks, interval_, shared.clone());
    status_.rank = ranks.rank;
    beats_->put_down(next_status());
    {
        const std::lock_guard lock(watches().mutex);
        if (watches().all.empty()) watches().before = std::set_terminate(tell_and_terminate);
        watches().all.insert(this);
    }
    thread_ = std::thread([this] { beat(); });
}

RankWatch::~RankWatch() {
    {
        const std::lock_guard lock(watches().mutex);
        watches().all.erase(this);
        if (watches().all.empty()) std::set_terminate(watches().before);
    }
    {
        const std::lock_guard lock(mutex_);
        is_over_ = true;
    }
    wakes_.notify_all();
    thread_.join();
    if (beats_->ends_in_time()) writer_.join();
    else writer_.detach();
}

void RankWatch::at(std::string_view event, std::int64_t epoch, std::int64_t step) {
    const std::lock_guard lock(mutex_);
    status_.event = event;
    status_.epoch = epoch;
    status_.step = step;
    event_time_ = steady_clock::now();
}

void RankWatch::begin(std::string_view collective) {
    const std::lock_guard lock(mutex_);
    auto& all = status_.collectives;
    const BegunCollective before = all.empty() ? BegunCollective{} : all.back();
    all.push_back({before.number + 1, std::string(collective), status_.step, status_.step - before.step});
    if (all.size() > kKeptCollectives) all.pop_front();
    begun_time_ = steady_clock::now();
    has_warned_ = false;
}

std::string RankWatch::next_status() {
    const std::lock_guard lock(mutex_);
    ++status_.beat;
    status_.since_s = seconds_since(event_time_);
    return dumped(to_values(status_));
}

/// Returns when it is there, or the store is silent.
void RankWatch::put_down() {
    beats_->put_down(next_status());
    beats_->wait_until_written();
}

milliseconds RankWatch::patience() const { return std::min<milliseconds>(options_.timeout / 2, std::chrono::seconds(60)); }

void RankWatch::beat() {
    std::unique_lock lock(mutex_);
    while (!wakes_.wait_for(lock, interval_, [this] { return is_over_; })) {
        const bool waits = !has_warned_ && !status_.collectives.empty() && steady_clock::now() - std::max(begun_time_, event_time_) > patience();
        has_warned_ = has_warned_ || waits;
        lock.unlock();
        beats_->put_down(next_status());
        look_for_loss();
        if (waits) warn_of_wait();
        lock.lock();
    }
}

void RankWatch::end_on_loss(std::function<void()> end, std::string (*flight_record)()) {
    const std::lock_guard lock(mutex_);
    end_ = std::move(end);
    flight_record_ = flight_record;
    const std::lock_guard beats_lock(beats_->mutex);
    beats_->looks_for_loss = true;
}

void RankWatch::look_for_loss() {
    {
        const std::lock_guard lock(beats_->mutex);
        if (!beats_->has_lost) return;
    }
    std::function<void()> end;
    {
        const std::lock_guard lock(mutex_);
        end = std::exchange(end_, nullptr);
    }
    if (end) end();
}

/// By the first rank of those that wait.
void RankWatch::warn_of_wait() {
    const std::string words = Questions::answer(questions_, [](Questions& questions) { return questions.blame(); });
    const auto is_named = [&](int rank) { return words.find(fmt::format("rank {} ", rank)) != std::string::npos; };
    int first = 0;
    while (first < ranks_.world_size && is_named(first)) ++first;
    if (!words.empty() && first == ranks_.rank) warn(fmt::format("the ranks have waited for each other for {} now: {}", seconds_text(patience()), words));
}

void RankWatch::last_words() {
    put_down();
    if (ranks_.rank != 0 || ranks_.launcher_hosts_store) return;
    shut_down_connections_but(ranks_.master_port);
    std::this_thread::sleep_for(kLastWords);  // the store goes with this process
}

void RankWatch::leave(std::string_view why) {
    put_down();
    json words;
    {
        const std::lock_guard lock(mutex_);
        words = {{"rank", ranks_.rank}, {"words", fmt::format("rank {} failed at {}: {}", ranks_.rank, place_of(status_), why)}};
    }
    Questions::answer(questions_, [words](Questions& questions) {
        if (questions.store->add("watch/left", 1) == 1) questions.store->set("watch/first", bytes_of(dumped(words)));
        return std::string();
    });
}

std::string RankWatch::diagnosis() {
    put_down();
    return Questions::answer(questions_, [](Questions& questions) {
        if (std::string first = questions.first_failure(); !first.empty()) return first;
        const std::string words = questions.blame();
        if (std::string late = questions.first_failure(); !late.empty()) return late;  // it has said so meanwhile
        return words;
    });
}

void RankWatch::write_record(std::string_view why) const {
    if (options_.record_folder.empty()) return;
    json record;
    std::string (*of_device)() = nullptr;
    {
        const std::lock_guard lock(mutex_);
        record = to_values(status_);
        of_device = flight_record_;
    }
    record["error"] = why;
    if (of_device) record["flight_record_of_device"] = json::parse(of_device(), nullptr, /*allow_exceptions=*/false);
    record["flight_record"] = json::parse(c10d::dump_fr_trace_json(/*includeCollectives=*/true, /*onlyActive=*/false, "gloo"), nullptr, /*allow_exceptions=*/false);
    try {
        AtomicFile file(options_.record_folder / fmt::format("rank_{}.json", ranks_.rank));
        file.write(record.dump(1, ' ', false, json::error_handler_t::replace));
        file.commit();
    } catch (const std::exception& error) {
        warn(fmt::format("the record of rank {} could not be written: {}", ranks_.rank, error.what()));
    }
}

}  // namespace torchbus

#include "rank_watch.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <future>
#include <map>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>
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

double seconds_since(steady_clock::time_point time) { return std::chrono::duration<double>(steady_clock::now() - time).count(); }
/// Whatever bytes a message has.
std::string dumped(const json& values) { return values.dump(-1, ' ', false, json::error_handler_t::replace); }
std::string key_of(int rank) { return fmt::format("watch/{}", rank); }

std::string place_of(const RankStatus& status) {
    if (status.event.empty()) return "its start";
    return fmt::format("epoch {}, step {}, event {}", status.epoch, status.step, status.event);
}

const BegunCollective* find(const RankStatus& status, std::int64_t number) {
    const auto found = std::ranges::find(status.collectives, number, &BegunCollective::number);
    return found == status.collectives.end() ? nullptr : &*found;
}

/// What followed the same collective the last time, in a history that all share: the one that is due.
const BegunCollective* due_after(const RankStatus& history, std::int64_t number) {
    const BegunCollective* before = find(history, number - 1);
    if (!before) return nullptr;
    for (auto one = history.collectives.rbegin(); one != history.collectives.rend(); ++one)
        if (one->number < before->number && one->name == before->name && one->steps_since == before->steps_since) return find(history, one->number + 1);
    return nullptr;
}

bool alike(const BegunCollective& one, const BegunCollective& other) { return one.name == other.name && one.steps_since == other.steps_since; }

/// The first collective that not all have begun alike; names who departs from what was due.
std::string departed(const std::vector<RankStatus>& statuses) {
    std::int64_t first = 0, last = 0;
    for (const RankStatus& status : statuses) {
        if (status.collectives.empty()) return "";
        first = std::max(first, status.collectives.front().number);
        last = std::max(last, status.collectives.back().number);
    }
    for (std::int64_t number = first; number <= last; ++number) {
        std::map<std::string, std::vector<int>> ranks;  // by what they have begun
        for (const RankStatus& status : statuses)
            if (const BegunCollective* own = find(status, number)) ranks[fmt::format("{} of step {}", own->name, own->step)].push_back(status.rank);
        if (ranks.size() < 2) continue;
        const BegunCollective* due = due_after(statuses.front(), number);
        std::vector<std::string> words;
        for (const RankStatus& status : statuses) {
            const BegunCollective* own = find(status, number);
            if (due && own && !alike(*own, *due)) words.push_back(fmt::format("rank {} ({}) began {} of step {} where {} was due", status.rank, place_of(status), own->name, own->step, due->name));
        }
        if (!words.empty()) return fmt::format("{}; all ranks must begin the same collectives in the same order", fmt::join(words, "; "));
        for (const auto& [what, who] : ranks) words.push_back(fmt::format("rank{} {} began {}", who.size() == 1 ? "" : "s", fmt::join(who, ", "), what));
        return fmt::format("{}; all ranks must begin the same collectives in the same order", fmt::join(words, ", "));
    }
    return "";
}

std::string silent(const std::vector<RankStatus>& statuses) {
    std::vector<std::string> words;
    for (const RankStatus& status : statuses)
        if (status.is_silent) words.push_back(fmt::format("rank {} does not answer: it has died, is stopped or cannot be reached; it was last seen at {}", status.rank, place_of(status)));
    return fmt::format("{}", fmt::join(words, "; "));
}

std::string behind(const std::vector<RankStatus>& statuses) {
    std::int64_t most = 0;
    const auto begun = [](const RankStatus& status) { return status.collectives.empty() ? 0 : status.collectives.back().number; };
    for (const RankStatus& status : statuses) most = std::max(most, begun(status));
    std::vector<std::string> words;
    for (const RankStatus& status : statuses)
        if (begun(status) < most) words.push_back(fmt::format("rank {} has not come to it: it is at {}, since {:.3g} s", status.rank, place_of(status), status.since_s));
    return fmt::format("{}", fmt::join(words, "; "));
}

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

std::string blamed(const std::vector<RankStatus>& statuses) {
    // First what was begun: who sends what nobody expects may have ended by it.
    if (std::string words = departed(statuses); !words.empty()) return words;
    if (std::string words = silent(statuses); !words.empty()) return words;
    return behind(statuses);
}

json to_values(const RankStatus& status) {
    json collectives = json::array();
    for (const auto& [number, name, step, steps_since] : status.collectives) collectives.push_back({number, name, step, steps_since});
    return {{"rank", status.rank}, {"beat", status.beat}, {"event", status.event}, {"epoch", status.epoch}, {"step", status.step}, {"since_s", status.since_s}, {"collectives", std::move(collectives)}};
}

RankStatus status_from(const json& values) {
    RankStatus status{.rank = values.at("rank"), .beat = values.at("beat"), .event = values.at("event"), .epoch = values.at("epoch"), .step = values.at("step"), .since_s = values.at("since_s")};
    for (const json& one : values.at("collectives")) status.collectives.push_back({one[0], one[1], one[2], one[3]});
    return status;
}

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
    beats_ = shared.clone();
    questions_ = std::make_shared<Questions>(ranks, interval_, shared.clone());
    status_.rank = ranks.rank;
    put_down();
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

void RankWatch::put_down() {
    std::string text;
    {
        const std::lock_guard lock(mutex_);
        ++status_.beat;
        status_.since_s = seconds_since(event_time_);
        text = dumped(to_values(status_));
    }
    const QuietC10d quiet;
    try {
        beats_->set(key_of(ranks_.rank), bytes_of(text));
    } catch (const std::exception&) {
        // The store has gone with its process: who waits for that one is told so.
    }
}

milliseconds RankWatch::patience() const { return std::min<milliseconds>(options_.timeout / 2, std::chrono::seconds(60)); }

void RankWatch::beat() {
    std::unique_lock lock(mutex_);
    while (!wakes_.wait_for(lock, interval_, [this] { return is_over_; })) {
        const bool waits = !has_warned_ && !status_.collectives.empty() && steady_clock::now() - std::max(begun_time_, event_time_) > patience();
        has_warned_ = has_warned_ || waits;
        lock.unlock();
        put_down();
        look_for_loss();
        if (waits) warn_of_wait();
        lock.lock();
    }
}

void RankWatch::end_on_loss(std::function<void()> end, std::string (*flight_record)()) {
    const std::lock_guard lock(mutex_);
    end_ = std::move(end);
    flight_record_ = flight_record;
}

void RankWatch::look_for_loss() {
    std::function<void()> end;
    {
        const std::lock_guard lock(mutex_);
        end = end_;
    }
    if (!end) return;
    const QuietC10d quiet;
    try {
        if (!beats_->check({"watch/first"})) return;
    } catch (const std::exception&) {
        return;  // the store has gone, as it does with who hosts it when all is well, too
    }
    {
        const std::lock_guard lock(mutex_);
        end_ = nullptr;
    }
    end();
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

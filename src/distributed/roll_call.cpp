#include "roll_call.hpp"

#include <unistd.h>

#include <algorithm>
#include <thread>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

#include "c10d_process.hpp"

namespace torchbus {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

/// Every rank puts down who it is; rank 0 says to all when everybody is there, or what is wrong.
class RollCall {
public:
    RollCall(const Ranks& ranks, const WorldOptions& options, c10d::Store& store) : ranks_(ranks), options_(options), store_(store) {}
    void run() {
        const bool is_second = store_.add(fmt::format("came/{}", ranks_.rank), 1) > 1;
        const nlohmann::json self = {{"host", host()}, {"process", ::getpid()}, {"world_size", ranks_.world_size}};
        if (is_second) {
            const std::string problem = fmt::format("rank {} came twice: as process {} on {} and as {}", ranks_.rank, ::getpid(), host(), described(ranks_.rank));
            store_.set("verdict", bytes_of(problem));  // for all: nobody can tell which of the two is meant
            fail(ranks_, problem + "; give every process another RANK");
        }
        store_.set(fmt::format("rank/{}", ranks_.rank), bytes_of(self.dump()));
        if (ranks_.rank == 0) judge();
        hear();
    }

private:
    static std::string host() {
        char name[256] = {};
        return ::gethostname(name, sizeof name - 1) == 0 ? name : "an unknown host";
    }
    std::string described(int rank) {
        const std::string key = fmt::format("rank/{}", rank);
        try {
            store_.wait({key}, std::chrono::seconds(2));  // it may be about to say so
        } catch (const std::exception&) {
            return "another one";
        }
        const auto other = nlohmann::json::parse(text_of(store_.get(key)));
        return fmt::format("process {} on {}", other.at("process").get<int>(), other.at("host").get<std::string>());
    }
    std::vector<int> missing() {
        std::vector<int> ranks;
        for (int rank = 0; rank < ranks_.world_size; ++rank)
            if (!store_.check({fmt::format("rank/{}", rank)})) ranks.push_back(rank);
        return ranks;
    }
    void judge() {
        std::vector<std::string> everybody;
        for (int rank = 0; rank < ranks_.world_size; ++rank) everybody.push_back(fmt::format("rank/{}", rank));
        const auto deadline = steady_clock::now() + options_.join_timeout;
        while (!store_.check(everybody) && steady_clock::now() < deadline && !store_.check({"verdict"})) std::this_thread::sleep_for(milliseconds(10));
        const std::vector<int> absent = missing();
        present_ -= static_cast<std::int64_t>(absent.size());
        if (store_.check({"verdict"})) return;
        std::vector<std::string> problems;
        if (!absent.empty()) problems.push_back(fmt::format("after {} rank{} {} {} not there", seconds_text(options_.join_timeout), absent.size() == 1 ? "" : "s", fmt::join(absent, ", "), absent.size() == 1 ? "is" : "are"));
        for (int rank = 1; rank < ranks_.world_size; ++rank) {
            if (std::ranges::find(absent, rank) != absent.end()) continue;
            const auto other = nlohmann::json::parse(text_of(store_.get(fmt::format("rank/{}", rank))));
            if (const int size = other.at("world_size"); size != ranks_.world_size)
                problems.push_back(fmt::format("rank {} (process {} on {}) expects {} ranks, rank 0 expects {}; give all of them the same WORLD_SIZE", rank, other.at("process").get<int>(),
                                               other.at("host").get<std::string>(), size, ranks_.world_size));
        }
        store_.set("verdict", bytes_of(fmt::format("{}", fmt::join(problems, "; "))));
    }
    void hear() {
        std::string verdict;
        try {
            // A little more than rank 0 waits, so that its words are heard.
            store_.wait({"verdict"}, options_.join_timeout + std::chrono::seconds(5));
            verdict = text_of(store_.get("verdict"));
        } catch (const std::exception& error) {
            fail(ranks_, fmt::format("rank 0 did not say that all are there, at {}, within {}: {}", address_of(ranks_), seconds_text(options_.join_timeout), first_line(error)));
        }
        // The store may go with rank 0: it waits until all who are there have heard.
        store_.add("heard", 1);
        const auto deadline = steady_clock::now() + std::chrono::seconds(5);
        while (ranks_.rank == 0 && store_.add("heard", 0) < present_ && steady_clock::now() < deadline) std::this_thread::sleep_for(milliseconds(1));
        if (!verdict.empty()) fail(ranks_, verdict);
    }

    const Ranks& ranks_;
    const WorldOptions& options_;
    c10d::Store& store_;
    std::int64_t present_ = ranks_.world_size;  ///< as rank 0 has found them
};

}  // namespace

std::string address_of(const Ranks& ranks) { return fmt::format("{}:{}", ranks.master_address, ranks.master_port); }

void fail(const Ranks& ranks, const std::string& what) { throw DistributedError(fmt::format("rank {} of {}: {}", ranks.rank, ranks.world_size, what)); }

void call_roll(const Ranks& ranks, const WorldOptions& options, c10d::Store& store) { RollCall(ranks, options, store).run(); }

}  // namespace torchbus

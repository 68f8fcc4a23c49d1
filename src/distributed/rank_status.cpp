#include "rank_status.hpp"

#include <algorithm>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

namespace torchbus {
namespace {

using nlohmann::json;

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

}  // namespace

std::string place_of(const RankStatus& status) {
    if (status.event.empty()) return "its start";
    return fmt::format("epoch {}, step {}, event {}", status.epoch, status.step, status.event);
}

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

}  // namespace torchbus

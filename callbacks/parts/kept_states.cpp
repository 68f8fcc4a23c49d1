#include "kept_states.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace torchbus {

std::string KeptStates::whole_name(const std::filesystem::path& folder) {
    std::error_code status;
    const auto whole = std::filesystem::weakly_canonical(folder, status);
    return status ? folder.string() : whole.string();
}

std::string WrittenState::name() const { return fmt::format("step_{}", step); }

void KeptStates::add(WrittenState state) {
    if (const auto former = std::ranges::find(states_, state.step, &WrittenState::step); former != states_.end()) {
        state.asked = state.asked || former->asked;
        if (!state.score) state.score = former->score;
        states_.erase(former);
    }
    states_.push_back(state);
}

std::vector<WrittenState> KeptStates::best_first() const {
    std::vector<WrittenState> scored;
    std::ranges::copy_if(states_, std::back_inserter(scored), [](const WrittenState& state) { return state.score.has_value(); });
    std::ranges::stable_sort(scored, [&](double one, double other) { return is_better(one, other, rules_.goal); }, [](const WrittenState& state) { return *state.score; });
    return scored;
}

std::optional<WrittenState> KeptStates::best() const {
    const auto scored = best_first();
    return scored.empty() ? std::nullopt : std::optional(scored.front());
}

std::vector<WrittenState> KeptStates::take_superfluous() {
    std::vector<WrittenState> taken, best = best_first();
    best.resize(std::min(best.size(), static_cast<std::size_t>(rules_.best)));
    const std::size_t newest = rules_.newest == 0 ? states_.size() : std::min(states_.size(), static_cast<std::size_t>(rules_.newest));
    for (std::size_t older = states_.size() - newest; older-- > 0;) {
        const WrittenState& state = states_[older];
        const bool for_ever = (rules_.every > 0 && state.step % rules_.every == 0) || (rules_.asked && state.asked);
        if (for_ever || std::ranges::find(best, state.step, &WrittenState::step) != best.end()) continue;
        taken.insert(taken.begin(), state);
        states_.erase(states_.begin() + static_cast<std::ptrdiff_t>(older));
    }
    return taken;
}

/// Version 1 had names only, and no folder.
SavedState KeptStates::saved(const std::filesystem::path& folder) const {
    nlohmann::json written = nlohmann::json::array();
    for (const WrittenState& state : states_) {
        written.push_back({{"step", state.step}, {"asked", state.asked}});
        if (state.score) written.back()["score"] = *state.score;
    }
    return {{{"written", std::move(written)}, {"folder", whole_name(folder)}}, {}, 2};
}

void KeptStates::load(const SavedState& state, const std::filesystem::path& folder) {
    states_.clear();
    if (state.values.contains("folder") && state.values.at("folder") != whole_name(folder)) return;
    for (const nlohmann::json& one : state.values.at("written")) {
        if (state.version < 2) {
            states_.push_back({std::stoll(one.get<std::string>().substr(std::string_view("step_").size()))});
            continue;
        }
        states_.push_back({one.at("step"), one.at("asked")});
        if (one.contains("score")) states_.back().score = one.at("score").get<double>();
    }
    std::error_code status;
    std::erase_if(states_, [&](const WrittenState& one) { return !std::filesystem::exists(folder / one.name(), status); });
}

}  // namespace torchbus

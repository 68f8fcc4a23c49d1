#pragma once
/// Which of the training states that a run has written stay, and which go.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <torchbus/run_state.hpp>

#include "monitor.hpp"

namespace torchbus {

struct WrittenState {
    std::int64_t step = 0;
    bool asked = false;                   ///< by others than who saves
    std::optional<double> score = {};     ///< what is monitored, where that was measured with these weights
    std::string name() const;             ///< within its folder: step_<n>
};

struct KeepRules {
    std::int64_t newest = 0;  ///< how many; 0: all
    std::int64_t every = 0;   ///< steps that are a multiple of it stay for ever; 0: none
    bool asked = false;       ///< whether those that were asked for stay for ever
    std::int64_t best = 0;    ///< how many by their score; the earlier of equal ones
    Goal goal = Goal::Min;
};

/// In the order in which they were written.
class KeptStates {
public:
    explicit KeptStates(KeepRules rules) : rules_(rules) {}

    /// One of the same step is replaced; that it was asked for, and its score, are kept.
    void add(WrittenState state);
    /// Takes those that the rules let go.
    std::vector<WrittenState> take_superfluous();
    void put_back(const std::vector<WrittenState>& states) { states_.insert(states_.begin(), states.begin(), states.end()); }
    std::optional<WrittenState> best() const;
    std::vector<WrittenState> newest_first() const { return {states_.rbegin(), states_.rend()}; }
    bool is_newest(std::int64_t step) const { return !states_.empty() && states_.back().step == step; }
    void clear() { states_.clear(); }

    /// A folder by its whole name, however it was given.
    static std::string whole_name(const std::filesystem::path& folder);
    SavedState saved(const std::filesystem::path& folder) const;
    /// Those of another folder are none of this saver's: there they stay. Those that are gone, as after another run from the
    /// same state, are forgotten.
    void load(const SavedState& state, const std::filesystem::path& folder);

private:
    std::vector<WrittenState> best_first() const;
    std::vector<WrittenState> states_;
    KeepRules rules_;
};

}  // namespace torchbus

#pragma once
/// The parts of a trainer that can be saved. See run_state.hpp for their names.

#include <functional>

#include <torchbus/bus.hpp>
#include <torchbus/callback.hpp>
#include <torchbus/data/loader.hpp>
#include <torchbus/run_history.hpp>
#include <torchbus/update.hpp>

#include "run_progress.hpp"

namespace torchbus {

class TrainerRunState final : public RunState {
public:
    /// Where the parts lie; they live longer than this.
    struct Sources {
        Model& model;
        std::vector<Update>& updates;
        Bus& bus;
        std::function<std::vector<std::pair<std::string, Callback*>>()> callbacks;
        std::function<const nlohmann::json&()> changed_options;
        std::function<void(const nlohmann::json&)> restore_options;
        Blackboard& blackboard;
        RunHistory& history;
        // of the run under way
        std::function<ResumePoint()> resume_point;
        std::function<bool()> is_resumable;
        /// While an evaluation is under way: it will begin anew, with these. Otherwise null.
        std::function<const SavedState*()> generators_before_evaluation;
        std::function<nlohmann::json()> configuration;
    };
    explicit TrainerRunState(Sources sources) : sources_(std::move(sources)) {}
    std::vector<std::string> parts() const override;
    bool is_resumable() const override { return sources_.is_resumable(); }
    SavedState save(std::string_view part) const override;
    void load(std::string_view part, const SavedState& state) override;
    void load_of_ranks(std::string_view part, const std::vector<SavedState>& states) override;

private:
    Update* update_of(std::string_view part) const;
    Callback* callback_of(std::string_view part) const;
    Sources sources_;
};

}  // namespace torchbus

#pragma once
/// The parts of a trainer that can be saved. See run_state.hpp for their names.

#include <functional>

#include <torchbus/bus.hpp>
#include <torchbus/callback.hpp>
#include <torchbus/data/loader.hpp>
#include <torchbus/update.hpp>

namespace torchbus {

class TrainerRunState final : public RunState {
public:
    /// Where the parts lie; they live longer than this.
    struct Sources {
        Model& model;
        std::vector<Update>& updates;
        Bus& bus;
        std::function<std::vector<std::pair<std::string, Callback*>>()> callbacks;
        std::function<LoaderPosition()> data;  ///< of the run under way
    };
    explicit TrainerRunState(Sources sources) : sources_(std::move(sources)) {}
    std::vector<std::string> parts() const override;
    SavedState save(std::string_view part) const override;
    void load(std::string_view part, const SavedState& state) override;

private:
    Update* update_of(std::string_view part) const;
    Callback* callback_of(std::string_view part) const;
    Sources sources_;
};

}  // namespace torchbus

#pragma once
/// All of a run that can be saved, part by part.

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

namespace torchbus {

/// What one part needs to go on: numbers and texts as JSON, and tensors by name.
struct SavedState {
    nlohmann::json values = nlohmann::json::object();
    std::map<std::string, at::Tensor> tensors = {};
    int version = 1;  ///< of the form of both: who changes it counts up, and reads the older ones
    bool empty() const { return values.empty() && tensors.empty(); }
};

/// The parts of a run: "model", "update" or "update.<name>" (its optimizer), "generators", "connections" (what filters have
/// seen), "options" (what was changed of callbacks), "history", "blackboard", "callback.<id>" for each callback; where it
/// is: "position", "data", "decisions"; and what it is: "configuration". Savers go through this and reach nothing else.
/// Thread: the training thread, at StepCheckpoint or EpochCheckpoint: there an update is finished and none is begun; at
/// RunFailed, where is_resumable() says so.
class RunState {
public:
    virtual ~RunState() = default;
    virtual std::vector<std::string> parts() const = 0;
    /// Whether a run can go on from what is saved now. When a run fails within a window, where it is is where that window
    /// began, and the weights are those of then; generators and buffers are further. It cannot where an update was under way.
    virtual bool is_resumable() const = 0;
    /// Tensors are handles: clone them to keep them as they are now. Throws: StateError for an unknown part.
    virtual SavedState save(std::string_view part) const = 0;
    /// Throws: CheckpointError where it does not fit this run; StateError for where and what it is, which a run under way
    /// does not take: see TrainOptions::resume.
    virtual void load(std::string_view part, const SavedState& state) = 0;
    /// The same of a run of another number of ranks: each one's, in their order.
    virtual void load_of_ranks(std::string_view part, const std::vector<SavedState>& states) { load(part, states.front()); }
};

}  // namespace torchbus

#pragma once
/// What forward changes before an update is made: generators and buffers.

#include <cstdint>
#include <vector>

#include <torchbus/checkpoint/training_state.hpp>
#include <torchbus/model.hpp>

namespace torchbus {

/// Keeps them as they were when the window under way began, for a state of a run that fails within it.
class WindowStart {
public:
    /// `model` is the run's, and outlives it.
    void begin_run(const Model& model);
    /// At TrainStepStart. Costs a copy of the generators' state and of the buffers.
    void note(const RunState& run, std::int64_t attempts);
    /// Takes the place of what the state has, where that is of within the window.
    void put_into(TrainingState& state) const;
    void end_run();
    /// Whether a step was begun in this run.
    bool has_noted() const { return attempts_ >= 0; }

private:
    const Model* model_ = nullptr;
    bool has_listed_ = false;
    std::vector<std::string> names_;
    std::vector<at::Tensor> buffers_, copies_;
    SavedState generators_;
    std::int64_t attempts_ = -1;
};

}  // namespace torchbus

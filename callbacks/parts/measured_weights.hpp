#pragma once
/// The model's weights as a number was measured with them: for save_best and early_stopping.

#include <string>

#include <torchbus/callback.hpp>

namespace torchbus {

/// A number such as eval.ema.loss belongs to the weights view `ema`, which is shown during its evaluation only: there a
/// copy is taken. Any other number belongs to the weights in training.
class MeasuredWeights {
public:
    explicit MeasuredWeights(std::string monitor) : monitor_(std::move(monitor)) {}
    void attach(Attachment& run);
    void detach();

    /// Handles of the weights in training, or a copy of the view's as it was last evaluated.
    /// Throws: StateError where the view has not been evaluated yet.
    SavedState get() const;
    /// Which view that is.
    const std::string& view() const { return view_; }

private:
    std::string monitor_, view_ = "training";
    Attachment* run_ = nullptr;
    SavedState shown_;
    Connections connections_;
};

/// A copy of what a state refers to.
SavedState cloned(SavedState state);

}  // namespace torchbus

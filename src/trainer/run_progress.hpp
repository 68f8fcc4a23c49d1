#pragma once
/// What a run was about to do when it was saved, beside its position.

#include <cstdint>
#include <optional>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/data/loader.hpp>
#include <torchbus/decision.hpp>
#include <torchbus/position.hpp>

namespace torchbus {

/// Saved as the part "decisions".
struct RunProgress {
    enum class Next : std::uint8_t {
        Step,        ///< the next step of an epoch under way, after an evaluation where one is due
        Evaluation,  ///< the evaluation after an epoch, from its beginning
        Epoch,       ///< the next epoch
    };
    Next next = Next::Epoch;
    bool evaluation_due = false;
    bool stop_epoch = false;
    std::int64_t windows = 0;  ///< finished, for the updates' `every`
    std::optional<Request> skip_update = {}, skip_batch = {};
    bool epoch_cut = false;  ///< the epoch before `next` was cut off by max_steps: the rest of its data was not trained on
    std::vector<LeftOut> left_out = {};  ///< one for each time that it was rolled back
};
nlohmann::json to_values(const RunProgress& progress);
RunProgress run_progress_from(const nlohmann::json& values);

/// Where a run goes on.
struct ResumePoint {
    Position position;
    LoaderPosition data;
    RunProgress progress;
};

}  // namespace torchbus

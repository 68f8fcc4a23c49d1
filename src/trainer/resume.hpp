#pragma once
/// Going on from a training state: which one, whether it is of this run, and what goes back where.

#include <memory>
#include <string>
#include <vector>

#include <torchbus/checkpoint/states_of_ranks.hpp>
#include <torchbus/run_config.hpp>

#include "run_progress.hpp"

namespace torchbus {

struct Difference;

/// A training state that a run is to go on from.
class Resume {
public:
    /// Reads the state that the options name, and tells which were passed over, and why.
    /// Returns nothing where there is none and that is allowed. Throws: CheckpointError.
    /// Rank: a collective: what rank 0 finds is what all read.
    static std::shared_ptr<const Resume> find(const ResumeOptions& options, Consensus& consensus);
    /// The newest of these states that can be read as a whole. Tells which were passed over. Throws: CheckpointError.
    /// Rank: a collective, as find().
    static std::shared_ptr<const Resume> newest_of(const std::vector<std::string>& states, Consensus& consensus);

    /// Where the run goes on. `batch_size` is that of the run to come, over all ranks.
    ResumePoint point(std::int64_t batch_size) const;
    /// Compares with the run to come, then puts back callbacks, blackboard, history, model and optimizers.
    /// Throws: CheckpointError that names every difference that was not allowed; nothing is put back then.
    void before_start(RunState& run) const;
    /// Puts back what anybody may have used at the start event: generators, and what filters have seen.
    void after_start(RunState& run) const;
    /// Puts back all of it, in the run that saved it. Callbacks that have come since go on as they are. Throws: CheckpointError.
    void put_back(RunState& run) const;
    const std::filesystem::path& path() const { return state_.path; }

private:
    Resume(TrainingState state, std::vector<std::string> allowed, const Consensus& consensus)
        : state_(std::move(state)), allowed_(std::move(allowed)), rank_(consensus.rank()), world_size_(consensus.world_size()) {}
    int saved_world_size() const;
    void require_same_run(const RunState& run) const;
    void require_known_versions(const RunState& run) const;
    void tell_environment(const nlohmann::json& own) const;
    std::optional<Difference> cut_epoch(const nlohmann::json& own) const;
    bool is_allowed(const std::string& name) const;
    void put_back_all_but_after_start(RunState& run) const;
    void put_back_part(RunState& run, const std::string& part) const;
    [[noreturn]] void fail(const std::string& what) const;

    TrainingState state_;
    std::vector<std::string> allowed_;
    int rank_, world_size_;
};

}  // namespace torchbus

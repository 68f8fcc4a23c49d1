#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <torchbus/callback.hpp>
#include <torchbus/interval.hpp>

namespace torchbus {

/// Tells an MLflow server of the run, over its REST API: numbers become metrics, the plan parameters, decisions and the outcome tags.
/// Listens: every event (stage Persist). Reads: blackboard.
/// Everything goes through files in `spool`, and from there to the server on a thread of its own. Where the server is dead, slow or
/// refuses the token, the run goes on, it is tried again (0.25 s, doubled up to 30 s), and what is told meanwhile waits. When the run
/// has ended it is waited for no longer than `wait_at_end`, and for one attempt where none has succeeded yet; what is left then, or
/// by a process that died, is sent by the next run that is given the same `spool`. What a record says is in MLflow once, however often it was sent.
/// A run that goes on from a training state goes on in the same run of MLflow. One that died is marked KILLED by the next one.
/// Numbers become metrics at the step of their position, once where they are published again as they were; infinite ones MLflow changes to the largest finite ones. Characters that
/// MLflow does not take in a name become `_`. A step that is trained again, after a roll-back or from a training state, is there twice.
/// Rank: only rank 0 tells of the run.
struct MlflowOptions {
    std::string url = "http://127.0.0.1:5000";
    std::string experiment = "torchbus";                  ///< created where it is missing
    std::string run_name = {};                                 ///< empty: the id of the run
    std::vector<std::string> tags = {};                        ///< "name=value"
    Interval every = Interval(10, Interval::Unit::Step);  ///< of numbers that come with every step; those of epochs are told always
    std::filesystem::path spool = "mlflow_spool";         ///< a folder, for one run at a time
    double spool_mib = 256;                               ///< > 0; what would make it larger is left out, and told
    std::filesystem::path token_file = {};                     ///< its first line is sent as `Authorization: Bearer`; empty: none
    std::filesystem::path headers_file = {};                   ///< lines "Name: value", e.g. for `Authorization: Basic`; empty: none
    Interval timeout = Interval(30, Interval::Unit::Second);      ///< of one request, in time
    Interval wait_at_end = Interval(10, Interval::Unit::Second);  ///< in time; ≥ 0
};
std::unique_ptr<Callback> make_mlflow(MlflowOptions options = {});

}  // namespace torchbus

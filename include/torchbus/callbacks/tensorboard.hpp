#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include <torchbus/callback.hpp>
#include <torchbus/interval.hpp>
#include <torchbus/stream/tensorboard_file.hpp>

namespace torchbus {

/// Writes a run for TensorBoard, which may read while it is written, on a thread of its own: every number of the blackboard as a scalar
/// (`eval.ema.loss` is the tag eval/ema.loss), decisions and the plan as text, hyperparameters, and histograms of weights where asked for.
/// Listens: every event (stage Persist); for histograms gradients_ready and train_step_end. Reads: blackboard; for histograms parameters
/// and gradients, of which the training thread makes copies, and counts nothing.
/// Every run has a folder of its own in `folder`: its id, or `run_name`. A run that goes on from a training state goes on in its folder,
/// once a record that was torn is cut off, and what was told of later steps is obsolete; so it is after a roll-back.
/// Where the process is killed, every record but the last is whole; TensorBoard passes over a torn one. A TensorBoard that was open over
/// it, and stays so, shows nothing of what the run that goes on adds: load it anew. Its fast loader shows one of two numbers of a tag at
/// one step, such as an epoch's mean beside the last step's.
/// A file that cannot be written is told, and the run goes on without it.
/// Rank: rank 0 writes.
/// Source: tensorflow/core/util/event.proto, summary.proto; tensorboard/plugins/hparams.
struct TensorboardOptions {
    std::filesystem::path folder = "tensorboard";
    std::string run_name = {};                               ///< of the folder within; empty: the run's id
    Interval every = Interval(10, Interval::Unit::Step);     ///< of numbers that come with every step; all else is written always
    Interval histograms = Interval(0, Interval::Unit::Step); ///< of weights; 0: none
    bool gradients = false;                                  ///< histograms of gradients as well
    std::int64_t bins = 64;                                  ///< of a histogram; 1 to 1024
    std::map<std::string, HyperParameter> hyper_parameters = {};  ///< shown beside the metrics in TensorBoard's HPARAMS
};
std::unique_ptr<Callback> make_tensorboard(TensorboardOptions options = {});

}  // namespace torchbus

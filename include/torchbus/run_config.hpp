#pragma once
/// What a run is made of and what it is asked to do.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torchbus/callback.hpp>
#include <torchbus/data/loader.hpp>
#include <torchbus/model.hpp>
#include <torchbus/update.hpp>

namespace torchbus {

/// What a trainer is composed of.
struct TrainerOptions {
    Model model = {};
    Loss loss = {};                                           ///< not needed where a step function computes it
    std::shared_ptr<torch::optim::Optimizer> optimizer = {};  ///< the one unnamed update …
    std::vector<Update> updates = {};                         ///< … or a list of them
    std::vector<ComposedCallback> callbacks = {};             ///< in this order within a stage
    std::optional<std::uint64_t> seed = {};                   ///< of the default generators and the data
    std::shared_ptr<Consensus> consensus = {};                ///< default: what a callback brings (data_parallel), or one process
    nlohmann::json configuration = {};                        ///< what a run file says of model, data and loss: kept in training states, and compared on resume
    bool handle_signals = true;  ///< SIGINT, SIGTERM, SIGUSR1, SIGUSR2 while a run is under way
};

/// A named evaluation split.
struct EvalSplit {
    std::string name;
    AnyDataset dataset;
};

/// Of whole batches, before they reach the trainer: see LoaderOptions::transform.
using BatchTransform = std::function<void(Batch&, std::uint64_t seed)>;

/// How several ranks share the training data. The order of samples never depends on how many they are.
enum class Sharding : std::uint8_t {
    Uneven,    ///< every sample is trained on once: of a last batch some ranks may have one sample less, or none
    Even,      ///< every rank has as many of each batch; what is missing is taken again from the beginning: see Shard::even
    Dispatch,  ///< rank 0 alone reads, and sends each rank its part, as in Uneven; the others need no dataset
};

/// Where a run goes on from, exactly: with the next batch, the same random numbers and the state of every callback.
struct ResumeOptions {
    std::filesystem::path from;           ///< a training state, or a folder that holds some: the newest whole one
    bool if_any = false;                  ///< where there is none, the run begins anew
    std::vector<std::string> allow = {};  ///< differences that are no reason to refuse, by the names that the message gives
    std::vector<std::filesystem::path> also = {};  ///< more folders that the newest is looked for in, where several savers have one each
};

struct TrainOptions {
    std::int64_t epochs = 1;
    std::optional<std::int64_t> max_steps = {};
    std::int64_t batch_size = 32;
    std::optional<std::int64_t> eval_batch_size = {};  ///< default: batch_size
    std::vector<EvalSplit> eval_splits = {};           ///< beside the evaluation dataset of train()
    bool shuffle = true;
    std::shared_ptr<Sampler> sampler = {};             ///< instead of shuffle
    bool drop_last = false;
    Sharding sharding = Sharding::Uneven;              ///< evaluations are never filled up
    std::optional<int> workers = {};                   ///< see LoaderOptions
    int prefetch = 4;
    BatchTransform transform = {};
    BatchTransform eval_transform = {};
    std::optional<ResumeOptions> resume = {};
    bool reset_run_history = true;                     ///< false: the trainer's last run goes on, for `epochs` more
};

struct EvaluateOptions {
    std::int64_t batch_size = 32;
    std::optional<int> workers = {};
    int prefetch = 4;
    BatchTransform transform = {};
    bool dispatch = false;                             ///< see Sharding::Dispatch
    std::string split = "eval";                        ///< what the dataset of evaluate() is called
};

}  // namespace torchbus

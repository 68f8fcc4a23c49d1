#include <torchbus/callbacks/fingerprint.hpp>

#include <cerrno>
#include <cstring>
#include <fstream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/changed_option.hpp>
#include <torchbus/checkpoint/writable.hpp>
#include <torchbus/error.hpp>
#include <torchbus/stream/fingerprint_records.hpp>

#include "entries.hpp"
#include "parts/monitor.hpp"

namespace torchbus {
namespace {

using nlohmann::json;
using std::filesystem::path;

class Hash {
public:
    void add(std::uint64_t word) {
        hash_ = (hash_ ^ word) * 0x9e3779b97f4a7c15ULL;
        hash_ ^= hash_ >> 32;
    }
    void add(const char* bytes, std::size_t count) {
        std::uint64_t word = 0;
        for (; count >= sizeof word; bytes += sizeof word, count -= sizeof word) {
            std::memcpy(&word, bytes, sizeof word);
            add(word);
        }
        word = 0;
        std::memcpy(&word, bytes, count);
        if (count > 0) add(word);
    }
    std::uint64_t value() const { return hash_; }

private:
    std::uint64_t hash_ = 0xcbf29ce484222325ULL;
};

std::string hex(std::uint64_t hash) { return fmt::format("{:016x}", hash); }
std::string hash_text(const at::Tensor& tensor) { return tensor.defined() ? hex(fingerprint_of(tensor)) : "undefined"; }

std::string hash_text(const Window& window) {
    Hash hash;
    for (const Batch& batch : window.batches) {
        hash.add(batch.indices.size());
        for (const std::int64_t index : batch.indices) hash.add(static_cast<std::uint64_t>(index));
    }
    return hex(hash.value());
}

class Fingerprint final : public Callback {
public:
    explicit Fingerprint(FingerprintOptions options) : options_(std::move(options)) {}
    std::string kind() const override { return "fingerprint"; }
    Declaration declare() const override {
        return {.listens = {"run_configured", "training_run_start", "train_step_end", "run_closed"}, .reads = {"batch", "loss", "gradients", "parameters"}};
    }
    std::vector<Finding> check(const Outlook&) const override {
        return !options_.write ? check_file(kind(), "path", options_.path) : std::vector<Finding>();
    }
    void attach(Attachment& run) override {
        run_ = &run;
        connect_records();
        connections_ += run.bus.intercept<RunConfigured>([this](RunConfigured& event) { model_ = event.model; });
        connections_ += run.bus.observe<TrainingRunStart>(Stage::Observe, [this, &run](const TrainingRunStart& event) {
            if (!options_.write) open(run.consensus.rank(), beginning_.is_anew() && event.position.attempts == 0);
        });
        connections_ += run.bus.observe<RunClosed>(Stage::Observe, [this](const RunClosed&) { forget_run(); });
    }
    void detach() override {
        records_.disconnect();
        connections_.clear();
        forget_run();
        beginning_ = {};
        run_ = nullptr;
    }
    json change_option(std::string_view option, const json& value) override {
        const auto before = change_interval(options_.every, "every", kind(), option, value);
        connect_records();
        return before;
    }
    /// That the run has begun, so that a resumed one adds to the file.
    SavedState state() const override { return {{{"path", options_.path.string()}}, {}}; }
    void load_state(const SavedState&) override { beginning_.loaded(); }

private:
    void connect_records() {
        records_ = run_->bus.observe<TrainStepEnd>(Stage::Persist, [this](const TrainStepEnd& event) { write(record_of(event, run_->run_state)); }, every(options_.every));
    }
    void forget_run() {
        beginning_.closed();
        model_ = {};
        file_ = {};
    }

    void open(int rank, bool anew) {
        written_to_ = options_.path.string() + (rank == 0 ? "" : fmt::format(".rank{}", rank));
        file_ = std::ofstream(written_to_, anew ? std::ios::trunc : std::ios::app);
        if (!file_) throw Error(fmt::format("{}: cannot write the file: {}; give fingerprint another path", written_to_, std::strerror(errno)));
    }

    json record_of(const TrainStepEnd& event, const RunState& run) const {
        json record = {{"epoch", event.position.epoch}, {"step", event.position.step}, {"attempts", event.position.attempts}, {"update", event.update.name},
                       {"skipped", event.skipped}, {"samples", hash_text(event.window)}, {"loss", hash_text(event.loss)}};
        for (const char* group : {"gradients", "parameters", "buffers", "generators"}) record[group] = json::object();
        for (const auto& [name, parameter] : model_->named_parameters()) {
            record["parameters"][name] = hash_text(parameter);
            if (parameter.grad().defined()) record["gradients"][name] = hash_text(parameter.grad());
        }
        for (const auto& [name, buffer] : model_->named_buffers()) record["buffers"][name] = hash_text(buffer);
        for (const auto& [name, state] : run.save("generators").tensors) record["generators"][name] = hash_text(state);
        return record;
    }

    void write(const json& record) {
        if (options_.write) return options_.write(record);
        file_ << record.dump() << "\n";
        if (!file_.flush()) throw Error(fmt::format("{}: cannot write; make room, or give fingerprint another path", written_to_));
    }

    FingerprintOptions options_;
    Attachment* run_ = nullptr;
    RunBeginning beginning_;
    Model model_;  ///< of the run under way
    std::ofstream file_;
    std::string written_to_;
    Connection records_;
    Connections connections_;
};

}  // namespace

std::uint64_t fingerprint_of(const at::Tensor& tensor) {
    Hash hash;
    hash.add(static_cast<std::uint64_t>(tensor.scalar_type()));
    for (const std::int64_t size : tensor.sizes()) hash.add(static_cast<std::uint64_t>(size));
    const at::Tensor content = tensor.detach().cpu().contiguous();
    if (content.nbytes() > 0) hash.add(static_cast<const char*>(content.const_data_ptr()), content.nbytes());
    return hash.value();
}

std::string difference_of_fingerprints(const path& one, const path& other) {
    const auto difference = first_fingerprint_difference(one, other);
    if (!difference) return {};
    return difference->is_shorter ? difference->what : fmt::format("step {}, line {}: {}", difference->step, difference->line, difference->what);
}

std::unique_ptr<Callback> make_fingerprint(FingerprintOptions options) {
    if (!(options.every.amount > 0)) throw ConfigError(fmt::format("fingerprint: every: {} is not positive; give an interval, e.g. \"100step\"", to_string(options.every)));
    if (options.path.empty() && !options.write) throw ConfigError("fingerprint: path: there is no name; give a file, e.g. fingerprint.jsonl");
    return std::make_unique<Fingerprint>(std::move(options));
}

std::unique_ptr<Callback> fingerprint_from_json(OptionReader& reader) {
    FingerprintOptions options;
    std::string name = options.path.string();
    reader.interval("every", options.every, "between two records, e.g. 1step or 1epoch; > 0").changeable()
        .text("path", name, "the file, one JSON object a line");
    options.path = name;
    return make_fingerprint(std::move(options));
}

}  // namespace torchbus

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <optional>

#include <fmt/format.h>
#include <torch/types.h>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/composition.hpp>
#include <torchbus/error.hpp>
#include <torchbus/trainer.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {
namespace {

/// Where predictions go: standard output, a file that is whole or not there, or a device or pipe that is there.
/// Opened before the prediction, not after it.
class Target {
public:
    explicit Target(const std::string& path) : name_(path.empty() ? "standard output" : path) {
        std::error_code ignored;
        if (path.empty()) return;
        if (!std::filesystem::exists(path, ignored) || std::filesystem::is_regular_file(path, ignored)) {
            file_.emplace(path);
            return;
        }
        errno = 0;
        stream_.open(path);
        if (!stream_) refuse();
    }
    void write(const std::string& line) {
        if (file_) return file_->write(line);
        errno = 0;
        if (!out().write(line.data(), static_cast<std::streamsize>(line.size()))) refuse();
    }
    void commit() {
        if (file_) return file_->commit();
        errno = 0;
        if (!out().flush()) refuse();
    }

private:
    std::ostream& out() { return stream_.is_open() ? stream_ : std::cout; }
    [[noreturn]] void refuse() const {
        throw Error(fmt::format("{}: cannot write the predictions: {}; give another file with --to, or make room", name_, errno ? std::strerror(errno) : "it refuses them"));
    }
    std::string name_;
    std::optional<AtomicFile> file_;
    std::ofstream stream_;
};

}  // namespace

/// One JSON object a sample, in the order of the evaluation data: {"index": 0, "output": [...], "class": 7}.
int predict(const nlohmann::json& options) {
    Composition made = trained_composition_of(options);
    const std::int64_t batch_size = made.train.eval_batch_size.value_or(made.train.batch_size);
    const auto trainer = trainer_of(made);
    std::optional<Target> target;
    if (trainer->consensus().rank() == 0) target.emplace(options.at("to").get<std::string>());  // of processes that predict together the first one writes
    const at::Tensor outputs = in_file(made.name, [&] { return trainer->predict(made.eval_dataset, {.batch_size = batch_size}); }).to(torch::kFloat).flatten(1).contiguous();
    if (!target) return trainer->result().exit_code;
    const at::Tensor classes = outputs.argmax(1);
    std::int64_t without_class = 0;
    for (std::int64_t i = 0; i < outputs.size(0); ++i) {
        const float* row = outputs.const_data_ptr<float>() + i * outputs.size(1);
        const std::vector<float> values(row, row + outputs.size(1));
        const bool has_class = std::ranges::none_of(values, [](float value) { return std::isnan(value); });
        without_class += has_class ? 0 : 1;
        nlohmann::json line = {{"index", i}, {"output", values}, {"class", nullptr}};
        if (has_class) line["class"] = classes[i].item<std::int64_t>();
        target->write(line.dump() + "\n");
    }
    target->commit();
    if (without_class > 0) warn(fmt::format("{} of {} outputs have a NaN, written as null, and no class; look at the weights", without_class, outputs.size(0)));
    return trainer->result().exit_code;
}

}  // namespace torchbus::cli

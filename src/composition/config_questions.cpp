// What `torchbus config` asks, and the YAML that it writes.
#include <algorithm>
#include <charconv>
#include <functional>
#include <istream>
#include <limits>
#include <ostream>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include <torchbus/composition/accelerate_config.hpp>
#include <torchbus/error.hpp>

namespace torchbus {
namespace {

/// Asks until the answer makes sense.
class Questions {
public:
    Questions(std::istream& answers, std::ostream& questions) : answers_(answers), questions_(questions) {}
    int number(const std::string& question, int otherwise, int least, int most) {
        return ask<int>(fmt::format("{} [{}]: ", question, otherwise), otherwise, [&](const std::string& answer) -> std::optional<int> {
            int value = 0;
            const auto [end, error] = std::from_chars(answer.data(), answer.data() + answer.size(), value);
            if (error == std::errc() && end == answer.data() + answer.size() && value >= least && value <= most) return value;
            questions_ << fmt::format("  '{}' is no number from {} to {}\n", answer, least, most);
            return std::nullopt;
        });
    }
    std::string text(const std::string& question, const std::string& otherwise) {
        return ask<std::string>(otherwise.empty() ? question + ": " : fmt::format("{} [{}]: ", question, otherwise), otherwise, [](const std::string& answer) { return std::optional(answer); });
    }
    std::string choice(const std::string& question, const std::vector<std::string>& allowed) {
        return ask<std::string>(fmt::format("{} ({}) [{}]: ", question, fmt::join(allowed, ", "), allowed.front()), allowed.front(), [&](const std::string& answer) -> std::optional<std::string> {
            if (std::ranges::find(allowed, answer) != allowed.end()) return answer;
            questions_ << fmt::format("  '{}' is none of {}{}\n", answer, fmt::join(allowed, ", "), did_you_mean(answer, allowed));
            return std::nullopt;
        });
    }

private:
    template <class Value>
    Value ask(const std::string& question, const Value& otherwise, const std::function<std::optional<Value>(const std::string&)>& read) {
        while (true) {
            questions_ << question << std::flush;
            std::string answer;
            if (!std::getline(answers_, answer)) throw ConfigError("config: the answers have come to an end before the questions; nothing was written");
            const auto begin = answer.find_first_not_of(" \t\r"), end = answer.find_last_not_of(" \t\r");
            if (begin == std::string::npos) return otherwise;
            if (const auto value = read(answer.substr(begin, end - begin + 1))) return *value;
        }
    }
    std::istream& answers_;
    std::ostream& questions_;
};

}  // namespace

std::string to_yaml(const AccelerateConfig& config) {
    YAML::Emitter out;
    const auto put = [&](const char* key, const auto& value) { out << YAML::Key << key << YAML::Value << value; };
    const auto quoted = [&](const char* key, const std::string& value) { out << YAML::Key << key << YAML::Value << YAML::SingleQuoted << value; };  // NO and no are false in Python
    out << YAML::BeginMap;
    put("compute_environment", "LOCAL_MACHINE");
    quoted("distributed_type", config.distributed_type);
    const bool precision_in_file = config.deepspeed && !config.deepspeed->file.empty();
    if (!precision_in_file) quoted("mixed_precision", config.mixed_precision);
    put("use_cpu", config.use_cpu);
    if (!config.gpu_ids.empty()) quoted("gpu_ids", config.gpu_ids);
    put("num_machines", config.machines);
    put("num_processes", config.processes);
    put("machine_rank", config.machine_rank);
    if (!config.main_address.empty()) quoted("main_process_ip", config.main_address);
    if (config.main_port != 0) put("main_process_port", config.main_port);
    if (const auto& deepspeed = config.deepspeed) {
        out << YAML::Key << "deepspeed_config" << YAML::Value << YAML::BeginMap;
        if (!deepspeed->file.empty()) quoted("deepspeed_config_file", deepspeed->file);
        if (deepspeed->zero_stage) put("zero_stage", *deepspeed->zero_stage);
        if (deepspeed->accumulation) put("gradient_accumulation_steps", *deepspeed->accumulation);
        if (deepspeed->clipping) put("gradient_clipping", *deepspeed->clipping);
        out << YAML::EndMap;
    }
    out << YAML::EndMap;
    return std::string(out.c_str()) + "\n";
}

AccelerateConfig ask_for_config(std::istream& answers, std::ostream& out) {
    Questions questions(answers, out);
    AccelerateConfig config;
    const std::string device = questions.choice("Where does it train?", {"cpu", "gpu"});
    config.use_cpu = device == "cpu";
    config.machines = questions.number("How many machines?", 1, 1, 100000);
    if (config.machines > 1) {
        config.machine_rank = questions.number("Which of them is this, from 0?", 0, 0, config.machines - 1);
        config.main_address = questions.text("Address of machine 0", "127.0.0.1");
        config.main_port = questions.number("Port at which they meet there", 29500, 1, 65535);
    }
    config.processes = config.machines * questions.number("How many processes on each machine?", 1, 1, std::min(100000, std::numeric_limits<int>::max() / config.machines));
    config.mixed_precision = questions.choice("Mixed precision?", {"no", "bf16", "fp16"});
    const int accumulation = questions.number("Batches an update is made of (gradient accumulation)?", 1, 1, 100000);
    const std::string sharded = config.processes > 1 ? questions.choice("Divide the optimizer's state among processes (ZeRO stage 1)?", {"no", "yes"}) : "no";
    config.distributed_type = config.processes == 1 ? "NO" : config.use_cpu ? "MULTI_CPU" : "MULTI_GPU";
    if (sharded == "yes" || accumulation > 1) {
        config.deepspeed.emplace().zero_stage = sharded == "yes" ? 1 : 0;
        if (accumulation > 1) config.deepspeed->accumulation = accumulation;
        if (config.processes > 1) config.distributed_type = "DEEPSPEED";
    }
    return config;
}

}  // namespace torchbus

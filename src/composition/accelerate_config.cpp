#include <torchbus/composition/accelerate_config.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <string_view>
#include <type_traits>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include <torchbus/composition/deepspeed_config.hpp>
#include <torchbus/error.hpp>

#include "accelerate_keys.hpp"
#include "deepspeed_keys.hpp"
#include "known_keys.hpp"

namespace torchbus {
namespace {

/// A key, what stands behind it, and where.
class Entry {
public:
    Entry(const std::string& file, std::string path, YAML::Node value, int line) : file_(&file), path_(std::move(path)), value_(std::move(value)), line_(line) {}
    const std::string& path() const { return path_; }
    const YAML::Node& value() const { return value_; }
    int line() const { return line_; }
    [[noreturn]] void refuse(const std::string& what) const { throw ConfigError(fmt::format("{}:{}: {}: {}", *file_, line_, path_, what)); }

    /// As it is written.
    std::string text() const {
        if (!value_.IsScalar()) refuse(fmt::format("expected a text, found a {}", kind()));
        return value_.Scalar();
    }
    std::string one_of(const std::vector<std::string>& allowed) const {
        std::string found = text();
        if (std::ranges::find(allowed, found) == allowed.end()) refuse(fmt::format("'{}' is none of {}{}", found, fmt::join(allowed, ", "), did_you_mean(found, allowed)));
        return found;
    }
    bool flag() const {
        const std::string found = lower(text());
        static const std::vector<std::string> kYes = {"true", "yes", "on", "y", "1"}, kNo = {"false", "no", "off", "n", "0"};
        if (std::ranges::find(kYes, found) != kYes.end()) return true;
        if (std::ranges::find(kNo, found) == kNo.end()) refuse(fmt::format("'{}' is neither true nor false", text()));
        return false;
    }
    /// An integer beyond its type is the last one of it.
    template <class Value>
    Value number(const char* expected) const {
        const std::string found = text();
        Value value = 0;
        const auto [end, error] = std::from_chars(found.data(), found.data() + found.size(), value);
        const bool is_beyond = std::is_integral_v<Value> && error == std::errc::result_out_of_range;
        if ((error != std::errc() && !is_beyond) || end != found.data() + found.size()) refuse(fmt::format("'{}' is no {}", found, expected));
        if (is_beyond) return found.starts_with('-') ? std::numeric_limits<Value>::lowest() : std::numeric_limits<Value>::max();
        return value;
    }
    int integer(int least, int most = kLargest) const {
        const auto found = number<std::int64_t>("whole number");
        if (found < least && most == kLargest) refuse(fmt::format("{} is too few; give at least {}", text(), least));
        if (found < least || found > most) refuse(fmt::format("{} is out of range; give {} to {}", text(), least, most));
        return static_cast<int>(found);
    }
    bool is_null() const { return value_.IsNull() || (value_.IsScalar() && value_.Tag() != "!" && (value_.Scalar() == "null" || value_.Scalar() == "~" || value_.Scalar().empty())); }
    bool is_auto() const { return value_.IsScalar() && value_.Scalar() == "auto"; }
    const char* kind() const { return value_.IsMap() ? "map" : value_.IsSequence() ? "list" : value_.IsScalar() ? "text" : "nothing"; }

    static std::string lower(std::string text) {
        std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
        return text;
    }

private:
    static constexpr int kLargest = std::numeric_limits<int>::max();

    const std::string* file_;
    std::string path_;
    YAML::Node value_;
    int line_;
};

/// The entries of a map, each key once.
std::vector<Entry> entries_of(const std::string& file, const YAML::Node& map, const std::string& path) {
    std::vector<Entry> entries;
    for (const auto& pair : map) {
        const int line = pair.first.Mark().line + 1;
        if (!pair.first.IsScalar()) throw ConfigError(fmt::format("{}:{}: a key is a text, found a map or a list", file, line));
        Entry entry(file, path.empty() ? pair.first.Scalar() : path + "." + pair.first.Scalar(), pair.second, line);
        const auto twice = std::ranges::find(entries, entry.path(), &Entry::path);
        if (twice != entries.end()) entry.refuse(fmt::format("the key stands twice, first in line {}; remove one of them", twice->line()));
        entries.push_back(std::move(entry));
    }
    return entries;
}

class Reader {
public:
    explicit Reader(std::string file) { config_.name = std::move(file); }

    AccelerateConfig read(const YAML::Node& root) {
        if (!root.IsMap()) throw ConfigError(fmt::format("{}: a configuration of Accelerate is a map of keys and values; this one {}", config_.name, root.IsNull() ? "is empty" : "is none"));
        bool has_type = false;
        for (const Entry& entry : entries_of(config_.name, root, "")) {
            const AccelerateKey& key = known(entry);
            has_type = has_type || entry.path() == "distributed_type";
            if (entry.is_null()) continue;
            check_type(entry, key);
            if (key.has_effect) take(entry);
            else if (says_something(entry, key)) config_.not_supported.push_back(entry.path());
        }
        if (!has_type) throw ConfigError(fmt::format("{}: distributed_type is missing; give NO, MULTI_CPU, MULTI_GPU or DEEPSPEED", config_.name));
        if (config_.use_cpu && config_.distributed_type == "MULTI_GPU") config_.not_supported.emplace_back("distributed_type MULTI_GPU (use_cpu puts the run on the CPU)");
        check();
        return std::move(config_);
    }

private:
    static const AccelerateKey& known(const Entry& entry) {
        const auto found = std::ranges::find(kAccelerateKeys, entry.path(), [](const AccelerateKey& key) { return std::string(key.name); });
        if (found != std::end(kAccelerateKeys)) return *found;
        std::vector<std::string> names;
        for (const AccelerateKey& key : kAccelerateKeys) names.emplace_back(key.name);
        entry.refuse(fmt::format("unknown key{}; it is none of Accelerate's", did_you_mean(entry.path(), names)));
    }
    /// What `accelerate config` writes whether it was asked for or not says nothing.
    static bool says_something(const Entry& entry, const AccelerateKey& key) {
        if (entry.value().IsSequence() || entry.value().IsMap()) return entry.value().size() > 0;
        if (std::string_view(key.otherwise) == "any") return false;
        if (key.type == YamlType::Bool) return entry.flag() != (std::string_view(key.otherwise) == "true");
        return Entry::lower(entry.text()) != key.otherwise;
    }
    void check_type(const Entry& entry, const AccelerateKey& key) const {
        switch (key.type) {
            case YamlType::Text: entry.text(); break;
            case YamlType::Bool: entry.flag(); break;
            case YamlType::Integer: entry.number<std::int64_t>("whole number"); break;
            case YamlType::Number: entry.number<double>("number"); break;
            case YamlType::List:
                if (!entry.value().IsSequence()) entry.refuse(fmt::format("expected a list, found a {}", entry.kind()));
                break;
            case YamlType::Section:
                if (!entry.value().IsMap()) entry.refuse(fmt::format("expected a map of keys and values, found a {}", entry.kind()));
                for (const Entry& inner : entries_of(config_.name, entry.value(), entry.path())) check_inner(entry, inner);
        }
    }
    static void check_inner(const Entry& section, const Entry& inner) {
        const auto found = std::ranges::find(kAccelerateSections, section.path(), [](const AccelerateSection& one) { return std::string(one.name); });
        const std::string key = inner.path().substr(section.path().size() + 1);
        const std::vector<std::string> short_names = words_of(found->keys);
        std::vector<std::string> names = short_names;
        for (const std::string& name : short_names)
            if (*found->prefix) names.push_back(found->prefix + name);
        if (std::ranges::find(names, key) == names.end()) inner.refuse(fmt::format("unknown key{}; {} has {}", did_you_mean(key, names), section.path(), fmt::join(short_names, ", ")));
    }

    void take(const Entry& entry) {
        const std::string& key = entry.path();
        if (key == "compute_environment") {
            if (entry.one_of({"LOCAL_MACHINE", "AMAZON_SAGEMAKER"}) != "LOCAL_MACHINE") entry.refuse("AMAZON_SAGEMAKER is not supported; give LOCAL_MACHINE");
        } else if (key == "distributed_type") {
            static const std::vector<std::string> kSupported = {"NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED"};
            config_.distributed_type = entry.one_of({"NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED", "MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA", "MULTI_XPU", "MULTI_HPU", "MULTI_NEURON", "FSDP", "XLA",
                                                     "MEGATRON_LM", "TPU", "MPS", "TP"});
            if (std::ranges::find(kSupported, config_.distributed_type) == kSupported.end()) entry.refuse(fmt::format("{} is not supported; give one of {}", config_.distributed_type, fmt::join(kSupported, ", ")));
        } else if (key == "mixed_precision") {
            config_.mixed_precision = Entry::lower(entry.text());
            if (config_.mixed_precision == "false") config_.mixed_precision = "no";
            static const std::vector<std::string> kKnown = {"no", "fp16", "bf16", "fp8"};
            if (std::ranges::find(kKnown, config_.mixed_precision) == kKnown.end()) entry.refuse(fmt::format("'{}' is none of no, fp16, bf16{}", entry.text(), did_you_mean(config_.mixed_precision, kKnown)));
            if (config_.mixed_precision == "fp8") entry.refuse("fp8 is not supported; give no, fp16 or bf16");
            names_precision_ = true;
        } else if (key == "fp16") {
            if (entry.flag() && !names_precision_) config_.mixed_precision = "fp16";
        } else if (key == "use_cpu") {
            config_.use_cpu = entry.flag();
        } else if (key == "gpu_ids") {
            config_.gpu_ids = Entry::lower(entry.text()) == "all" ? "" : entry.text();
        } else if (key == "num_processes") {
            config_.processes = entry.integer(1);
        } else if (key == "num_machines") {
            config_.machines = entry.integer(1);
        } else if (key == "machine_rank") {
            config_.machine_rank = entry.integer(0);
        } else if (key == "main_process_ip") {
            config_.main_address = entry.text();
        } else if (key == "main_process_port") {
            config_.main_port = entry.integer(0, 65535);
        } else {
            take_deepspeed(entry);
        }
    }
    void take_deepspeed(const Entry& section) {
        AccelerateConfig::DeepSpeed& deepspeed = config_.deepspeed.emplace();
        std::vector<const char*> beside;
        for (const Entry& entry : entries_of(config_.name, section.value(), section.path())) {
            const std::string key = entry.path().substr(section.path().size() + 1);
            if (entry.is_null()) continue;
            if (key == "deepspeed_config_file") {
                deepspeed.file = entry.text();
            } else if (key == "zero_stage") {
                deepspeed.zero_stage = entry.integer(0, 3);
                if (*deepspeed.zero_stage > 1) entry.refuse(fmt::format("stage {} is not supported; supported are 0, and 1, which divides the optimizer's state", *deepspeed.zero_stage));
                beside.push_back("zero_stage");
            } else if (key == "gradient_accumulation_steps") {
                if (!entry.is_auto()) deepspeed.accumulation = entry.integer(1);
                beside.push_back("gradient_accumulation_steps");
            } else if (key == "gradient_clipping") {
                if (!entry.is_auto()) deepspeed.clipping = entry.number<double>("number");
                beside.push_back("gradient_clipping");
            } else if (key == "offload_optimizer_device" || key == "offload_param_device") {
                if (entry.text() != "none" && !entry.is_auto()) entry.refuse(fmt::format("offloading to {} is not supported; give none: {}", entry.text(), kSupportedOfZero));
                beside.push_back("an offload device");
            } else if (key == "zero3_init_flag" || key == "zero3_save_16bit_model") {
                if (entry.flag()) config_.not_supported.push_back(entry.path());
            } else {
                config_.not_supported.push_back(entry.path());
            }
        }
        if (!deepspeed.file.empty() && !beside.empty()) section.refuse(fmt::format("deepspeed_config_file stands beside {}; give these in that file", fmt::join(beside, ", ")));
        deepspeed_line_ = section.line();
    }
    void check() const {
        const auto fail = [&](const std::string& what) { throw ConfigError(fmt::format("{}: {}", config_.name, what)); };
        if (config_.processes % config_.machines != 0)
            fail(fmt::format("num_processes is {}, of all machines, and num_machines {}; each machine must have as many processes: give a multiple of {}", config_.processes, config_.machines, config_.machines));
        if (config_.machine_rank >= config_.machines) fail(fmt::format("machine_rank is {}, and num_machines {}; machines count from 0", config_.machine_rank, config_.machines));
        if (config_.machines > 1 && (config_.main_address.empty() || config_.main_port == 0)) fail("several machines need main_process_ip and main_process_port, those of machine 0");
        if (config_.distributed_type == "NO" && config_.processes > 1) fail(fmt::format("distributed_type is NO, and num_processes {}; give MULTI_CPU or MULTI_GPU", config_.processes));
        if (config_.deepspeed && !config_.deepspeed->file.empty() && names_precision_)
            fail(fmt::format("line {}: deepspeed_config_file stands beside mixed_precision; give fp16 or bf16 in that file", deepspeed_line_));
    }

    AccelerateConfig config_;
    bool names_precision_ = false;
    int deepspeed_line_ = 0;
};

}  // namespace

AccelerateConfig read_accelerate_config(const std::filesystem::path& file) {
    const std::string name = file.string();
    try {
        if (std::filesystem::is_directory(file)) throw YAML::BadFile(name);
        return Reader(name).read(YAML::LoadFile(name));
    } catch (const YAML::BadFile&) {
        throw ConfigError(fmt::format("{}: cannot open the configuration of Accelerate; is the name right? (torchbus config writes one)", name));
    } catch (const YAML::Exception& error) {
        throw ConfigError(fmt::format("{}:{}: {}", name, error.mark.line + 1, error.msg));
    }
}

std::vector<RunChanges> changes_of_accelerate(const AccelerateConfig& config, const nlohmann::json& run, int world_size) {
    if (config.processes != world_size)
        throw ConfigError(fmt::format("{}: num_processes is {}, and this run has {} rank{}; start it by torchbus launch --config {}, check it with --world-size {}, or change the number", config.name, config.processes, world_size,
                                      world_size == 1 ? "" : "s", config.name, config.processes));
    std::vector<RunChanges> all;
    RunChanges& changes = all.emplace_back();
    changes.name = config.name;
    changes.not_supported = config.not_supported;
    if (config.distributed_type != "NO") changes.callbacks.push_back({"data_parallel", nlohmann::json::object(), "distributed_type"});
    if (config.mixed_precision != "no") changes.callbacks.push_back({"mixed_precision", {{"precision", config.mixed_precision}}, "mixed_precision"});
    const bool is_placed = std::ranges::any_of(run.value("callbacks", nlohmann::json::array()), [](const nlohmann::json& one) { return one.is_object() && one.value("kind", nlohmann::json()) == "device_placement"; });
    if (config.use_cpu) changes.callbacks.push_back({"device_placement", {{"device", "cpu"}}, "use_cpu"});
    else if (config.distributed_type == "MULTI_GPU") changes.callbacks.push_back({"device_placement", {{"device", "cuda"}}, "distributed_type"});
    else if (!is_placed && config.distributed_type != "MULTI_CPU") changes.callbacks.push_back({"device_placement", {{"device", "auto"}}, "use_cpu"});
    if (config.deepspeed) {
        const auto& [file, stage, accumulation, clipping] = *config.deepspeed;
        if (stage == 1) changes.callbacks.push_back({"zero_redundancy", nlohmann::json::object(), "deepspeed_config.zero_stage"});
        if (accumulation) changes.callbacks.push_back({"gradient_accumulation", {{"micro_batches", *accumulation}}, "deepspeed_config.gradient_accumulation_steps"});
        if (clipping && *clipping > 0) changes.callbacks.push_back({"gradient_clipping", {{"max_norm", *clipping}}, "deepspeed_config.gradient_clipping"});
        if (!file.empty()) {
            const auto beside = std::filesystem::path(config.name).parent_path() / file;  // or, as Accelerate has it, in the working folder
            all.push_back(changes_of_deepspeed(std::filesystem::exists(beside) || !std::filesystem::exists(file) ? beside : std::filesystem::path(file), run, world_size));
        }
    }
    return all;
}

}  // namespace torchbus

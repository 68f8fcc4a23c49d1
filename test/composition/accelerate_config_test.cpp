// What Accelerate's files ask for, and what is said of those that are wrong; what `torchbus config` writes.
#include <fstream>
#include <random>
#include <regex>
#include <sstream>

#include <nlohmann/json.hpp>

#include <torchbus/composition/accelerate_config.hpp>
#include <torchbus/composition/deepspeed_config.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"
#include "support/source_root.hpp"
#include "support/temporary_folder.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

/// What a file with this text is refused with, without its name; empty where it is read.
std::string complaint(const std::string& text) {
    const TemporaryFolder folder("accelerate");
    std::ofstream(folder / "a.yaml") << text;
    try {
        read_accelerate_config(folder / "a.yaml");
    } catch (const ConfigError& error) {
        return std::string(error.what()).substr((folder / "a.yaml").string().size());
    }
    return "";
}

/// A line with another number in the place of those that are values.
std::string with_numbers(const std::string& line, const std::string& number) {
    static const std::regex kNumber(R"((: *)-?[0-9][0-9.eE+-]*)");
    return std::regex_replace(line, kNumber, "$01" + number);
}

std::filesystem::path configurations() { return std::filesystem::path(source_root()) / "test/composition/configurations"; }

}  // namespace

TEST_CASE("Accelerate's files of the field are read", "[composition][accelerate]") {
    const AccelerateConfig one = read_accelerate_config(configurations() / "single_gpu.yaml");
    CHECK(one.distributed_type == "NO");
    CHECK(one.mixed_precision == "fp16");
    CHECK(one.processes == 1);
    CHECK(one.gpu_ids == "0");
    CHECK(one.not_supported.empty());
    const AccelerateConfig two = read_accelerate_config(configurations() / "multi_gpu_two_nodes_rank1.yaml");
    CHECK(two.processes == 16);
    CHECK(two.machines == 2);
    CHECK(two.machine_rank == 1);
    CHECK(two.processes_per_machine() == 8);
    CHECK(two.main_address == "192.168.40.11");
    CHECK(two.main_port == 29517);
    CHECK(two.mixed_precision == "bf16");
    CHECK(two.gpu_ids.empty());  // all
    CHECK(two.not_supported == std::vector<std::string>{"debug", "enable_cpu_affinity", "rdzv_backend"});
    const AccelerateConfig old = read_accelerate_config(configurations() / "legacy.yaml");
    CHECK(old.mixed_precision == "fp16");  // fp16: true, from before mixed_precision was there
    CHECK(old.processes == 4);
    CHECK(read_accelerate_config(configurations() / "cpu_mpirun_dynamo.yaml").not_supported == std::vector<std::string>{"dynamo_config", "mpirun_config"});
    CHECK(read_accelerate_config(configurations() / "deepspeed_zero3_json_file.yaml").deepspeed->file == "configs/ds_stage3.json");
    CHECK_THROWS_WITH(read_accelerate_config(configurations() / "fsdp1_llama.yaml"), Catch::Matchers::EndsWith("fsdp1_llama.yaml:3: distributed_type: FSDP is not supported; give one of NO, MULTI_CPU, MULTI_GPU, DEEPSPEED"));
    CHECK_THROWS_WITH(read_accelerate_config(configurations() / "deepspeed_zero2_offload.yaml"), Catch::Matchers::Contains("is not supported"));
    for (const char* refused : {"fsdp2_tp_parallelism.yaml", "megatron_lm.yaml"}) CHECK_THROWS_AS(read_accelerate_config(configurations() / refused), ConfigError);
}

TEST_CASE("what is asked for in an Accelerate file and has no effect is named, what is written anyway is not", "[composition][accelerate]") {
    const auto not_supported = [](const std::string& text) {
        const TemporaryFolder folder("accelerate");
        std::ofstream(folder / "a.yaml") << "distributed_type: 'NO'\n" << text;
        return read_accelerate_config(folder / "a.yaml").not_supported;
    };
    for (const char* asked : {"debug: true", "rdzv_backend: c10d", "main_training_function: train", "enable_cpu_affinity: yes", "downcast_bf16: 'yes'", "dynamo_backend: INDUCTOR",
                              "tpu_name: a", "tpu_use_cluster: true", "tpu_use_sudo: true", "tpu_env: [a]", "command_file: 'no'", "dynamo_config: {dynamo_backend: INDUCTOR}"}) {
        const std::string text = asked;
        CHECK(not_supported(text) == std::vector<std::string>{text.substr(0, text.find(':'))});
    }
    CHECK(not_supported("debug: false\nrdzv_backend: static\nsame_network: false\nmain_training_function: main\nenable_cpu_affinity: false\ndowncast_bf16: 'no'\ndynamo_backend: 'NO'\n"
                        "tpu_name: null\ntpu_use_cluster: false\ntpu_use_sudo: no\ntpu_env: []\ncommand_file: null\ndynamo_config: {}\n")
              .empty());
    CHECK(not_supported("use_cpu: true\n").empty());
}

TEST_CASE("an Accelerate file that asks for GPUs and for the CPU is told which of them it gets", "[composition][accelerate]") {
    const TemporaryFolder folder("accelerate");
    std::ofstream(folder / "a.yaml") << "use_cpu: true\ndistributed_type: MULTI_GPU\nnum_processes: 2\n";
    const AccelerateConfig config = read_accelerate_config(folder / "a.yaml");
    CHECK(config.not_supported == std::vector<std::string>{"distributed_type MULTI_GPU (use_cpu puts the run on the CPU)"});
    CHECK(changes_of_accelerate(config, json::object(), 2).front().not_supported == config.not_supported);
}

TEST_CASE("mistakes in Accelerate's files are said with their line", "[composition][accelerate]") {
    struct Row {
        const char* text;
        const char* says;
    };
    for (const auto& [text, says] : std::initializer_list<Row>{
             {"", ": a configuration of Accelerate is a map of keys and values; this one is empty"},
             {"- 1\n", ": a configuration of Accelerate is a map of keys and values; this one is none"},
             {"use_cpu: true\n", ": distributed_type is missing; give NO, MULTI_CPU, MULTI_GPU or DEEPSPEED"},
             {"distributed_type: 'NO'\nmixed_precison: bf16\n", ":2: mixed_precison: unknown key; did you mean 'mixed_precision'?; it is none of Accelerate's"},
             {"distributed_type: 'NO'\nnum_machines: 1\ndistributed_type: 'NO'\n", ":3: distributed_type: the key stands twice, first in line 1; remove one of them"},
             {"distributed_type: multi_gpu\n", ":1: distributed_type: 'multi_gpu' is none of NO, MULTI_CPU"},
             {"distributed_type: 'NO'\nmixed_precision: bf32\n", ":2: mixed_precision: 'bf32' is none of no, fp16, bf16; did you mean 'bf16'?"},
             {"distributed_type: 'NO'\nmixed_precision: fp8\n", ":2: mixed_precision: fp8 is not supported; give no, fp16 or bf16"},
             {"distributed_type: MULTI_CPU\nnum_processes: two\n", ":2: num_processes: 'two' is no whole number"},
             {"distributed_type: MULTI_CPU\nnum_processes: 0\n", ":2: num_processes: 0 is too few; give at least 1"},
             {"distributed_type: MULTI_CPU\nnum_processes: -99999999999999999999\n", ":2: num_processes: -99999999999999999999 is too few; give at least 1"},
             {"distributed_type: MULTI_CPU\nnum_processes: 4294967296\n", ":2: num_processes: 4294967296 is out of range; give 1 to 2147483647"},
             {"distributed_type: MULTI_CPU\nnum_machines: 99999999999999999999\n", ":2: num_machines: 99999999999999999999 is out of range; give 1 to 2147483647"},
             {"distributed_type: DEEPSPEED\ndeepspeed_config:\n  gradient_accumulation_steps: 4294967296\n", ":3: deepspeed_config.gradient_accumulation_steps: 4294967296 is out of range; give 1 to 2147483647"},
             {"distributed_type: MULTI_CPU\nnum_processes: 3\nnum_machines: 2\nmain_process_ip: a\nmain_process_port: 1\n", ": num_processes is 3, of all machines, and num_machines 2; each machine must have as many processes: give a multiple of 2"},
             {"distributed_type: MULTI_CPU\nnum_processes: 2\nnum_machines: 2\n", ": several machines need main_process_ip and main_process_port, those of machine 0"},
             {"distributed_type: MULTI_CPU\nnum_processes: 2\nnum_machines: 2\nmachine_rank: 2\nmain_process_ip: a\nmain_process_port: 1\n", ": machine_rank is 2, and num_machines 2; machines count from 0"},
             {"distributed_type: MULTI_CPU\nmain_process_port: 70000\n", ":2: main_process_port: 70000 is out of range; give 0 to 65535"},
             {"distributed_type: 'NO'\nnum_processes: 2\n", ": distributed_type is NO, and num_processes 2; give MULTI_CPU or MULTI_GPU"},
             {"distributed_type: 'NO'\nuse_cpu: maybe\n", ":2: use_cpu: 'maybe' is neither true nor false"},
             {"distributed_type: 'NO'\nfsdp_config: 5\n", ":2: fsdp_config: expected a map of keys and values, found a text"},
             {"distributed_type: 'NO'\nfsdp_config:\n  fsdp_shardin_strategy: 1\n", ":3: fsdp_config.fsdp_shardin_strategy: unknown key; did you mean 'fsdp_sharding_strategy'?; fsdp_config has"},
             {"distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 3\n", ":3: deepspeed_config.zero_stage: stage 3 is not supported; supported are 0, and 1, which divides the optimizer's state"},
             {"distributed_type: DEEPSPEED\ndeepspeed_config:\n  offload_optimizer_device: cpu\n", ":3: deepspeed_config.offload_optimizer_device: offloading to cpu is not supported; give none: supported are ZeRO stages 0 and 1, without offloading"},
             {"distributed_type: DEEPSPEED\ndeepspeed_config:\n  offload_param_device: nvme\n", ":3: deepspeed_config.offload_param_device: offloading to nvme is not supported; give none: supported are ZeRO stages 0 and 1, without offloading"},
             {"distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_config_file: a.json\n  zero_stage: 1\n", ":2: deepspeed_config: deepspeed_config_file stands beside zero_stage; give these in that file"},
             {"compute_environment: AMAZON_SAGEMAKER\ndistributed_type: 'NO'\n", ":1: compute_environment: AMAZON_SAGEMAKER is not supported; give LOCAL_MACHINE"},
             {"distributed_type: 'NO'\n  bad: indent\n", ":2: end of map not found"},
         })
        CHECK_THAT(complaint(text), Catch::Matchers::StartsWith(says));
    for (const char* fine : {"distributed_type: NO\n", "distributed_type: 'NO'\nmixed_precision: no\n"}) CHECK(complaint(fine).empty());  // in Python these are false
    CHECK_THROWS_WITH(read_accelerate_config("no/such.yaml"), "no/such.yaml: cannot open the configuration of Accelerate; is the name right? (torchbus config writes one)");
}

TEST_CASE("an Accelerate file asks for the callbacks of its run, on as many ranks as it says", "[composition][accelerate]") {
    AccelerateConfig config{.name = "a.yaml", .distributed_type = "DEEPSPEED", .mixed_precision = "bf16", .processes = 2};
    config.deepspeed = AccelerateConfig::DeepSpeed{.zero_stage = 1, .accumulation = 4, .clipping = 0.5};
    json run = json::object();
    for (const RunChanges& changes : changes_of_accelerate(config, run, 2)) apply(changes, run, "run.json");
    CHECK(run.at("callbacks") == json::array({{{"kind", "data_parallel"}}, {{"kind", "mixed_precision"}, {"precision", "bf16"}}, {{"kind", "device_placement"}, {"device", "auto"}}, {{"kind", "zero_redundancy"}},
                                              {{"kind", "gradient_accumulation"}, {"micro_batches", 4}}, {{"kind", "gradient_clipping"}, {"max_norm", 0.5}}}));
    CHECK_THROWS_WITH(changes_of_accelerate(config, run, 3), "a.yaml: num_processes is 2, and this run has 3 ranks; start it by torchbus launch --config a.yaml, check it with --world-size 2, or change the number");
}

TEST_CASE("Accelerate's files say on which device a run is", "[composition][accelerate]") {
    const auto placed = [](const AccelerateConfig& config, json run) {
        for (const RunChanges& changes : changes_of_accelerate(config, run, config.processes)) apply(changes, run, "run.json");
        for (const json& callback : run.at("callbacks"))
            if (callback.at("kind") == "device_placement") return callback.at("device").get<std::string>();
        return std::string();
    };
    const json own = {{"callbacks", {{{"kind", "device_placement"}, {"device", "cuda:1"}}}}}, none = {{"callbacks", json::array()}};
    CHECK(placed({.name = "a.yaml"}, none) == "auto");
    CHECK(placed({.name = "a.yaml"}, own) == "cuda:1");
    CHECK(placed({.name = "a.yaml", .use_cpu = true}, none) == "cpu");
    CHECK(placed({.name = "a.yaml", .distributed_type = "MULTI_GPU", .processes = 2}, none) == "cuda");
    CHECK(placed({.name = "a.yaml", .distributed_type = "MULTI_CPU", .processes = 2}, none).empty());
    CHECK_THROWS_WITH(placed({.name = "a.yaml", .use_cpu = true}, own), "a.yaml: use_cpu asks for \"cpu\", and run.json: callbacks[0].device is \"cuda:1\"; make them the same, or leave one of them out");
}

TEST_CASE("the answers to a few questions are a file that can be read again", "[composition][accelerate]") {
    std::istringstream answers("cpu\n2\n7\n1\nhost-a\n29501\n2\nbf32\nbf16\n4\nyes\n");
    std::ostringstream questions;
    const AccelerateConfig asked = ask_for_config(answers, questions);
    CHECK_THAT(questions.str(), Catch::Matchers::Contains("'7' is no number from 0 to 1") && Catch::Matchers::Contains("'bf32' is none of no, bf16, fp16; did you mean 'bf16'?"));
    const TemporaryFolder folder("config");
    std::ofstream(folder / "a.yaml") << to_yaml(asked);
    const AccelerateConfig read = read_accelerate_config(folder / "a.yaml");
    CHECK(read.processes == 4);
    CHECK(read.machines == 2);
    CHECK(read.machine_rank == 1);
    CHECK(read.main_address == "host-a");
    CHECK(read.main_port == 29501);
    CHECK(read.mixed_precision == "bf16");
    CHECK(read.use_cpu);
    CHECK(read.distributed_type == "DEEPSPEED");
    CHECK(read.deepspeed->zero_stage == 1);
    CHECK(read.deepspeed->accumulation == 4);
    CHECK(read.not_supported.empty());
    std::istringstream none("\n\n\n\n\n");
    CHECK(to_yaml(ask_for_config(none, questions)) == "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: 'no'\nuse_cpu: true\nnum_machines: 1\nnum_processes: 1\nmachine_rank: 0\n");
    std::istringstream too_many("gpu\n100000\n0\n\n\n100000\n21474\n\n\n\n");
    CHECK(ask_for_config(too_many, questions).processes == 2147400000);
    CHECK_THAT(questions.str(), Catch::Matchers::Contains("'100000' is no number from 1 to 21474"));
    std::istringstream too_few("cpu\n");
    CHECK_THROWS_WITH(ask_for_config(too_few, questions), "config: the answers have come to an end before the questions; nothing was written");
}

TEST_CASE("whatever is made of a configuration file is read, or refused in words", "[composition][accelerate][deepspeed]") {
    std::mt19937 draw(3);
    const auto below = [&](std::size_t count) { return count == 0 ? 0 : draw() % count; };
    const auto large_number = [&] { return std::vector<std::string>{"4294967296", "9223372036854775807", "1e308", "-1"}[below(4)]; };
    const TemporaryFolder folder("mutants");
    int read = 0, refused = 0;
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(configurations())) files.push_back(entry.path());
    std::ranges::sort(files);
    for (const auto& file : files) {
        const std::string whole = bytes_of(file);
        std::vector<std::string> lines;
        for (std::istringstream stream(whole); !stream.eof();) std::getline(stream, lines.emplace_back());
        for (int mutant = 0; mutant < 80; ++mutant) {
            std::string text = whole;
            std::vector<std::string> own = lines;
            const std::size_t line = below(own.size()), other = below(own.size());
            switch (mutant % 8) {
                case 0: text.resize(below(text.size())); break;
                case 1: text[below(text.size())] = static_cast<char>(draw()); break;
                case 2: own.erase(own.begin() + static_cast<std::ptrdiff_t>(line)); break;
                case 3: own.insert(own.begin() + static_cast<std::ptrdiff_t>(line), own[line]); break;
                case 4: std::swap(own[line], own[other]); break;
                case 5:
                    if (const auto colon = own[line].find(':'); colon != std::string::npos) own[line] = own[line].substr(0, colon + 1) + " " + std::vector<std::string>{"null", "[1, 2]", "{\"a\": 1}", "-1", "1e400", "\"auto\"", "true", "\"\\ud800\""}[below(8)] + (file.extension() == ".json" ? "," : "");
                    break;
                case 6: own[line] = with_numbers(own[line], large_number()); break;
                case 7: std::ranges::transform(own, own.begin(), [number = large_number()](const std::string& one) { return with_numbers(one, number); }); break;
                default: break;
            }
            if (mutant % 8 >= 2) {
                text.clear();
                for (const std::string& one : own) text += one + "\n";
            }
            const auto path = folder / ("mutant" + file.extension().string());
            std::ofstream(path, std::ios::binary) << text;
            INFO(file.filename() << ", mutant " << mutant << ":\n" << text);
            try {
                json run = {{"train", {{"batch_size", 8}}}};
                if (file.extension() == ".json") {
                    const int ranks = world_size_of_deepspeed(path).value_or(2);
                    apply(changes_of_deepspeed(path, run, ranks), run, "run.json");
                } else {
                    read_accelerate_config(path);
                }
                ++read;
            } catch (const ConfigError& error) {
                CHECK(std::string(error.what()).size() > path.string().size());
                ++refused;
            }
        }
    }
    CHECK(read + refused == 1600);
    CHECK(read > 100);
    CHECK(refused > 300);
}

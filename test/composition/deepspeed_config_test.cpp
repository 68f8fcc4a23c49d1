// What DeepSpeed's files ask for, and what is said of those that are wrong.
#include <fstream>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/mixed_precision.hpp>
#include <torchbus/composition/deepspeed_config.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/deepspeed_schedule.hpp>

#include "support/catch.hpp"
#include "support/source_root.hpp"
#include "support/temporary_folder.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

const json kRun = {{"model", {{"kind", "mlp"}}}, {"train", {{"batch_size", 16}}}};

/// The run file with what `text` asks for, or what it is refused with, without the file's name.
std::string outcome(const std::string& text, json run = kRun, int world_size = 1) {
    const TemporaryFolder folder("deepspeed");
    std::ofstream(folder / "ds.json") << text;
    const std::string prefix = (folder / "ds.json").string() + ": ";
    try {
        apply(changes_of_deepspeed(folder / "ds.json", run, world_size), run, "run.json");
    } catch (const ConfigError& error) {
        const std::string message = error.what();
        return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
    }
    return run.dump();
}

json changed(const std::string& text, const json& run = kRun, int world_size = 1) { return json::parse(outcome(text, run, world_size)); }

const json* callback(const json& run, const char* kind) {
    if (!run.contains("callbacks")) return nullptr;
    for (const json& one : run.at("callbacks"))
        if (one.at("kind") == kind) return &one;
    return nullptr;
}

std::filesystem::path configuration(const char* name) { return std::filesystem::path(source_root()) / "test/composition/configurations" / name; }

}  // namespace

TEST_CASE("the batch sizes of a DeepSpeed file complete each other", "[composition][deepspeed]") {
    // Source: DeepSpeed 0.19.8 on 4 ranks, and the messages that it has for the rest.
    struct Row {
        BatchTriple given;
        std::int64_t train, micro, accumulation;
    };
    const std::optional<std::int64_t> no;
    for (const auto& [given, train, micro, accumulation] : std::vector<Row>{{{32, 8, 1}, 32, 8, 1}, {{32, 4, no}, 32, 4, 2}, {{32, no, 2}, 32, 4, 2}, {{no, 3, 5}, 60, 3, 5}, {{32, no, no}, 32, 8, 1}, {{no, 6, no}, 24, 6, 1}}) {
        const BatchTriple found = completed(given, 4, "ds.json");
        CHECK(found.train == train);
        CHECK(found.micro == micro);
        CHECK(found.accumulation == accumulation);
    }
    CHECK_THROWS_WITH(completed({32, 3, no}, 4, "ds.json"), "ds.json: train_batch_size 32 = train_micro_batch_size_per_gpu 3 x gradient_accumulation_steps 2 x 4 ranks does not hold: that is 24; change one of them, or leave it out");
    CHECK_THROWS_WITH(completed({2, 4, no}, 4, "ds.json"), "ds.json: train_batch_size 2 = train_micro_batch_size_per_gpu 4 x gradient_accumulation_steps 0 x 4 ranks: each must be above 0; give sizes that multiply");
    CHECK_THROWS_WITH(completed({no, -3, 5}, 4, "ds.json"), "ds.json: train_micro_batch_size_per_gpu: -3 is out of range; give 1 to 2147483647");
    CHECK_THROWS_WITH(completed({no, no, 2}, 4, "ds.json"), "ds.json: neither train_batch_size nor train_micro_batch_size_per_gpu is given, and the run file has no train.batch_size; give one of them");
}

TEST_CASE("batch sizes that are too large are refused, be they of a DeepSpeed file or of the run file", "[composition][deepspeed]") {
    const std::optional<std::int64_t> no;
    const std::int64_t most = 2147483647;
    CHECK(completed({most, no, no}, 1, "ds.json").micro == most);
    CHECK_THROWS_WITH(completed({most + 1, no, no}, 1, "ds.json"), "ds.json: train_batch_size: 2147483648 is out of range; give 1 to 2147483647");
    CHECK_THROWS_WITH(completed({no, most, 2}, 1, "ds.json"), "ds.json: train_micro_batch_size_per_gpu 2147483647 x gradient_accumulation_steps 2 x 1 rank is more than 2147483647; give smaller sizes");
    CHECK_THROWS_WITH(completed({8, most, most}, 1 << 20, "ds.json"), "ds.json: train_batch_size 8 = train_micro_batch_size_per_gpu 2147483647 x gradient_accumulation_steps 2147483647 x 1048576 ranks does not hold: that is more than 2147483647; "
                                                                      "change one of them, or leave it out");
    json run = {{"train", {{"batch_size", 4294967296}}}};
    CHECK(outcome(R"({"train_micro_batch_size_per_gpu": "auto"})", run) == "train.batch_size of the run file: 4294967296 is out of range; give 1 to 2147483647");
    run = {{"train", {{"batch_size", 8}}}, {"callbacks", {{{"kind", "gradient_accumulation"}, {"micro_batches", 0}}}}};
    CHECK(outcome(R"({"gradient_accumulation_steps": "auto"})", run) == "gradient_accumulation's micro_batches of the run file: 0 is out of range; give 1 to 2147483647");
}

TEST_CASE("a DeepSpeed file that gives all batch sizes says how many ranks it is for", "[composition][deepspeed]") {
    const TemporaryFolder folder("deepspeed");
    const std::filesystem::path file = folder / "ds.json";
    const auto ranks = [&](const char* text) {
        std::ofstream(file) << text;
        return world_size_of_deepspeed(file);
    };
    CHECK(ranks(R"({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2})") == 8);
    CHECK(ranks(R"({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4})") == 16);
    CHECK_FALSE(ranks(R"({"train_batch_size": 64, "gradient_accumulation_steps": 2})"));
    CHECK_FALSE(ranks(R"({"train_batch_size": 63, "train_micro_batch_size_per_gpu": 4})"));
    CHECK_FALSE(ranks(R"({"train_batch_size": 2, "train_micro_batch_size_per_gpu": 2147483647, "gradient_accumulation_steps": 2147483647})"));
    CHECK(ranks(R"({"train_batch_size": 2147483647, "train_micro_batch_size_per_gpu": 1})") == 2147483647);
    // The product of these is 0 in 64 bits.
    CHECK_THROWS_WITH(ranks(R"({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4294967296, "gradient_accumulation_steps": 4294967296})"),
                      file.string() + ": train_micro_batch_size_per_gpu: 4294967296 is out of range; give 1 to 2147483647");
}

TEST_CASE("a DeepSpeed file asks for the optimizer, schedule and callbacks of a run", "[composition][deepspeed]") {
    const json run = changed(R"({"train_batch_size": 64, "gradient_accumulation_steps": 2, "gradient_clipping": 0.5,
        "optimizer": {"type": "Adam", "params": {"lr": 0.0002, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": "auto", "warmup_num_steps": 7, "warmup_type": "linear"}},
        "fp16": {"enabled": true, "initial_scale_power": 12}, "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "none"}}})",
                             json::object(), 2);
    CHECK(run.at("train") == json{{"batch_size", 16}});
    CHECK(run.at("optimizer") == json{{"kind", "adamw"}, {"learning_rate", 0.0002}, {"beta1", 0.9}, {"beta2", 0.98}, {"epsilon", 1e-6}, {"weight_decay", 0.01}});
    CHECK(run.at("schedule") == json{{"kind", "deepspeed"}, {"type", "WarmupLR"}, {"learning_rate", 0.0002}, {"warmup_min_lr", 0}, {"warmup_max_lr", 0.0002}, {"warmup_num_steps", 7}, {"warmup_type", "linear"}});
    CHECK(*callback(run, "gradient_accumulation") == json{{"kind", "gradient_accumulation"}, {"micro_batches", 2}});
    CHECK(*callback(run, "gradient_clipping") == json{{"kind", "gradient_clipping"}, {"max_norm", 0.5}});
    CHECK(*callback(run, "mixed_precision") == json{{"kind", "mixed_precision"}, {"precision", "fp16"}, {"initial_scale", 4096}, {"growth_interval", 1000}});
    CHECK(callback(run, "zero_redundancy"));
    CHECK(callback(run, "data_parallel"));
}

TEST_CASE("what is auto in a DeepSpeed file is what the run file says, or DeepSpeed's default", "[composition][deepspeed]") {
    json run = kRun;
    run["optimizer"] = {{"kind", "adamw"}, {"learning_rate", 0.03}, {"beta2", 0.95}};
    run["callbacks"] = {"progress_bar", {{"kind", "gradient_accumulation"}, {"micro_batches", 3}}};
    const json made = changed(R"({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}, "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"},
        "zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}})", run, 2);
    CHECK(made.at("train").at("batch_size") == 16);
    CHECK(made.at("callbacks")[1].at("micro_batches") == 3);
    CHECK(made.at("optimizer") == json{{"kind", "adamw"}, {"learning_rate", 0.03}, {"beta1", 0.9}, {"beta2", 0.95}, {"epsilon", 1e-8}, {"weight_decay", 0}});
    CHECK_FALSE(callback({{"callbacks", {made.at("callbacks")[1]}}}, "mixed_precision"));
}

TEST_CASE("a fixed loss scale of a DeepSpeed file is one that neither grows nor falls", "[composition][deepspeed]") {
    const json run = changed(R"({"train_batch_size": 8, "fp16": {"enabled": true, "loss_scale": 128}})", json::object());
    const json& made = *callback(run, "mixed_precision");
    CHECK(made.at("initial_scale") == 128);
    CHECK_NOTHROW(make_mixed_precision({.precision = MixedPrecisionOptions::Precision::Fp16, .initial_scale = made.at("initial_scale"), .growth_factor = made.at("growth_factor"), .backoff_factor = made.at("backoff_factor")}));
}

TEST_CASE("a number of updates in a DeepSpeed file may be written as a decimal", "[composition][deepspeed]") {
    const json run = changed(R"({"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 1e4, "warmup_num_steps": 500.0, "warmup_max_lr": 0.001}}})");
    CHECK(run.at("schedule").dump() == R"({"kind":"deepspeed","total_num_steps":10000,"type":"WarmupDecayLR","warmup_max_lr":0.001,"warmup_num_steps":500})");
}

TEST_CASE("comments and commas before a bracket are passed over in DeepSpeed files", "[composition][deepspeed]") {
    const json run = changed("{ // a comment with a \" in it\n \"train_batch_size\": 8, # and another\n /* \"gradient_clipping\": 3, */ \"gradient_clipping\": 1.0,\n \"wandb\": {\"team\": \"# // /* none */\",},\n}", json::object());
    CHECK(run.at("train").at("batch_size") == 8);
    CHECK(callback(run, "gradient_clipping")->at("max_norm") == 1.0);
}

TEST_CASE("what a DeepSpeed file and the run file say must be the same", "[composition][deepspeed]") {
    CHECK_THAT(outcome(R"({"train_micro_batch_size_per_gpu": 4})"), Catch::Matchers::EndsWith("train_micro_batch_size_per_gpu asks for 4, and run.json: train.batch_size is 16; make them the same, or leave one of them out"));
    json run = kRun;
    run["optimizer"] = {{"kind", "sgd"}};
    CHECK_THAT(outcome(R"({"optimizer": {"type": "AdamW", "params": {}}})", run), Catch::Matchers::EndsWith("optimizer.type asks for \"adamw\", and run.json: optimizer.kind is \"sgd\"; make them the same, or leave one of them out"));
    run["callbacks"] = {{{"kind", "gradient_accumulation"}, {"micro_batches", 4}}};
    CHECK_THAT(outcome(R"({"train_batch_size": 16, "train_micro_batch_size_per_gpu": 16})", run), Catch::Matchers::StartsWith("train_batch_size asks for 1, and run.json: callbacks[0].micro_batches is 4; make them the same"));
    run["callbacks"] = {{{"kind", "gradient_clipping"}, {"max_norm", 2.0}}};
    CHECK_THAT(outcome(R"({"gradient_clipping": 1.0})", run), Catch::Matchers::EndsWith("gradient_clipping asks for 1.0, and run.json: callbacks[0].max_norm is 2.0; make them the same, or leave one of them out"));
}

TEST_CASE("mistakes in DeepSpeed files are said at their place", "[composition][deepspeed]") {
    struct Row {
        const char* text;
        const char* says;
    };
    for (const auto& [text, says] : std::initializer_list<Row>{
             {"{\"train_batch_size\": 8,\n \"train_batch_size\": 9}", "the key 'train_batch_size' stands twice in one object; remove one of them"},
             {"{\"train_batch_size\": 8,\n  oops}", "line 2, column 3: syntax error while parsing object key - invalid literal; last read: '8,<U+000A>  o'; expected string literal"},
             {"{\"train_batch_size\": 1e400}", "number overflow parsing '1e400'"},
             {"[]", "a configuration of DeepSpeed is a JSON object; found a array"},
             {R"({"gradient_clippin": 1})", "unknown key 'gradient_clippin'; did you mean 'gradient_clipping'?; it is none of DeepSpeed's"},
             {R"({"zero_optimization": {"stages": 1}})", "zero_optimization: unknown key 'stages'; did you mean 'stage'?; known are stage, contiguous_gradients"},
             {R"({"zero_optimization": {"stage": 2}})", "zero_optimization.stage: stage 2 is not supported, as it divides gradients, too, among ranks; supported are 0, and 1, which divides the optimizer's state"},
             {R"({"zero_optimization": {"stage": 3}})", "zero_optimization.stage: stage 3 is not supported, as it divides gradients and parameters, too, among ranks; supported are 0, and 1"},
             {R"({"zero_optimization": {"stage": 4}})", "zero_optimization.stage: 4 is no stage of ZeRO; give 0 or 1"},
             {R"({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}})", "zero_optimization.offload_optimizer: offloading to \"cpu\" is not supported; leave it out: supported are ZeRO stages 0 and 1, without offloading"},
             {R"({"zero_optimization": {"offload_param": {"device": "nvme"}}})", "zero_optimization.offload_param: offloading to \"nvme\" is not supported; leave it out: supported are ZeRO stages 0 and 1, without offloading"},
             {R"({"zero_optimization": {"cpu_offload": true}})", "zero_optimization.cpu_offload: offloading is not supported; leave it out: supported are ZeRO stages 0 and 1, without offloading"},
             {R"({"gradient_clipping": "one"})", "gradient_clipping: \"one\" is string, expected a number"},
             {R"({"gradient_clipping": -1})", "gradient_clipping: -1 is negative; give the largest allowed gradient norm, or 0 for none"},
             {R"({"train_batch_size": 8.5})", "train_batch_size: 8.5 is number, expected a whole number"},
             {R"({"train_batch_size": 4294967296})", "train_batch_size: 4294967296 is out of range; give 1 to 2147483647"},
             {R"({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 1e308})", "train_micro_batch_size_per_gpu: 1e+308 is out of range; give 1 to 2147483647"},
             {R"({"train_batch_size": 8, "gradient_accumulation_steps": -1})", "gradient_accumulation_steps: -1 is out of range; give 1 to 2147483647"},
             {R"({"fp16": {"enabled": true, "loss_scale_window": 0}})", "fp16.loss_scale_window: 0 is out of range; give 1 to 2147483647"},
             {R"({"fp16": {"enabled": "yes"}})", "fp16.enabled: \"yes\" is string, expected true, false or \"auto\""},
             {R"({"fp16": {"enabled": true}, "bf16": {"enabled": true}})", "fp16.enabled and bf16.enabled are both true; leave one of them"},
             {R"({"fp16": true})", "fp16: true is boolean, expected an object"},
             {R"({"optimizer": {"type": "Lion"}})", "optimizer.type: 'Lion' is not supported; give one of Adam, AdamW, SGD, Adagrad"},
             {R"({"optimizer": {"type": "AdanW"}})", "optimizer.type: 'AdanW' is no optimizer of DeepSpeed's; did you mean 'AdamW'?; give one of Adam, AdamW, SGD, Adagrad"},
             {R"({"optimizer": {"type": "Adam", "params": {"learning_rate": 1}}})", "optimizer.params: unknown key 'learning_rate'; Adam takes adam_w_mode, lr, eps"},
             {R"({"optimizer": {"type": "Adam", "params": {"max_grad_norm": 1}}})", "optimizer.params.max_grad_norm: gradients are clipped by gradient_clipping; give it there"},
             {R"({"optimizer": {"type": "Adam", "params": {"betas": [0.9]}}})", "optimizer.params.betas: [0.9] is array, expected two numbers in [0, 1), e.g. [0.9, 0.999]"},
             {R"({"optimizer": {"type": "Adam", "params": {"betas": [0.9, 1]}}})", "optimizer.params.betas: [0.9,1] is array, expected two numbers in [0, 1), e.g. [0.9, 0.999]"},
             {R"({"scheduler": {"type": "WarmupDecayLR", "params": {}}})", "scheduler.params.total_num_steps: WarmupDecayLR needs it"},
             {R"({"scheduler": {"type": "WarmupLr", "params": {}}})", "scheduler.type: 'WarmupLr' is not supported; did you mean 'WarmupLR'?; give one of LRRangeTest"},
             {R"({"scheduler": {"type": "WarmupLR"}})", "scheduler.params: WarmupLR needs an object here"},
             {R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_steps": 3}}})", "scheduler.params: unknown key 'warmup_steps'; did you mean"},
             {R"({"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 0.1, "cycle_max_lr": 1}}})", "scheduler.params.cycle_momentum: it is true where it is left out, and a momentum that cycles is not supported; give false"},
             {R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "ten"}}})", "scheduler.params.warmup_num_steps: \"ten\" is string, expected a number"},
             {R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 1.5}}})", "scheduler.params.warmup_num_steps: 1.5 is number, expected a whole number"},
             {R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": -1}}})", "scheduler.params.warmup_num_steps: -1 is out of range; give 0 to 2147483647"},
             {R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": true}}})", "scheduler.params.warmup_max_lr: true is boolean, expected a number"},
             {R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": -0.5}}})", "scheduler.params.warmup_max_lr: -0.5 is negative; give at least 0"},
             {R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": [0.1, 0.2]}}})", "scheduler.params.warmup_min_lr: [0.1,0.2] is array, expected one number for all parameter groups"},
             {R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_type": 1}}})", "scheduler.params.warmup_type: 1 is number, expected \"log\" or \"linear\""},
             {R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "cubic"}}})", "scheduler.params.warmup_type: \"cubic\" is string, expected \"log\" or \"linear\""},
             {R"({"scheduler": {"type": "LRRangeTest", "params": {"lr_range_test_staircase": 1}}})", "scheduler.params.lr_range_test_staircase: 1 is number, expected true or false"},
             {R"({"scheduler": {"type": "LRRangeTest", "params": {"lr_range_test_step_size": 0}}})", "scheduler.params.lr_range_test_step_size: 0 is out of range; give 1 to 2147483647"},
             {R"({"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 0.1, "cycle_max_lr": 1, "cycle_momentum": "no"}}})", "scheduler.params.cycle_momentum: \"no\" is string, expected true or false"},
             {R"({"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 0.1, "cycle_max_lr": 1, "cycle_momentum": false, "cycle_min_mom": "x"}}})", "scheduler.params.cycle_min_mom: \"x\" is string, expected a number"},
             {R"({"optimizer": {"type": "SGD", "params": {"lr": "high"}}})", "optimizer.params.lr: \"high\" is string, expected a number"},
             {R"({"optimizer": {"type": "SGD", "params": {"lr": -0.1}}})", "optimizer.params.lr: -0.1 is negative; give at least 0"},
             {R"({"optimizer": {"type": "SGD", "params": {"nesterov": 1}}})", "optimizer.params.nesterov: 1 is number, expected true or false"},
             {R"({"optimizer": {"type": "AdamW", "params": {"torch_adam": "yes"}}})", "optimizer.params.torch_adam: \"yes\" is string, expected true or false"},
             {R"({"optimizer": {"type": "AdamW", "params": {"fused": 1}}})", "optimizer.params.fused: 1 is number, expected true or false"},
             {R"({"communication_data_type": "fp16"})", "communication_data_type: 'fp16' is not supported; give fp32 or bf16"},
             {R"({"compression_training": {"weight_quantization": {}}})", "compression_training: it is not supported, and would train another model; take it out, or disable it"},
             {R"({"amp": {"enabled": true}})", "amp: it is not supported, and would train another model; take it out, or disable it"},
             {R"({"sequence_parallel_size": 2})", "sequence_parallel_size: 2 is not supported"},
         })
        CHECK_THAT(outcome(text), Catch::Matchers::StartsWith(says));
    CHECK_THROWS_WITH(changes_of_deepspeed("no/such.json", kRun, 1), "no/such.json: cannot open the configuration of DeepSpeed; is the name right?");
}

TEST_CASE("DeepSpeed files of the field ask for what they say, and what has no effect is named", "[composition][deepspeed]") {
    const auto read = [](const char* name, int world_size) { return changes_of_deepspeed(configuration(name), kRun, world_size); };
    CHECK(read("plain_adam_warmup.json", 8).not_supported == std::vector<std::string>{"wall_clock_breakdown", "fp16.auto_cast"});
    CHECK(read("onecycle_sgd.json", 8).not_supported == std::vector<std::string>{"steps_per_print"});
    CHECK_THROWS_WITH(read("comments_hjson.json", 8), Catch::Matchers::EndsWith("supported are 0, and 1, which divides the optimizer's state"));
    CHECK_THROWS_WITH(read("bad_batch_and_zero_key.json", 8), Catch::Matchers::Contains("zero_optimization: unknown key 'stage3_prefetch_bucket_sizes'; did you mean 'stage3_prefetch_bucket_size'?"));
    for (const char* refused : {"monitor_comms.json", "zero2_hf_auto.json", "zero3_offload_auto.json", "nvme_infinity_aio.json", "legacy_removed_keys.json", "deprecated_cpu_offload.json"}) CHECK_THROWS_AS(read(refused, 8), ConfigError);
}

TEST_CASE("sections and keys of a DeepSpeed file that would change nothing here are named", "[composition][deepspeed]") {
    const auto not_supported = [](const char* text) {
        const TemporaryFolder folder("deepspeed");
        std::ofstream(folder / "ds.json") << text;
        return changes_of_deepspeed(folder / "ds.json", kRun, 1).not_supported;
    };
    CHECK(not_supported(R"({"pipeline": {"stages": 4}})") == std::vector<std::string>{"pipeline"});
    CHECK(not_supported(R"({"optimizer": {"legacy_fusion": true}})") == std::vector<std::string>{"optimizer.legacy_fusion"});
    CHECK(not_supported(R"({"optimizer": {"type": "Adam", "params": {"fused": true}, "legacy_fusion": false}})") == std::vector<std::string>{"optimizer.legacy_fusion", "optimizer.params.fused"});
    CHECK(not_supported(R"({"amp": {"enabled": false}})").empty());
}

TEST_CASE("DeepSpeed's schedules have its numbers", "[optim][deepspeed]") {
    // Source: the schedulers of DeepSpeed 0.19.8, stepped after every update.
    struct Row {
        DeepSpeedScheduleOptions options;
        std::vector<double> rates;
    };
    const std::vector<Row> rows = {
        {{.type = "WarmupLR", .learning_rate = 1, .warmup_num_steps = 4}, {0, 0, 0.5, 0.792481, 1, 1}},
        {{.type = "WarmupLR", .learning_rate = 1, .warmup_min_lr = 0.1, .warmup_num_steps = 4, .warmup_is_linear = true}, {0.1, 0.1, 0.325, 0.55, 0.775, 1}},
        {{.type = "WarmupDecayLR", .learning_rate = 2, .total_num_steps = 10, .warmup_max_lr = 1, .warmup_num_steps = 4, .warmup_is_linear = true},
         {0, 0, 0.25, 0.5, 0.75, 1, 0.833333, 0.666667, 0.5, 0.333333, 0.166667, 0}},
        {{.type = "WarmupCosineLR", .learning_rate = 1, .total_num_steps = 10, .warmup_num_steps = 4, .warmup_is_linear = true, .warmup_min_ratio = 0.1, .cos_min_ratio = 0.01},
         {0, 0.1, 0.325, 0.55, 0.775, 0.933683, 0.7525, 0.505, 0.2575, 0.0763174, 0.01, 0.01}},
        {{.type = "LRRangeTest", .learning_rate = 1, .lr_range_test_min_lr = 0.1, .lr_range_test_step_size = 4, .lr_range_test_step_rate = 2}, {0.1, 0.15, 0.2, 0.25, 0.3}},
        {{.type = "LRRangeTest", .learning_rate = 1, .lr_range_test_min_lr = 0.1, .lr_range_test_step_size = 4, .lr_range_test_step_rate = 2, .lr_range_test_staircase = true}, {0.1, 0.1, 0.1, 0.1, 0.3, 0.3, 0.3, 0.3, 0.5}},
        {{.type = "OneCycle", .learning_rate = 1, .cycle_min_lr = 0.1, .cycle_max_lr = 1, .decay_lr_rate = 0.5, .cycle_first_step_size = 4, .cycle_second_step_size = 3, .decay_step_size = 2},
         {0.1, 0.325, 0.55, 0.775, 1, 0.7, 0.4, 0.1, 0.08, 0.0666667, 0.0571429}},
    };
    for (const auto& [options, rates] : rows) {
        const Schedule schedule = make_deepspeed_schedule(options);
        for (std::size_t step = 0; step < rates.size(); ++step) {
            Moment moment;
            moment.length.steps = 10;
            moment.position.step = static_cast<std::int64_t>(step);
            INFO(options.type << " at step " << step);
            CHECK(schedule(moment) * options.learning_rate == Approx(rates[step]).margin(1e-6));
        }
    }
    CHECK_THROWS_WITH(make_deepspeed_schedule({.type = "Cosine"}), "deepspeed schedule: 'Cosine' is no type; give LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR or WarmupCosineLR");
    CHECK_THROWS_WITH(make_deepspeed_schedule({.warmup_num_steps = -1}), "deepspeed schedule: warmup_num_steps: -1 is out of range; give at least 0");
}

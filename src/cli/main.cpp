// The `torchbus` program. It links no LibTorch, so that --help answers at once: commands that need it are in
// libtorchbus_cli.so, which is loaded when one of them is called.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <string_view>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/composition/accelerate_config.hpp>
#include <torchbus/data/fetch.hpp>
#include <torchbus/error.hpp>
#include <torchbus/events_reference.hpp>
#include <torchbus/state_machine.hpp>

namespace {

using nlohmann::json;

int run_with_torch(const std::string& command, const json& options) {
    void* library = dlopen("libtorchbus_cli.so", RTLD_NOW | RTLD_GLOBAL);
    if (!library) {
        std::fprintf(stderr, "torchbus: '%s' needs LibTorch, which could not be loaded: %s\n", command.c_str(), dlerror());
        return 1;
    }
    using Run = int (*)(const char*, const char*);
    const auto run = reinterpret_cast<Run>(dlsym(library, "torchbus_run_command"));
    if (!run) throw torchbus::Error("libtorchbus_cli.so is of another version than this program; install both anew");
    return run(command.c_str(), options.dump().c_str());
}

int print_events(const std::string& name) {
    std::vector<std::string> known;
    for (const torchbus::EventReference& event : torchbus::event_reference()) {
        known.emplace_back(event.name);
        if (!name.empty() && event.name != name) continue;
        std::cout << event.name << "\n    fires      " << event.fires << "\n    on         " << event.ranks << "\n";
        if (!event.changes.empty()) std::cout << "    may change " << event.changes << "\n";
        if (!name.empty()) return 0;
    }
    if (name.empty()) return 0;
    throw torchbus::ConfigError("unknown event '" + name + "'" + torchbus::did_you_mean(name, known) + " (torchbus events lists them)");
}

int write_config(const std::string& to) {
    const std::string file = to.empty() ? "accelerate.yaml" : to;
    const torchbus::AccelerateConfig config = torchbus::ask_for_config(std::cin, std::cerr);
    torchbus::AtomicFile out(file);
    out.write(torchbus::to_yaml(config));
    out.commit();
    std::cerr << file << " is written; use it: torchbus launch --config " << file << " -- torchbus train RUN.json --set accelerate=" << file << '\n';
    return 0;
}

struct Arguments {
    std::string run_file, weights, to, svg, name, from, format = "mermaid", dataset, resume, action, key;
    std::vector<std::string> set, plugins, allow, paths, include, skip, rename;
    bool markdown = false;
    int world_size = 0;
    json launch = json::object();
    std::vector<std::string> command;  ///< that is launched
};

/// What follows `--` is a command of its own. Returns how many arguments come before it.
int take_command(int argc, char** argv, Arguments& arguments) {
    const auto end = std::find(argv, argv + argc, std::string_view("--"));
    if (argc < 2 || argv[1] != std::string_view("launch") || end == argv + argc) return argc;
    arguments.command.assign(end + 1, argv + argc);
    return static_cast<int>(end - argv);
}

/// The names are those of torchrun.
void add_launch(CLI::App& app, Arguments& arguments) {
    CLI::App* command = app.add_subcommand("launch", "start a command once for every rank, and look after them");
    json& launch = arguments.launch;
    launch = json::object();
    const auto integer = [&](const char* flag, const char* key, const char* about) {
        command->add_option_function<int>(flag, [&launch, key](int value) { launch[key] = value; }, about);
    };
    const auto text = [&](const char* flag, const char* key, const char* about) {
        command->add_option_function<std::string>(flag, [&launch, key](const std::string& value) { launch[key] = value; }, about);
    };
    text("--config", "config", "a YAML of Accelerate or of torchbus config: processes, machines and where they meet; flags come before it");
    integer("--nproc-per-node", "processes", "processes on this node; default: 1");
    integer("--nnodes", "nodes", "nodes; the command is launched on each; default: 1");
    integer("--node-rank", "node", "which node this is, from 0");
    text("--master-addr", "master_address", "address of node 0, whose launcher opens the meeting point; default: 127.0.0.1");
    integer("--master-port", "master_port", "its port; default: a free one, on one node");
    integer("--max-restarts", "max_restarts", "how often all ranks are started again where one has failed; default: 0");
    text("--log-dir", "log_folder", "folder for what each rank says: <restart>/rank_<n>.out and .err");
    command->add_option_function<double>("--grace", [&launch](double value) { launch["grace_s"] = value; }, "s between a signal to stop and the kill; default: 30");
    text("--run-id", "run_id", "a name for the run, where several share a meeting point");
    command->footer("The command follows after --, as in: torchbus launch --nproc-per-node 2 -- torchbus train run.json");
}

CLI::App* add_run_command(CLI::App& app, Arguments& arguments, const char* name, const char* about) {
    CLI::App* command = app.add_subcommand(name, about);
    command->add_option("RUN.json", arguments.run_file, "run file: model, data, optimizer, schedule, callbacks")->required();
    command->add_option("--set", arguments.set, "override an option, e.g. --set optimizer.learning_rate=0.01")->allow_extra_args(false);
    return command;
}

void add_checkpoint_commands(CLI::App& app, Arguments& arguments) {
    CLI::App* checkpoint = app.add_subcommand("checkpoint", "training states and files of weights")->require_subcommand(1);
    const auto add = [&](const char* name, const char* about, const char* what, const char* about_what, int at_least, int at_most) {
        CLI::App* command = checkpoint->add_subcommand(name, about);
        command->add_option(what, arguments.paths, about_what)->required()->expected(at_least, at_most);
        command->callback([&arguments, name] { arguments.action = name; });
        return command;
    };
    const char* any = "a training state's folder, a safetensors file, or a file of Python's torch.save";
    add("ls", "list a folder's training states, newest first", "FOLDER", "where a run saves, e.g. checkpoints", 1, 1);
    CLI::App* show = add("show", "print what is in it: position, parts, tensors", "PATH", any, 1, 1);
    add("verify", "read all of it and compare every checksum", "PATH", any, 1, 1000);
    CLI::App* write = add("export", "write its weights as safetensors, or for Python's torch.load", "FROM TO", "from where; to a name that ends in .safetensors, .pt, .pth or .bin", 2, 2);
    CLI::App* read = add("import", "write a Python file's weights as safetensors; nothing of it is executed", "FROM TO", "from where; to a name that ends in .safetensors", 2, 2);
    CLI::App* diff = add("diff", "compare two, tensor by tensor and value by value; exit code 1 where they differ", "A B", any, 2, 2);
    CLI::App* average = add("average", "write the mean of their weights", "FROM... TO", "from where; last, the name to write to", 2, 1000);
    for (CLI::App* command : {show, write, read, diff, average}) {
        command->add_option("--key", arguments.key, "of a Python file: the dictionary that holds the weights, e.g. state_dict");
        command->add_option("--include", arguments.include, "pattern of names to take; default: all")->allow_extra_args(false);
        command->add_option("--skip", arguments.skip, "pattern of names to leave out")->allow_extra_args(false);
        command->add_option("--rename", arguments.rename, "FROM=TO, e.g. 'module.*=*'; the first that fits counts")->allow_extra_args(false);
    }
}

void add_commands(CLI::App& app, Arguments& arguments) {
    CLI::App* train = add_run_command(app, arguments, "train", "train as a run file says");
    train->add_option("--resume", arguments.resume, "go on from a training state, or from the newest whole one of a folder; auto: of the folder that the run saves to");
    train->add_option("--allow", arguments.allow, "a difference to the saved run that is no reason to refuse, e.g. callback.model_ema")->allow_extra_args(false);
    CLI::App* evaluate = add_run_command(app, arguments, "evaluate", "evaluate weights on the run's evaluation data; prints JSON");
    CLI::App* predict = add_run_command(app, arguments, "predict", "print the model's outputs for the run's evaluation data, one JSON object a line");
    for (CLI::App* command : {evaluate, predict})
        command->add_option("--weights", arguments.weights, "safetensors file; default: model.safetensors in the run's output folder");
    predict->add_option("--to", arguments.to, "file to write to; default: standard output");
    add_run_command(app, arguments, "check", "make all that a run file names and print it, without training")
        ->add_option("--world-size", arguments.world_size, "as the first of so many ranks, with one update over c10d's fake backend")->check(CLI::Range(1, 1 << 20));
    add_run_command(app, arguments, "schedule", "draw what the run's schedules set before each update")
        ->add_option("--svg", arguments.svg, "file to write the curves to as well");
    add_run_command(app, arguments, "summary", "print the model's parameters");
    CLI::App* callbacks = app.add_subcommand("callbacks", "list the callbacks, or tell of one: options, and what it listens to, reads and writes");
    callbacks->add_option("NAME", arguments.name, "a callback, e.g. gradient_clipping");
    callbacks->add_flag("--markdown", arguments.markdown, "print the table of the README");
    CLI::App* schema = app.add_subcommand("schema", "print the JSON Schema of a run file");
    for (CLI::App* command : {callbacks, schema})
        command->add_option("--plugin", arguments.plugins, "a shared object whose kinds are listed, too")->allow_extra_args(false);
    app.add_subcommand("events", "list the events, or tell of one")->add_option("NAME", arguments.name, "an event, e.g. gradients_ready");
    app.add_subcommand("graph", "print the state machine")->add_option("--format", arguments.format, "mermaid or dot")->check(CLI::IsMember({"mermaid", "dot"}));
    add_checkpoint_commands(app, arguments);
    add_launch(app, arguments);
    app.add_subcommand("config", "ask how many processes train and in which precision, and write what launch --config reads")
        ->add_option("--to", arguments.to, "file to write to; default: accelerate.yaml");
    CLI::App* fetch = app.add_subcommand("data", "data sets")->require_subcommand(1)->add_subcommand("fetch", "fetch a data set and verify it");
    fetch->add_option("DATASET", arguments.dataset, "mnist")->required()->check(CLI::IsMember({"mnist"}));
    fetch->add_option("--to", arguments.to, "folder to put it into; default: the cache, where run files look");
    fetch->add_option("--from", arguments.from, "folder that already has the files");
}

int run(const CLI::App& app, const Arguments& arguments) {
    const CLI::App* command = app.get_subcommands().front();
    const std::string name = command->get_name();
    if (name == "events") return print_events(arguments.name);
    if (name == "graph") return std::cout << (arguments.format == "dot" ? torchbus::state_graph_dot() : torchbus::state_graph_mermaid()), 0;
    if (name == "config") return write_config(arguments.to);
    if (name == "data") {
        torchbus::FetchOptions options;
        if (!arguments.to.empty()) options.target = arguments.to;
        if (!arguments.from.empty()) options.source = arguments.from;
        options.log = [](const std::string& line) { std::cerr << line << '\n'; };
        std::cout << torchbus::fetch_mnist(options).string() << '\n';
        return 0;
    }
    if (name == "launch") {
        json launch = arguments.launch;
        launch["command"] = arguments.command;
        return run_with_torch(name, {{"launch", launch}});
    }
    return run_with_torch(name, {{"run_file", arguments.run_file}, {"set", arguments.set}, {"weights", arguments.weights}, {"to", arguments.to}, {"svg", arguments.svg},
                                 {"resume", arguments.resume}, {"allow", arguments.allow}, {"action", arguments.action}, {"paths", arguments.paths}, {"key", arguments.key},
                                 {"include", arguments.include}, {"skip", arguments.skip}, {"rename", arguments.rename},
                                 {"name", arguments.name}, {"world_size", arguments.world_size}, {"trains", name == "train" || arguments.world_size > 0}, {"plugins", arguments.plugins}, {"markdown", arguments.markdown}});
}

/// CLI11 would only say that a subcommand is required.
void refuse_unknown_command(const CLI::App& app, int argc, char** argv) {
    if (argc < 2 || argv[1][0] == '-') return;
    std::vector<std::string> known;
    for (const CLI::App* command : app.get_subcommands({})) known.push_back(command->get_name());
    if (std::find(known.begin(), known.end(), argv[1]) != known.end()) return;
    throw torchbus::ConfigError("unknown command '" + std::string(argv[1]) + "'" + torchbus::did_you_mean(argv[1], known) +
                                " (torchbus --help lists them)");
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"torchbus: training on LibTorch as a state machine that emits typed events"};
    app.set_version_flag("--version", "torchbus " TORCHBUS_VERSION);
    app.require_subcommand(1);
    app.footer("Examples:\n"
               "  torchbus data fetch mnist\n"
               "  torchbus train examples/05_mnist.json --set train.epochs=1\n"
               "  torchbus evaluate examples/05_mnist.json --weights model.safetensors\n"
               "  torchbus callbacks gradient_clipping\n"
               "  torchbus graph --format dot | dot -Tsvg > states.svg\n"
               "Exit codes: 0 done, 1 the run failed, 2 usage or configuration, 128+n by signal n after a clean save.");
    Arguments arguments;
    add_commands(app, arguments);
    try {
        refuse_unknown_command(app, argc, argv);
        app.parse(take_command(argc, argv, arguments), argv);
        const int exit_code = run(app, arguments);
        if (!std::cout.flush()) throw torchbus::Error("standard output: cannot write; is the disk full?");
        return exit_code;
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : 2;
    } catch (const torchbus::ConfigError& error) {
        std::fprintf(stderr, "torchbus: %s\n", error.what());
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "torchbus: %s\n", error.what());
        return 1;
    }
}

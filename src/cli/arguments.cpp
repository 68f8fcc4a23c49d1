#include "arguments.hpp"

#include <algorithm>
#include <string_view>

namespace torchbus::cli {
namespace {

using nlohmann::json;

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
    command->add_option_function<double>("--join-timeout", [&launch](double value) { launch["join_timeout_s"] = value; }, "s that node 0 is tried for; default: 300");
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

/// Commands that look at runs.
void add_recorded_commands(CLI::App& app, Arguments& arguments) {
    const char* recording = "a file that event_file wrote, or its folder";
    CLI::App* diff = app.add_subcommand("diff", "compare two recorded runs; prints where they differ first, nothing where they are equal; exit code 1 where they differ");
    diff->add_option("RUN_A", arguments.diff.one, recording)->required();
    diff->add_option("RUN_B", arguments.diff.other, recording)->required();
    diff->add_option("--tolerance", arguments.diff.relative, "how far apart numbers may be, of the larger, e.g. 1e-6; default: equal bit for bit")->check(CLI::NonNegativeNumber);
    diff->add_option("--absolute", arguments.diff.absolute, "the same, as it is")->check(CLI::NonNegativeNumber);
    diff->add_option("--ignore", arguments.diff.ignore, "patterns of events and fields, e.g. subscriber_attached,plan.seed,numbers.eval.*")->delimiter(',')->allow_extra_args(false);
    diff->add_flag("--all", arguments.diff.all, "every difference, not the first alone");
    CLI::App* explain = app.add_subcommand("explain", "say why a recorded run stopped, skipped and saved");
    explain->add_option("RUN", arguments.explain.run, recording)->required();
    explain->add_flag("--json", arguments.explain.as_json, "as JSON");
    CLI::App* plot = app.add_subcommand("plot", "draw the numbers of recorded runs, or write a report");
    plot->add_option("RUN", arguments.plot.runs, recording)->required()->expected(1, 1000);
    plot->add_option("--names", arguments.plot.names, "patterns of numbers, e.g. train.*,eval.*; default: all")->delimiter(',')->allow_extra_args(false);
    plot->add_option("--x", arguments.plot.x, "step, epoch or seconds")->check(CLI::IsMember({"step", "epoch", "seconds"}));
    plot->add_option("--smooth", arguments.plot.smooth, "weight of what was before, e.g. 0.9; default: 0");
    plot->add_flag("--log", arguments.plot.is_log, "a logarithmic axis");
    plot->add_option("-o,--to", arguments.plot.to, "file to write, NAME.svg or NAME.html")->required();
    CLI::App* watch = app.add_subcommand("watch", "show a run while it is under way");
    watch->add_option("ADDRESS|RUN", arguments.watch.run, "where an event_server is, as HOST:PORT, http://HOST:PORT or a Unix socket; or a recorded run")->required();
    watch->add_option("--token-file", arguments.watch.token_file, "the server's token; default: what TORCHBUS_TOKEN says");
    watch->add_flag("--once", arguments.watch.once, "print what is there, and end");
    CLI::App* replay = app.add_subcommand("replay", "tell a recorded run to other callbacks, and print what they would have asked for");
    replay->add_option("RUN", arguments.paths, recording)->required()->expected(1);
    replay->add_option("--callbacks", arguments.callbacks, "a run file whose callbacks they are, or an array as it stands there")->required();
    replay->add_option("--set", arguments.set, "override an option of that file, e.g. --set callbacks[0].patience=5")->allow_extra_args(false);
    replay->add_flag("--json", arguments.as_json, "as JSON");
    CLI::App* serve = app.add_subcommand("serve", "show recorded runs in the dashboard, as they grow; the first of them is served as a stream, too");
    serve->add_option("RUN", arguments.paths, recording)->required()->expected(1, 64);
    serve->add_option("--address", arguments.address, "IP address to listen at; another than the loopback's needs a token");
    serve->add_option("--port", arguments.port, "TCP port; default: any that is free")->check(CLI::Range(0, 65535));
    serve->add_option("--token-file", arguments.token_file, "file whose first line is the token");
    serve->add_option("--host", arguments.hosts, "a name by which it may be called, besides localhost and its address")->allow_extra_args(false);
}

}  // namespace

int take_command(int argc, char** argv, Arguments& arguments) {
    const auto end = std::find(argv, argv + argc, std::string_view("--"));
    if (argc < 2 || argv[1] != std::string_view("launch") || end == argv + argc) return argc;
    arguments.command.assign(end + 1, argv + argc);
    return static_cast<int>(end - argv);
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
    CLI::App* events = app.add_subcommand("events", "list the events, or tell of one");
    CLI::Option* event = events->add_option("NAME", arguments.name, "an event, e.g. gradients_ready");
    events->add_flag("--schema", arguments.event_schema, "print the JSON Schema of a line of event_file")->excludes(event);
    app.add_subcommand("graph", "print the state machine")->add_option("--format", arguments.format, "mermaid or dot")->check(CLI::IsMember({"mermaid", "dot"}));
    add_recorded_commands(app, arguments);
    add_checkpoint_commands(app, arguments);
    add_launch(app, arguments);
    app.add_subcommand("config", "ask how many processes train and in which precision, and write what launch --config reads")
        ->add_option("--to", arguments.to, "file to write to; default: accelerate.yaml");
    app.add_subcommand("env", "print what a run finds here: versions, threads, CUDA devices, NCCL, or why there are none");
    CLI::App* fetch = app.add_subcommand("data", "data sets")->require_subcommand(1)->add_subcommand("fetch", "fetch a data set and verify it");
    fetch->add_option("DATASET", arguments.dataset, "mnist")->required()->check(CLI::IsMember({"mnist"}));
    fetch->add_option("--to", arguments.to, "folder to put it into; default: the cache, where run files look");
    fetch->add_option("--from", arguments.from, "folder that already has the files");
}

}  // namespace torchbus::cli

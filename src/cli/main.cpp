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

#include "arguments.hpp"
#include "recorded_commands.hpp"
#include "shown_text.hpp"

namespace {

using nlohmann::json;
using namespace torchbus::cli;

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

int run(const CLI::App& app, const Arguments& arguments) {
    const CLI::App* command = app.get_subcommands().front();
    const std::string name = command->get_name();
    if (name == "events" && arguments.event_schema) return run_with_torch("event_schema", json::object());
    if (name == "events") return print_events(arguments.name);
    if (name == "graph") return std::cout << (arguments.format == "dot" ? torchbus::state_graph_dot() : torchbus::state_graph_mermaid()), 0;
    if (name == "config") return write_config(arguments.to);
    if (name == "diff") return diff_runs(arguments.diff);
    if (name == "explain") return explain_run(arguments.explain);
    if (name == "plot") return plot_runs(arguments.plot);
    if (name == "watch") return watch_run(arguments.watch);
    if (name == "data") {
        torchbus::FetchOptions options;
        if (!arguments.to.empty()) options.target = arguments.to;
        if (!arguments.from.empty()) options.source = arguments.from;
        options.log = [](const std::string& line) { std::cerr << line << '\n'; };
        std::cout << torchbus::fetch_mnist(options).string() << '\n';
        return 0;
    }
    if (name == "replay") return run_with_torch(name, {{"paths", arguments.paths}, {"callbacks", arguments.callbacks}, {"set", arguments.set}, {"json", arguments.as_json}});
    if (name == "serve")
        return run_with_torch(name, {{"paths", arguments.paths}, {"address", arguments.address}, {"port", arguments.port}, {"token_file", arguments.token_file}, {"hosts", arguments.hosts}});
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
        std::fprintf(stderr, "torchbus: %s\n", terminal_lines(error.what()).c_str());
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "torchbus: %s\n", terminal_lines(error.what()).c_str());
        return 1;
    }
}

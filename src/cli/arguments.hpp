#pragma once
/// The command line of torchbus.

#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "recorded_commands.hpp"

namespace torchbus::cli {

struct Arguments {
    bool event_schema = false;
    std::string run_file, weights, to, svg, name, from, format = "mermaid", dataset, resume, action, key;
    std::vector<std::string> set, plugins, allow, paths, include, skip, rename;
    bool markdown = false;
    int world_size = 0;
    std::string callbacks, address = "127.0.0.1", token_file;  ///< of replay and serve, like the next
    std::vector<std::string> hosts;
    int port = 0;
    bool as_json = false;
    nlohmann::json launch = nlohmann::json::object();
    std::vector<std::string> command;  ///< that is launched
    DiffOptions diff;
    ExplainOptions explain;
    PlotOptions plot;
    WatchOptions watch;
};

/// What follows `--` is a command of its own. Returns how many arguments come before it.
int take_command(int argc, char** argv, Arguments& arguments);
/// All commands with their flags, which are put into `arguments` when they are parsed.
void add_commands(CLI::App& app, Arguments& arguments);

}  // namespace torchbus::cli

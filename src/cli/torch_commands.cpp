// The door into libtorchbus_cli.so: one C function, so that the program needs no C++ symbol of it.
#include "torch_commands.hpp"

#include <cstdio>
#include <map>
#include <string>

#include <c10/util/Exception.h>

#include <torchbus/composition.hpp>
#include <torchbus/error.hpp>

#include "shown_text.hpp"

namespace torchbus::cli {
namespace {

using Command = int (*)(const nlohmann::json&);

const std::map<std::string, Command>& commands() {
    static const std::map<std::string, Command> kCommands = {{"train", train}, {"evaluate", evaluate}, {"predict", predict},
                                                             {"check", check}, {"summary", summary}, {"callbacks", callbacks},
                                                             {"schedule", schedule}, {"schema", schema}, {"event_schema", event_schema},       {"checkpoint", checkpoint},
                                                             {"launch", launch},     {"env", env}, {"replay", replay}, {"serve", serve}};
    return kCommands;
}

}  // namespace

Composition composition_of(const nlohmann::json& options) {
    return compose(load_run_file(options.at("run_file").get<std::string>(), options.at("set"), options.value("trains", false) ? Purpose::Train : Purpose::Look));
}

}  // namespace torchbus::cli

/// Returns the exit code: 0 done, 1 the run failed, 2 usage or configuration, 128 + n by a signal.
extern "C" int torchbus_run_command(const char* name, const char* options_json) {
    using namespace torchbus;
    try {
        const int exit_code = cli::commands().at(name)(nlohmann::json::parse(options_json));
        if (std::fflush(stdout) != 0 || std::ferror(stdout)) throw Error("standard output: cannot write; is the disk full?");
        return exit_code;
    } catch (const c10::Error& error) {
        std::fprintf(stderr, "torchbus: %s\n", cli::terminal_lines(error.what_without_backtrace()).c_str());
        return 1;
    } catch (const ConfigError& error) {
        std::fprintf(stderr, "torchbus: %s\n", cli::terminal_lines(error.what()).c_str());
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "torchbus: %s\n", cli::terminal_lines(error.what()).c_str());
        return 1;
    }
}

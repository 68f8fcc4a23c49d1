#include <cstdio>

#include <torchbus/composition_schema.hpp>
#include <torchbus/plugin.hpp>
#include <torchbus/stream/message.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {

/// Prints the JSON Schema of a run file, with what the plug-ins bring.
int schema(const nlohmann::json& options) {
    load_plugins(options.value("plugins", std::vector<std::string>()), "--plugin");
    std::printf("%s\n", run_file_schema().dump(2).c_str());
    return 0;
}

/// Prints the JSON Schema of what leaves the process.
int event_schema(const nlohmann::json&) {
    std::printf("%s\n", stream_schema().dump(2).c_str());
    return 0;
}

}  // namespace torchbus::cli

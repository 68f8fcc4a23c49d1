#include <cstdio>

#include <torchbus/callbacks/registry.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {

/// Without a name: one line a callback. With one: its options, with types and defaults.
int callbacks(const nlohmann::json& options) {
    const std::string name = options.at("name");
    if (name.empty()) {
        for (const CallbackEntry& entry : callback_registry())
            std::printf("%-24s %s\n", std::string(entry.kind).c_str(), std::string(entry.summary).c_str());
        return 0;
    }
    const auto described = describe_callback(name);
    std::printf("%s: %s\n", name.c_str(), std::string(find_callback(name).summary).c_str());
    for (const OptionDescription& option : described)
        std::printf("  %-18s %-10s default %-12s %s\n", option.name.c_str(), option.type.c_str(), option.default_value.c_str(), option.about.c_str());
    if (described.empty()) std::printf("  no options\n");
    return 0;
}

}  // namespace torchbus::cli

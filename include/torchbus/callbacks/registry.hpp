#pragma once
/// The table of all callbacks that run files and the command line know by name.

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <torchbus/callback.hpp>
#include <torchbus/option_reader.hpp>
#include <torchbus/registry.hpp>

namespace torchbus {

struct CallbackEntry {
    std::string_view kind;     ///< snake_case
    std::string_view summary;  ///< one sentence
    /// Reads the options and makes the callback. Throws: ConfigError with the JSON path.
    std::unique_ptr<Callback> (*from_json)(OptionReader& options);
};

/// The library's callbacks and those of plug-ins. Thread: any.
Registry<CallbackEntry>& callback_table();
std::span<const CallbackEntry> callback_registry();

/// Throws: ConfigError for an unknown kind, with a suggestion.
const CallbackEntry& find_callback(std::string_view kind, std::string_view where = {});

/// The options of a callback, with defaults. Throws: ConfigError for an unknown kind.
std::vector<OptionDescription> describe_callback(std::string_view kind);

}  // namespace torchbus

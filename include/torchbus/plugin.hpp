#pragma once
/// Callbacks, models, data and the like from a shared object, loaded at run time.
///
///     std::unique_ptr<torchbus::Callback> hello_from_json(torchbus::OptionReader& reader) { … }
///     void register_all(torchbus::PluginRegistry& registry) { registry.callback("hello", "Says hello.", hello_from_json); }
///     TORCHBUS_PLUGIN("greetings", register_all)
///
/// Build it against the torchbus that will load it (pkg-config --cflags torchbus, -shared -fPIC), with the same compiler
/// and the same LibTorch. A run file names it: "plugins": ["greetings.so"]. See examples/13_plugin.

#include <cstdint>
#include <deque>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <torch/headeronly/version.h>

#include <torchbus/callbacks/registry.hpp>
#include <torchbus/data/registry.hpp>
#include <torchbus/models/registry.hpp>
#include <torchbus/optim/registry.hpp>
#include <torchbus/version.hpp>

namespace torchbus {

/// What a plug-in brings. Every kind is snake_case, taken by nobody, and can be made from `{}`. A function that reads
/// the options only reads: what is costly (weights, files) belongs into the maker that it returns.
class PluginRegistry {
public:
    PluginRegistry& callback(std::string_view kind, std::string_view summary, std::unique_ptr<Callback> (*from_json)(OptionReader&));
    PluginRegistry& model(std::string_view kind, std::string_view summary, ModelMaker (*from_json)(OptionReader&));
    PluginRegistry& data(std::string_view kind, std::string_view summary, DataMaker (*from_json)(OptionReader&));
    PluginRegistry& loss(std::string_view kind, std::string_view summary, Loss (*from_json)(OptionReader&));
    PluginRegistry& optimizer(std::string_view kind, std::string_view summary, OptimizerMaker (*from_json)(OptionReader&));
    PluginRegistry& schedule(std::string_view kind, std::string_view summary, Schedule (*from_json)(OptionReader&));

private:
    friend class PluginCommit;
    template <class Entry, class FromJson>
    PluginRegistry& add(std::vector<Entry>& entries, const char* noun, std::string_view kind, std::string_view summary, FromJson from_json);
    std::vector<CallbackEntry> callbacks_;
    std::vector<ModelEntry> models_;
    std::vector<DataEntry> data_;
    std::vector<LossEntry> losses_;
    std::vector<OptimizerEntry> optimizers_;
    std::vector<ScheduleEntry> schedules_;
    std::deque<std::string> texts_;
};

/// Of the struct below and of how it is used.
inline constexpr std::uint32_t kPluginInterface = 1;

/// What a plug-in says of itself. The first member stays where it is, whatever becomes of the others.
struct TorchbusPlugin {
    std::uint32_t interface;
    const char* torchbus_version;
    const char* compiler;
    const char* libtorch_version;
    const char* name;
    void (*register_all)(PluginRegistry& registry);
};

/// What has been loaded.
struct LoadedPlugin {
    std::filesystem::path path;
    std::string name;
    std::vector<std::string> brings;  ///< "callback hello", "model two_towers", …
};

/// Loads a plug-in, once: loading it again changes nothing. All that it brings is there afterwards, or nothing. Its
/// code is never unloaded.
/// Throws: ConfigError: no such file, no plug-in, built with another torchbus, compiler or LibTorch, a kind that is
/// taken or cannot be made from `{}`, an exception from the plug-in. Thread: any.
LoadedPlugin load_plugin(const std::filesystem::path& path);
/// All of a list, in order; `where` begins the messages, e.g. "run.json: plugins".
void load_plugins(const std::vector<std::string>& paths, const std::string& where);
std::vector<LoadedPlugin> loaded_plugins();
/// Takes what plug-ins brought out of the tables; loading them puts it back. Their code stays, and what was made with it
/// goes on. Thread: any.
void unregister_plugins();

}  // namespace torchbus

/// The one entry of a plug-in. `plugin_name` is a string literal.
#define TORCHBUS_PLUGIN(plugin_name, register_function)                                                                        \
    extern "C" __attribute__((visibility("default"))) const torchbus::TorchbusPlugin* torchbus_plugin() {                      \
        static constexpr torchbus::TorchbusPlugin kPlugin{torchbus::kPluginInterface, torchbus::kVersion, __VERSION__,         \
                                                          TORCH_VERSION, plugin_name, register_function};                      \
        return &kPlugin;                                                                                                       \
    }

#include <torchbus/plugin.hpp>

#include <dlfcn.h>

#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

namespace fs = std::filesystem;

bool is_snake_case(std::string_view text) {
    const auto is_small = [](char c) { return c >= 'a' && c <= 'z'; };
    const auto fits = [&](char c) { return is_small(c) || (c >= '0' && c <= '9') || c == '_'; };
    return !text.empty() && is_small(text.front()) && std::ranges::all_of(text, fits);
}

std::string text_of(const char* text) { return text ? text : "nothing"; }

/// What an exception says, in words that outlive it. Requires: called within a catch.
std::string what_is_thrown() {
    try {
        throw;
    } catch (const std::exception& error) {
        return error.what();
    } catch (...) {
        return "something that is no std::exception";
    }
}

struct Library {
    void operator()(void* handle) const { dlclose(handle); }
};
using LibraryHandle = std::unique_ptr<void, Library>;

// A name without a slash would be looked for in the system's folders.
LibraryHandle open_library(const fs::path& path, int binding) { return LibraryHandle(dlopen(fs::absolute(path).c_str(), binding | RTLD_LOCAL)); }

const TorchbusPlugin& description_in(const LibraryHandle& library, const fs::path& path) {
    const auto entry = reinterpret_cast<const TorchbusPlugin* (*)()>(dlsym(library.get(), "torchbus_plugin"));
    if (!entry)
        throw ConfigError(fmt::format("{}: is no plug-in: it has no function torchbus_plugin; add TORCHBUS_PLUGIN(\"name\", register_all) of "
                                      "<torchbus/plugin.hpp>", path.string()));
    const TorchbusPlugin* described = entry();
    if (!described) throw ConfigError(fmt::format("{}: is no plug-in: torchbus_plugin() returned nothing", path.string()));
    return *described;
}

void require_same(const fs::path& path, const char* what, const char* built, const char* here) {
    if (built && std::string_view(built) == here) return;
    throw ConfigError(fmt::format("{}: was built with {} {}, this torchbus with {}; build it anew with that", path.string(), what, text_of(built), here));
}

void require_fit(const TorchbusPlugin& described, const fs::path& path) {
    if (described.interface != kPluginInterface)
        throw ConfigError(fmt::format("{}: was built for plug-in interface {}, this torchbus has {}; build it anew with torchbus {}", path.string(),
                                      described.interface, kPluginInterface, kVersion));
    require_same(path, "torchbus", described.torchbus_version, kVersion);
    require_same(path, "the compiler", described.compiler, __VERSION__);
    require_same(path, "LibTorch", described.libtorch_version, TORCH_VERSION);
    if (!described.name || !*described.name || !described.register_all)
        throw ConfigError(fmt::format("{}: is no plug-in: it has no {}", path.string(), described.register_all ? "name" : "function that registers"));
}

/// With every symbol bound. Where one is missing, the plug-in may be for another LibTorch, and then that is what is said.
LibraryHandle open_plugin(const fs::path& path) {
    if (!fs::exists(path))
        throw ConfigError(fmt::format("{}: there is no such file; expected a plug-in (a path in a run file is relative to that file)", path.string()));
    if (LibraryHandle library = open_library(path, RTLD_NOW)) return library;
    const std::string why = text_of(dlerror());
    if (const LibraryHandle unbound = open_library(path, RTLD_LAZY)) require_fit(description_in(unbound, path), path);
    throw ConfigError(fmt::format("{}: cannot be loaded: {}", path.string(), why));
}

struct Kept {
    void* handle;
    LoadedPlugin plugin;
};
/// Requires: lock_registries().
std::vector<Kept>& kept() {
    static auto* const kKept = new std::vector<Kept>;
    return *kKept;
}

}  // namespace

template <class Entry, class FromJson>
PluginRegistry& PluginRegistry::add(std::vector<Entry>& entries, const char* noun, std::string_view kind, std::string_view summary, FromJson from_json) {
    if (!is_snake_case(kind)) throw ConfigError(fmt::format("'{}' is no name for a {}; give one in snake_case", kind, noun));
    if (!from_json) throw ConfigError(fmt::format("the {} '{}' has no function that reads its options", noun, kind));
    if (summary.empty()) throw ConfigError(fmt::format("the {} '{}' has no summary; say in one sentence what it does", noun, kind));
    if (std::ranges::find(entries, kind, &Entry::kind) != entries.end()) throw ConfigError(fmt::format("the {} '{}' is registered twice", noun, kind));
    entries.push_back({texts_.emplace_back(kind), texts_.emplace_back(summary), from_json});
    return *this;
}

PluginRegistry& PluginRegistry::callback(std::string_view kind, std::string_view summary, std::unique_ptr<Callback> (*from_json)(OptionReader&)) {
    return add(callbacks_, "callback", kind, summary, from_json);
}
PluginRegistry& PluginRegistry::model(std::string_view kind, std::string_view summary, ModelMaker (*from_json)(OptionReader&)) {
    return add(models_, "model", kind, summary, from_json);
}
PluginRegistry& PluginRegistry::data(std::string_view kind, std::string_view summary, DataMaker (*from_json)(OptionReader&)) {
    return add(data_, "data", kind, summary, from_json);
}
PluginRegistry& PluginRegistry::loss(std::string_view kind, std::string_view summary, Loss (*from_json)(OptionReader&)) {
    return add(losses_, "loss", kind, summary, from_json);
}
PluginRegistry& PluginRegistry::optimizer(std::string_view kind, std::string_view summary, OptimizerMaker (*from_json)(OptionReader&)) {
    return add(optimizers_, "optimizer", kind, summary, from_json);
}
PluginRegistry& PluginRegistry::schedule(std::string_view kind, std::string_view summary, Schedule (*from_json)(OptionReader&)) {
    return add(schedules_, "schedule", kind, summary, from_json);
}

/// Checks all that a plug-in registered, then puts it into the tables at once.
class PluginCommit {
public:
    PluginCommit(const PluginRegistry& staged, LoadedPlugin& plugin)
        : plugin_(plugin), owner_(fmt::format("the plug-in '{}' ({})", plugin.name, plugin.path.string())) {
        prepare(callback_table(), staged.callbacks_);
        for (const CallbackEntry& entry : staged.callbacks_) require_own_name(entry);
        prepare(model_table(), staged.models_);
        prepare(data_table(), staged.data_);
        prepare(loss_table(), staged.losses_);
        prepare(optimizer_table(), staged.optimizers_);
        prepare(schedule_table(), staged.schedules_);
        if (plugin.brings.empty()) throw ConfigError("it registers nothing");
    }
    void commit() const noexcept {
        for (const auto& take_effect : prepared_) take_effect();
    }

private:
    void require_own_name(const CallbackEntry& entry) const {
        std::string name;
        describe_options(entry.kind, [&](OptionReader& reader) {
            const auto made = entry.from_json(reader);
            name = made ? made->kind() : "";
        });
        if (name != entry.kind)
            throw ConfigError(fmt::format("the callback '{}' calls itself '{}'; kind() must return the name it is registered by", entry.kind, name));
    }
    template <class Entry>
    void prepare(Registry<Entry>& table, const std::vector<Entry>& entries) {
        if (entries.empty()) return;
        for (const Entry& entry : entries) {
            try {
                table.describe(entry);
            } catch (...) {
                throw ConfigError(fmt::format("the {} '{}' cannot be made without options: {}; give each a default", table.noun(), entry.kind, what_is_thrown()));
            }
            plugin_.brings.push_back(fmt::format("{} {}", table.noun(), entry.kind));
        }
        prepared_.push_back(table.prepare(entries, owner_));
    }

    LoadedPlugin& plugin_;
    std::string owner_;
    std::vector<std::function<void()>> prepared_;
};

LoadedPlugin load_plugin(const fs::path& path) {
    const auto lock = lock_registries();
    LibraryHandle library = open_plugin(path);
    const auto same = std::ranges::find(kept(), library.get(), &Kept::handle);
    if (same != kept().end()) return same->plugin;
    const TorchbusPlugin& described = description_in(library, path);
    require_fit(described, path);
    LoadedPlugin plugin{path, described.name, {}};
    kept().reserve(kept().size() + 1);
    try {
        PluginRegistry staged;
        described.register_all(staged);
        const PluginCommit commit(staged, plugin);
        kept().push_back({library.get(), plugin});
        commit.commit();
        static_cast<void>(library.release());
    } catch (...) {
        static_cast<void>(library.release());  // what is thrown, and what it left with others, may need its code
        throw ConfigError(fmt::format("{}: the plug-in '{}' cannot register: {}; nothing of it was taken", path.string(), plugin.name, what_is_thrown()));
    }
    return plugin;
}

void load_plugins(const std::vector<std::string>& paths, const std::string& where) {
    for (std::size_t i = 0; i < paths.size(); ++i) {
        try {
            load_plugin(paths[i]);
        } catch (const ConfigError& error) {
            throw ConfigError(fmt::format("{}[{}]: {}", where, i, error.what()));
        }
    }
}

std::vector<LoadedPlugin> loaded_plugins() {
    const auto lock = lock_registries();
    std::vector<LoadedPlugin> plugins;
    for (const Kept& one : kept()) plugins.push_back(one.plugin);
    return plugins;
}

void unregister_plugins() {
    const auto lock = lock_registries();
    kept().clear();
    callback_table().reset();
    model_table().reset();
    data_table().reset();
    loss_table().reset();
    optimizer_table().reset();
    schedule_table().reset();
}

}  // namespace torchbus

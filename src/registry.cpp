#include <torchbus/registry.hpp>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

namespace torchbus {

std::unique_lock<std::recursive_mutex> lock_registries() {
    static std::recursive_mutex mutex;
    return std::unique_lock(mutex);
}

std::vector<OptionDescription> describe_options(std::string_view kind, const std::function<void(OptionReader&)>& read) {
    OptionReader reader(nlohmann::json::object(), std::string(kind));
    read(reader);
    return reader.described();
}

void refuse_taken(std::string_view noun, std::string_view kind, std::string_view owner) {
    throw ConfigError(owner.empty() ? fmt::format("the {} '{}' is one of torchbus's own; give yours another name", noun, kind)
                                    : fmt::format("the {} '{}' is taken by {}; give yours another name", noun, kind, owner));
}

}  // namespace torchbus

#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/error.hpp>
#include <torchbus/stream/stream_server.hpp>

#include "../json_text.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 6> kCommands = {"stop", "save", "evaluate", "pause", "resume", "change_option"};
constexpr std::size_t kLongestText = 512;
constexpr std::size_t kDeepestCommand = 16;

std::string text_of(const json& command, const char* name) {
    if (!command.contains(name)) return {};
    const json& value = command[name];
    if (!value.is_string() || value.get_ref<const std::string&>().size() > kLongestText)
        throw ConfigError(fmt::format("command: {} is no text of at most {} bytes", name, kLongestText));
    return value;
}

}  // namespace

StreamCommand command_from_text(const std::string& text) {
    if (!is_shallow(text, kDeepestCommand)) throw ConfigError(fmt::format("command: it is nested deeper than {} levels", kDeepestCommand));
    const json command = json_of_text(text, "command", Quotes::Nothing);
    const bool is_token_alone = command.is_object() && command.size() == 1 && command.contains("token");
    if (!is_token_alone && !(command.is_object() && command.contains("command"))) throw ConfigError(R"(command: no command was found; give an object, e.g. {"command": "stop", "reason": "converged"})");
    constexpr std::array<std::string_view, 7> kMembers = {"command", "by", "reason", "subscriber", "option", "value", "token"};
    for (const auto& [name, value] : command.items())
        if (std::ranges::find(kMembers, name) == kMembers.end()) throw ConfigError(fmt::format("command: '{}' is not known; known are {}", name, fmt::join(kMembers, ", ")));
    StreamCommand read{text_of(command, "command"), text_of(command, "by"), text_of(command, "reason"), text_of(command, "subscriber"), text_of(command, "option"), command.value("value", json()), text_of(command, "token")};
    if (!is_token_alone && std::ranges::find(kCommands, read.command) == kCommands.end()) throw ConfigError(fmt::format("command: '{}' is not known; known are {}", read.command, fmt::join(kCommands, ", ")));
    if (is_token_alone && read.token.empty()) throw ConfigError("command: the token is empty; give what the server's token_file holds");
    const bool changes = read.command == "change_option";
    if (changes && (read.subscriber.empty() || read.option.empty() || read.value.is_null()))
        throw ConfigError(R"(command: change_option needs subscriber, option and value, e.g. {"command": "change_option", "subscriber": "gradient_clipping", "option": "max_norm", "value": 0.5})");
    return read;
}

}  // namespace torchbus

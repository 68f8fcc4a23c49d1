#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/composition.hpp>
#include <torchbus/error.hpp>

namespace torchbus {
namespace {

using nlohmann::json;

/// "line 3, column 7" of a byte of the text.
std::string line_and_column(const std::string& text, std::size_t byte) {
    const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(byte, text.size()));
    const auto line = 1 + std::count(text.begin(), end, '\n');
    const auto newline = text.rfind('\n', byte == 0 ? 0 : std::min(byte, text.size()) - 1);
    const std::size_t column = newline == std::string::npos || byte <= newline ? byte : byte - newline - 1;
    return fmt::format("line {}, column {}", line, std::max<std::size_t>(column, 1));
}

json parse(const std::string& text, const std::string& name) {
    std::vector<std::set<std::string>> keys;  // of the objects that are open
    const auto watch = [&](int, json::parse_event_t event, json& parsed) {
        if (event == json::parse_event_t::object_start) keys.emplace_back();
        if (event == json::parse_event_t::object_end) keys.pop_back();
        if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second)
            throw ConfigError(fmt::format("{}: the key '{}' stands twice in one object; remove one of them", name, parsed.get<std::string>()));
        return true;
    };
    try {
        return json::parse(text, watch);
    } catch (const json::parse_error& error) {
        std::string what = error.what();
        const auto detail = what.find("syntax error");
        what = detail == std::string::npos ? what : what.substr(detail);
        throw ConfigError(fmt::format("{}: {}: {}", name, line_and_column(text, error.byte), what));
    }
}

/// One name or index of a path such as callbacks[1].max_norm.
std::vector<std::string> split_path(const std::string& path) {
    std::vector<std::string> parts(1);
    for (const char c : path) {
        if (c == '.' || c == '[') parts.emplace_back();
        else if (c != ']') parts.back() += c;
    }
    return parts;
}

void apply_override(json& run, const std::string& text) {
    const auto equals = text.find('=');
    if (equals == std::string::npos || equals == 0)
        throw ConfigError(fmt::format("--set {}: expected path=value, e.g. --set optimizer.learning_rate=0.01", text));
    const std::string value = text.substr(equals + 1);
    json* place = &run;
    for (const std::string& part : split_path(text.substr(0, equals))) {
        if (place->is_array()) {
            const bool is_index = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos && part.size() < 9;
            if (!is_index || std::stoul(part) >= place->size())
                throw ConfigError(fmt::format("--set {}: '{}' is no index of an array of {} entries", text, part, place->size()));
            place = &(*place)[std::stoul(part)];
        } else if (place->is_object() || place->is_null()) {
            place = &(*place)[part];
        } else {
            throw ConfigError(fmt::format("--set {}: '{}' lies within {}, which is a {}", text, part, place->dump(), place->type_name()));
        }
    }
    *place = json::accept(value) ? json::parse(value) : json(value);
}

}  // namespace

json read_run_file(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
    errno = 0;
    std::ifstream stream(path);
    if (!stream || std::filesystem::is_directory(path))
        throw ConfigError(fmt::format("{}: cannot open the run file: {}", path.string(), errno ? std::strerror(errno) : "it is a folder"));
    const std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
    json run = parse(text, path.string());
    if (!run.is_object()) throw ConfigError(fmt::format("{}: a run file is a JSON object; found a {}", path.string(), run.type_name()));
    for (const std::string& one : overrides) apply_override(run, one);
    return run;
}

}  // namespace torchbus

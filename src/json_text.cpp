#include "json_text.hpp"

#include <algorithm>
#include <set>
#include <vector>

#include <fmt/format.h>

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

/// Where what begins at `at` ends: a text with its quotes, a comment, or one character.
std::size_t end_of_piece(const std::string& text, std::size_t at) {
    const auto end_at = [&](const char* what, std::size_t from, std::size_t length) {
        const auto found = text.find(what, from);
        return found == std::string::npos ? text.size() : found + length;
    };
    if (text[at] == '"') {
        std::size_t end = at + 1;
        while (end < text.size() && text[end] != '"') end += text[end] == '\\' ? 2 : 1;
        return std::min(end + 1, text.size());
    }
    if (text[at] == '#' || text.compare(at, 2, "//") == 0) return end_at("\n", at, 0);
    if (text.compare(at, 2, "/*") == 0) return end_at("*/", at + 2, 2);
    return at + 1;
}

/// "…; last read: 'what it was'; expected …" without what was read.
std::string without_quotation(const std::string& what) {
    const std::size_t begin = what.find("; last read: '");
    if (begin == std::string::npos) return what;
    const std::size_t end = what.rfind("'; expected ");
    return what.substr(0, begin) + (end > begin && end != std::string::npos ? what.substr(end + 1) : "");
}

}  // namespace

json json_of_text(const std::string& text, const std::string& name, Quotes quotes) {
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
        if (quotes == Quotes::Nothing) what = without_quotation(what);
        throw ConfigError(fmt::format("{}: {}: {}", name, line_and_column(text, error.byte), what));
    } catch (const json::out_of_range& error) {  // says which number, and not where
        std::string what = error.what();
        throw ConfigError(fmt::format("{}: {}", name, what.substr(what.find("] ") + 2)));
    }
}

std::string without_comments(std::string text) {
    std::size_t comma = std::string::npos;  // one that nothing has followed yet
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = end_of_piece(text, at);
        const char first = text[at];
        if (first == '#' || (first == '/' && end > at + 1)) {
            std::replace_if(text.begin() + static_cast<std::ptrdiff_t>(at), text.begin() + static_cast<std::ptrdiff_t>(end), [](char c) { return c != '\n'; }, ' ');
        } else if (first == ',') {
            comma = at;
        } else if (first != ' ' && first != '\t' && first != '\n' && first != '\r') {
            if ((first == '}' || first == ']') && comma != std::string::npos) text[comma] = ' ';
            comma = std::string::npos;
        }
        at = end;
    }
    return text;
}

bool is_shallow(std::string_view text, std::size_t most) {
    std::size_t depth = 0;
    bool is_quoted = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (is_quoted && text[i] == '\\') ++i;
        else if (text[i] == '"') is_quoted = !is_quoted;
        else if (!is_quoted && (text[i] == '{' || text[i] == '[') && ++depth > most) return false;
        else if (!is_quoted && (text[i] == '}' || text[i] == ']') && depth > 0) --depth;
    }
    return true;
}

}  // namespace torchbus

#include "shown_text.hpp"

#include <algorithm>

#include <nlohmann/json.hpp>

namespace torchbus::cli {
namespace {

using nlohmann::json;

/// U+FFFD for what is none.
std::string valid_utf8(std::string_view text) { return json::parse(json(text).dump(-1, ' ', false, json::error_handler_t::replace)).get<std::string>(); }

bool is_start_of_character(char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }

/// U+0080 to U+009F, which a terminal may obey, and U+FFFE and U+FFFF, which XML refuses.
bool is_special(std::string_view rest) {
    const auto byte = [&](std::size_t i) { return i < rest.size() ? static_cast<unsigned char>(rest[i]) : 0U; };
    return (byte(0) == 0xC2 && byte(1) < 0xA0) || (byte(0) == 0xEF && byte(1) == 0xBF && byte(2) >= 0xBE);
}

}  // namespace

std::string xml_text(std::string_view text) {
    const std::string valid = valid_utf8(text);
    std::string safe;
    for (std::size_t i = 0; i < valid.size(); ++i) {
        const char c = valid[i];
        if (c == '&') safe += "&amp;";
        else if (c == '<') safe += "&lt;";
        else if (c == '>') safe += "&gt;";
        else if (c == '"') safe += "&quot;";
        else if (c == '\'') safe += "&#39;";
        else if (c == '\n' || c == '\t') safe += c;
        else if (is_special(std::string_view(valid).substr(i))) i += c == '\xC2' ? 1 : 2;
        else if (static_cast<unsigned char>(c) >= 0x20 && c != 0x7F) safe += c;
    }
    return safe;
}

std::string terminal_text(std::string_view text) {
    const std::string valid = valid_utf8(text);
    std::string safe;
    for (std::size_t i = 0; i < valid.size(); ++i) {
        const char c = valid[i];
        if (is_special(std::string_view(valid).substr(i))) i += c == '\xC2' ? 1 : 2;
        else if (static_cast<unsigned char>(c) >= 0x20 && c != 0x7F) safe += c;
        else if (c == '\n' || c == '\t') safe += ' ';
    }
    return safe;
}

std::string terminal_lines(std::string_view text) {
    std::string safe;
    for (std::size_t end = text.find('\n'); end != std::string_view::npos; end = text.find('\n')) {
        safe += terminal_text(text.substr(0, end)) + '\n';
        text.remove_prefix(end + 1);
    }
    return safe + terminal_text(text);
}

std::size_t count_characters(std::string_view text) {
    std::size_t count = 0;
    for (const char c : text) count += is_start_of_character(c) ? 1 : 0;
    return count;
}

std::string shortened(const std::string& text, std::size_t most) {
    if (count_characters(text) <= most) return text;
    std::size_t end = 0;
    for (std::size_t count = 0; end < text.size(); ++end)
        if (is_start_of_character(text[end]) && ++count == std::max<std::size_t>(most, 1)) break;
    return text.substr(0, end) + "…";
}

}  // namespace torchbus::cli

#pragma once
/// JSON with an error that says where.

#include <string>

#include <nlohmann/json.hpp>

namespace torchbus {

/// Throws: ConfigError that begins with `name`: malformed JSON with line and column, a key twice in one object.
nlohmann::json json_of_text(const std::string& text, const std::string& name);

/// The same text without comments (//, #, /* */) and without a comma before a closing bracket: blanks stand in their place,
/// so that lines and columns stay.
std::string without_comments(std::string text);

}  // namespace torchbus

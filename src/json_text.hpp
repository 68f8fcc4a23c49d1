#pragma once
/// JSON with an error that says where.

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace torchbus {

/// Whether an error may repeat the text that was read last: not where that may be a token.
enum class Quotes { LastRead, Nothing };

/// Throws: ConfigError that begins with `name`: malformed JSON with line and column, a key twice in one object.
nlohmann::json json_of_text(const std::string& text, const std::string& name, Quotes quotes = Quotes::LastRead);

/// The same text without comments (//, #, /* */) and without a comma before a closing bracket: blanks stand in their place,
/// so that lines and columns stay.
std::string without_comments(std::string text);

/// Whether it is nested less deep than `most`; what is quoted may have brackets of its own. Asked before text of a stranger is parsed.
bool is_shallow(std::string_view text, std::size_t most);

}  // namespace torchbus

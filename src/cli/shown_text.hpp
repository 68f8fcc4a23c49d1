#pragma once
/// Text of strangers, such as names and reasons in a recorded run, made fit for where it is shown.

#include <string>
#include <string_view>

namespace torchbus::cli {

/// For XML and HTML, within and without quotes: valid UTF-8, no character that they refuse, none that means something to them.
std::string xml_text(std::string_view text);
/// For a terminal: valid UTF-8, on one line, nothing that it would obey.
std::string terminal_text(std::string_view text);
/// The same, with its line breaks.
std::string terminal_lines(std::string_view text);
/// At most so many characters, the last of them … where it was longer. `text`: valid UTF-8.
std::string shortened(const std::string& text, std::size_t most);
/// Characters of valid UTF-8.
std::size_t count_characters(std::string_view text);

}  // namespace torchbus::cli

#pragma once
/// Messages of numbers, for sinks and curves that want no JSON.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace torchbus {

/// What a message `torchbus.numbers` says.
struct StreamNumbers {
    using List = std::vector<std::pair<std::string, double>>;  ///< by name, sorted

    double seconds = 0;  ///< since 1970
    std::int64_t epoch = 0, step = 0, attempts = 0, samples = 0;
    std::int64_t step_in_epoch = 0;
    std::string after;   ///< the event that they are of
    List fresh, older;   ///< published since the message before; and all others
};

/// Nothing where the line is another message, or none of a MessageWriter's.
std::optional<StreamNumbers> numbers_of(std::string_view line);

/// Calls `take(line)` for each, with its line break; what follows the last line break is left.
template <class Take>
void for_each_line(std::string_view lines, Take&& take) {
    for (std::size_t begin = 0; begin < lines.size();) {
        const std::size_t end = lines.find('\n', begin);
        if (end == std::string_view::npos) return;
        take(lines.substr(begin, end + 1 - begin));
        begin = end + 1;
    }
}

/// "2026-11-27T23:41:07.250113Z" → seconds since 1970; nothing where it is no such time.
std::optional<double> seconds_of_time(std::string_view text);

}  // namespace torchbus

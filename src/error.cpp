#include <torchbus/error.hpp>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <vector>

namespace torchbus {
namespace {

/// Edits (insert, delete, replace, swap of neighbours) between two words.
/// Source: Damerau 1964; optimal string alignment variant.
std::size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<std::vector<std::size_t>> d(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
    for (std::size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
    std::iota(d[0].begin(), d[0].end(), std::size_t{0});
    for (std::size_t i = 1; i <= a.size(); ++i) {
        for (std::size_t j = 1; j <= b.size(); ++j) {
            const std::size_t replace = d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
            d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, replace});
            const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped) d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
        }
    }
    return d[a.size()][b.size()];
}

std::string without_nul(std::string message) {
    std::ranges::replace(message, '\0', '?');
    return message;
}

}  // namespace

Error::Error(std::string message) : std::runtime_error(without_nul(std::move(message))) {}

std::string did_you_mean(std::string_view word, std::span<const std::string> known) {
    const std::string* best = nullptr;
    std::size_t best_distance = std::max<std::size_t>(2, word.size() / 3) + 1;
    for (const std::string& candidate : known) {
        const std::size_t distance = edit_distance(word, candidate);
        if (distance < best_distance) {
            best = &candidate;
            best_distance = distance;
        }
    }
    return best ? "; did you mean '" + *best + "'?" : std::string();
}

void warn(std::string_view message) {
    std::fprintf(stderr, "torchbus: warning: %.*s\n", static_cast<int>(message.size()), message.data());
}

}  // namespace torchbus

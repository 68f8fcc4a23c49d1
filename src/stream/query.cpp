#include "query.hpp"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

std::string decoded(std::string_view text) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            out += text[i] == '+' ? ' ' : text[i];
            continue;
        }
        unsigned value = 0;
        const std::string_view digits = text.substr(i + 1, 2);
        const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
        if (error != std::errc() || digits.size() != 2 || end != digits.data() + 2) throw ConfigError(fmt::format("query: '%{}' is no encoded character; write a percent sign as %25", digits));
        if (value == 0) throw ConfigError("query: '%00' is no character of a text; leave it out");
        out += static_cast<char>(value);
        i += 2;
    }
    return out;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> parse_query(std::string_view query) {
    std::vector<std::pair<std::string, std::string>> pairs;
    while (!query.empty()) {
        const std::string_view pair = query.substr(0, query.find('&'));
        query.remove_prefix(std::min(pair.size() + 1, query.size()));
        if (pair.empty()) continue;
        const std::size_t equals = std::min(pair.find('='), pair.size());
        std::string name = decoded(pair.substr(0, equals));
        if (std::ranges::any_of(pairs, [&](const auto& known) { return known.first == name; })) throw ConfigError(fmt::format("query: '{}' comes twice; give it once", name));
        pairs.emplace_back(std::move(name), decoded(pair.substr(std::min(equals + 1, pair.size()))));
    }
    return pairs;
}

}  // namespace torchbus

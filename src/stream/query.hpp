#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace torchbus {

/// name=value&name=value, percent-encoded. Throws: ConfigError for an encoding that is none, or a name that comes twice.
std::vector<std::pair<std::string, std::string>> parse_query(std::string_view query);

}  // namespace torchbus

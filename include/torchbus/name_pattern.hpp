#pragma once
/// Names chosen by patterns, as a shell chooses files: `*` any characters, `?` one, `[a-z]` one of these.

#include <string>
#include <vector>

namespace torchbus {

bool matches(const std::string& pattern, const std::string& name);
bool matches_any(const std::vector<std::string>& patterns, const std::string& name);

}  // namespace torchbus

#pragma once
/// Lists of keys as they are written in tables: with blanks between them.

#include <iterator>
#include <sstream>
#include <string>
#include <vector>

namespace torchbus {

inline std::vector<std::string> words_of(const char* text) {
    std::istringstream stream(text);
    return {std::istream_iterator<std::string>(stream), {}};
}

}  // namespace torchbus

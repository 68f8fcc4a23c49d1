#include "source_root.hpp"

namespace torchbus::test {

std::string source_root() { return TORCHBUS_SOURCE_ROOT; }

}  // namespace torchbus::test

#pragma once
#include <string>

namespace torchbus::test {

/// The folder of the checkout. Compiled apart, so that no other object depends on where that is.
std::string source_root();

}  // namespace torchbus::test

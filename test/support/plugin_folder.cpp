#include "support/plugin_folder.hpp"

namespace torchbus::test {

std::filesystem::path plugin_folder() { return TORCHBUS_TEST_PLUGINS; }

}  // namespace torchbus::test

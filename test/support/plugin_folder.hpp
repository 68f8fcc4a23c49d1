#pragma once
#include <filesystem>

namespace torchbus::test {

/// Where the build put the plug-ins of test/plugins.
std::filesystem::path plugin_folder();

}  // namespace torchbus::test

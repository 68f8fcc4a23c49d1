// Calls what nobody defines: a library that it was to be linked with is missing.
#include <torchbus/plugin.hpp>

void of_a_library_that_is_not_there();

TORCHBUS_PLUGIN("undefined_symbol", [](torchbus::PluginRegistry&) { of_a_library_that_is_not_there(); })

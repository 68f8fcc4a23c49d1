// Plug-ins whose description does not fit, one for each macro; the layout is written out, as another version has it.
#include <cstdint>

#include <torch/headeronly/version.h>

#include <torchbus/version.hpp>

#ifndef WITH_INTERFACE
#define WITH_INTERFACE 1
#endif
#ifndef WITH_TORCHBUS
#define WITH_TORCHBUS torchbus::kVersion
#endif
#ifndef WITH_COMPILER
#define WITH_COMPILER __VERSION__
#endif
#ifndef WITH_LIBTORCH
#define WITH_LIBTORCH TORCH_VERSION
#endif
#ifndef WITH_REGISTER
#define WITH_REGISTER register_all
#endif

namespace {

struct Description {
    std::uint32_t interface;
    const char* torchbus_version;
    const char* compiler;
    const char* libtorch_version;
    const char* name;
    void (*register_all)(void*);
};

/// Must never be called.
[[maybe_unused]] void register_all(void*) { __builtin_trap(); }

}  // namespace

extern "C" const Description* torchbus_plugin() {
    [[maybe_unused]] static const Description kDescription{WITH_INTERFACE, WITH_TORCHBUS, WITH_COMPILER, WITH_LIBTORCH, "wrong", WITH_REGISTER};
#ifdef WITH_NOTHING
    return nullptr;
#else
    return &kDescription;
#endif
}

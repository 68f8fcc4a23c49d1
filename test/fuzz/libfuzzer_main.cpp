// A libFuzzer program of one of the targets: TARGET is its name. Built by tools/fuzz.
#include <cstddef>
#include <cstdint>

#include "targets.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
    torchbus::fuzz::TARGET({reinterpret_cast<const char*>(bytes), size});
    return 0;
}

// Makes a device's callback when LibTorch has looked for CUDA already, for test/scripts/cuda_test.py.
#include <cstdio>

#include <torch/utils.h>
#include <torchbus/callbacks/device_placement.hpp>

int main() {
    torch::manual_seed(1);
    try {
        torchbus::make_device_placement({"cuda"});
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}

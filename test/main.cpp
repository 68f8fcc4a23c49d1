#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_session.hpp>
#else
#define CATCH_CONFIG_RUNNER
#endif
#include <torch/torch.h>

#include <torchbus/device.hpp>

#include "support/catch.hpp"

int main(int argc, char** argv) {
    torchbus::cuda_status();       // before LibTorch is asked for CUDA by whichever test comes first
    torch::set_num_threads(1);  // the same bits on every machine, and TSan does not know OpenMP
    return Catch::Session().run(argc, argv);
}

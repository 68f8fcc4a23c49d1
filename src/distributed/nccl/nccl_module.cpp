// What is linked with CUDA and NCCL: a library of its own, which src/distributed/nccl_library.cpp loads where ranks have CUDA devices.
#include "../nccl_library.hpp"

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <torchbus/version.hpp>

namespace {

/// NCCL's watchdog ends the process. Ranks have that long from their own timeout on to find out who is to blame, and to say so.
constexpr std::chrono::seconds kToFindOut{15};

c10::intrusive_ptr<c10d::Backend> make_group(const torchbus::NcclPlace& place) {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = place.timeout + kToFindOut;
    auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(place.store, place.rank, place.world_size, options);
    group->eagerConnectSingleDevice(place.device);  // what keeps ranks apart is to be told now, and not by the first sum
    return group;
}

std::string flight_record() { return c10d::dump_nccl_trace_json(/*includeCollectives=*/true, /*onlyActive=*/false); }

}  // namespace

extern "C" __attribute__((visibility("default"))) const torchbus::NcclModule* torchbus_nccl_module() {
    static const torchbus::NcclModule kModule{torchbus::kVersion, make_group, flight_record};
    return &kModule;
}

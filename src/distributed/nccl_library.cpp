#include "nccl_library.hpp"

#include <dlfcn.h>

#include <filesystem>

#include <fmt/format.h>

#include <torchbus/error.hpp>
#include <torchbus/version.hpp>

namespace torchbus {
namespace {

const NcclModule& loaded() {
    Dl_info own;
    if (!dladdr(reinterpret_cast<const void*>(&load_nccl), &own)) throw ConfigError("torchbus does not know where it is, and so not where its library for NCCL is");
    const auto library = std::filesystem::path(own.dli_fname).replace_filename("libtorchbus_nccl.so");
    if (!std::filesystem::exists(library))
        throw ConfigError(fmt::format("ranks sum over NCCL where they have CUDA devices, and this torchbus was built without it ({} is missing); build it where NCCL's headers are found, or give cpu to device_placement", library.string()));
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) throw ConfigError(fmt::format("the library for NCCL cannot be loaded: {}", dlerror()));
    const auto entry = reinterpret_cast<const NcclModule* (*)()>(dlsym(handle, "torchbus_nccl_module"));
    if (!entry || std::string_view(entry()->torchbus_version) != kVersion) throw ConfigError(fmt::format("{} is of another version than this torchbus ({}); install both anew", library.string(), kVersion));
    return *entry();
}

}  // namespace

const NcclModule& load_nccl() {
    static const NcclModule& module = loaded();
    return module;
}

}  // namespace torchbus

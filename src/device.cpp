#include <torchbus/device.hpp>

#include <dlfcn.h>

#include <cstdlib>
#include <string>

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

/// Whether LibTorch works with CUDA in this process; it settles that when it is asked for the first time.
bool knows_cuda() { return at::detail::getCUDAHooks().hasCUDART(); }

std::string load_cuda() {
    // Its libraries tell LibTorch of themselves as they are loaded, and stay as long as the process does.
    if (!dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL)) {
        const char* why = dlerror();
        return fmt::format("CUDA's libraries cannot be loaded: {}; install LibTorch with all of them (of Python's package torch: with its dependencies)", why ? why : "for a reason that is not told");
    }
    if (!knows_cuda()) return "CUDA's libraries were loaded too late: LibTorch had been asked for CUDA before, as torch::manual_seed does; make the device's callback first";
    return "";
}

/// Why no CUDA device can be used, or nothing.
const std::string& against_cuda() {
    static const std::string kWhy = [] {
        if (std::string why = load_cuda(); !why.empty()) return why;
        if (at::detail::getCUDAHooks().deviceCount() > 0) return std::string();
        const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
        return fmt::format("there is no device: the driver is missing or too old for this LibTorch, there is no GPU{}", visible ? fmt::format(", or CUDA_VISIBLE_DEVICES ('{}') hides it", visible) : "");
    }();
    return kWhy;
}

c10::Device cuda_device(c10::DeviceIndex index, int local_rank, std::string_view text, std::string_view where) {
    if (const std::string& why = against_cuda(); !why.empty()) throw ConfigError(fmt::format("{}: '{}' was asked for, but {}; or give cpu", where, text, why));
    const auto count = at::detail::getCUDAHooks().deviceCount();
    if (index >= 0 && index < count) return {c10::kCUDA, index};
    const std::string there_are = fmt::format("there {} {} CUDA device{} here", count == 1 ? "is" : "are", static_cast<int>(count), count == 1 ? "" : "s");
    if (index >= 0) throw ConfigError(fmt::format("{}: '{}' was asked for, and {}; give a number below {}", where, text, there_are, static_cast<int>(count)));
    if (local_rank < count) return {c10::kCUDA, static_cast<c10::DeviceIndex>(local_rank)};
    // Whoever starts the processes may show each of them its own device alone.
    if (count == 1 && std::getenv("CUDA_VISIBLE_DEVICES")) return {c10::kCUDA, 0};
    throw ConfigError(fmt::format("{}: the process of local rank {} takes the CUDA device of that number, and {}; start no more than {} process{} a machine", where, local_rank, there_are,
                                  static_cast<int>(count), count == 1 ? "" : "es"));
}

}  // namespace

c10::Device device_from_text(std::string_view text, int local_rank, std::string_view where) {
    if (text == "auto") return against_cuda().empty() ? cuda_device(-1, local_rank, text, where) : c10::Device(c10::kCPU);
    const auto parsed = [&] {
        try {
            return c10::Device(std::string(text));
        } catch (const c10::Error&) {
            throw ConfigError(fmt::format("{}: '{}' is not a device; give cpu, cuda, cuda:N or auto", where, text));
        }
    }();
    if (parsed.is_cpu() || parsed.is_meta()) return parsed.type();
    if (parsed.is_cuda()) return cuda_device(parsed.index(), local_rank, text, where);
    if (at::accelerator::getAccelerator() != parsed.type()) throw ConfigError(fmt::format("{}: '{}' was asked for, which LibTorch does not know here; give cpu, cuda, cuda:N or auto", where, text));
    return {parsed.type(), parsed.has_index() ? parsed.index() : static_cast<c10::DeviceIndex>(local_rank)};
}

CudaStatus cuda_status() {
    const std::string& against = against_cuda();
    return {against.empty() ? int(at::detail::getCUDAHooks().deviceCount()) : 0, against};
}

bool is_accelerator(c10::Device device) { return at::accelerator::isAccelerator(device.type()); }

CurrentDevice::CurrentDevice(c10::Device device) {
    if (is_accelerator(device)) former_ = at::accelerator::exchangeDevice(device.index());
}
CurrentDevice::~CurrentDevice() {
    if (former_ >= 0) at::accelerator::exchangeDevice(former_);
}

DeviceMemory memory_of(c10::Device device) {
    const auto stats = at::accelerator::getDeviceStats(device.index());
    const auto [free, total] = at::accelerator::getMemoryInfo(device.index());
    constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return {stats.allocated_bytes[kAll].current, stats.allocated_bytes[kAll].peak, stats.reserved_bytes[kAll].current, static_cast<std::int64_t>(free), static_cast<std::int64_t>(total)};
}

}  // namespace torchbus

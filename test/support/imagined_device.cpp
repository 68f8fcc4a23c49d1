#include "imagined_device.hpp"

#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/EmptyTensor.h>
#include <ATen/InferSize.h>
#include <ATen/TensorUtils.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>
#include <torch/torch.h>

namespace torchbus::test {
namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
constexpr auto kKey = c10::DispatchKey::PrivateUse1;
constexpr c10::StreamId kStreamsOfPool = 4;

/// What was queued on streams, and what has been seen. Its streams end their work when somebody waits for it, and not before.
struct Device {
    std::recursive_mutex mutex;  // who frees memory within a copy comes again
    DeviceLog log;
    std::map<c10::StreamId, std::vector<std::function<void()>>> queues;
    std::set<const void*> pinned;
    std::int64_t allocated = 0, peak = 0;
    c10::StreamId next_stream = 0;

    void run(c10::StreamId stream) {
        for (const auto& work : std::exchange(queues[stream], {})) work();
    }
};
Device& device() {
    static auto* const kDevice = new Device;  // what it made may outlive all else
    return *kDevice;
}

thread_local c10::StreamId current_stream = 0;

c10::Stream stream_of(c10::StreamId id) { return c10::Stream(c10::Stream::UNSAFE, c10::Device(kType, 0), id); }

struct Event {
    c10::StreamId stream;
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return kType; }
    c10::Device exchangeDevice(c10::Device) const override { return {kType, 0}; }
    c10::Device getDevice() const override { return {kType, 0}; }
    void setDevice(c10::Device) const override {}
    void uncheckedSetDevice(c10::Device) const noexcept override {}
    c10::Stream getStream(c10::Device) const override { return stream_of(current_stream); }
    c10::Stream getDefaultStream(c10::Device) const override { return stream_of(0); }
    c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override {
        const std::lock_guard lock(device().mutex);
        return stream_of(1 + device().next_stream++ % kStreamsOfPool);
    }
    c10::Stream exchangeStream(c10::Stream stream) const override { return stream_of(std::exchange(current_stream, stream.id())); }
    c10::DeviceIndex deviceCount() const noexcept override { return 1; }
    void record(void** event, const c10::Stream& stream, c10::DeviceIndex, c10::EventFlag) const override {
        if (!*event) *event = new Event;
        static_cast<Event*>(*event)->stream = stream.id();
    }
    void block(void* event, const c10::Stream&) const override {
        const std::lock_guard lock(device().mutex);
        ++device().log.waits;
        device().run(static_cast<Event*>(event)->stream);
    }
    bool queryEvent(void* event) const override {
        const std::lock_guard lock(device().mutex);
        return device().queues[static_cast<Event*>(event)->stream].empty();
    }
    void destroyEvent(void* event, c10::DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
    void synchronizeStream(const c10::Stream& stream) const override {
        const std::lock_guard lock(device().mutex);
        device().run(stream.id());
    }
};

struct Memory final : c10::DeviceAllocator {
    static void give_back(void* block) {
        auto* const begin = static_cast<std::size_t*>(block) - 8;
        const std::lock_guard lock(device().mutex);
        for (c10::StreamId stream = 0; stream <= kStreamsOfPool; ++stream) device().run(stream);  // a copy may still write there
        device().allocated -= static_cast<std::int64_t>(*begin);
        delete[] begin;
    }
    c10::DataPtr allocate(std::size_t bytes) override {
        auto* const begin = new std::size_t[8 + (bytes + 7) / 8];
        *begin = bytes;
        std::memset(begin + 8, 0xff, bytes);  // no number
        const std::lock_guard lock(device().mutex);
        device().allocated += static_cast<std::int64_t>(bytes);
        device().peak = std::max(device().peak, device().allocated);
        return {begin + 8, begin + 8, give_back, c10::Device(kType, 0)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return give_back; }
    void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
    bool initialized() override { return true; }
    void emptyCache(c10::MempoolId_t) override {}
    void recordStream(const c10::DataPtr&, c10::Stream) override {}
    c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
        c10::CachingDeviceAllocator::DeviceStats stats;
        const std::lock_guard lock(device().mutex);
        stats.allocated_bytes[0].current = stats.reserved_bytes[0].current = device().allocated;
        stats.allocated_bytes[0].peak = device().peak;
        return stats;
    }
    void resetAccumulatedStats(c10::DeviceIndex) override {}
    void resetPeakStats(c10::DeviceIndex) override {}
    std::pair<std::size_t, std::size_t> getMemoryInfo(c10::DeviceIndex) override { return {3 << 20, 4 << 20}; }
};

struct Pinned final : at::HostAllocator {
    static void give_back(void* block) {
        const std::lock_guard lock(device().mutex);
        for (c10::StreamId stream = 0; stream <= kStreamsOfPool; ++stream) device().run(stream);  // as the real one waits for its events
        device().pinned.erase(block);
        ::operator delete(block);
    }
    c10::DataPtr allocate(std::size_t bytes) override {
        void* const block = ::operator new(std::max<std::size_t>(bytes, 1));
        const std::lock_guard lock(device().mutex);
        device().pinned.insert(block);
        return {block, block, give_back, c10::kCPU};
    }
    c10::DeleterFnPtr raw_deleter() const override { return give_back; }
    void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
    bool record_event(void*, void*, c10::Stream) override { return true; }
    void empty_cache() override {}
    at::HostStats get_stats() override { return {}; }
    void reset_accumulated_stats() override {}
    void reset_peak_stats() override {}
};

struct Hooks final : at::PrivateUse1HooksInterface {
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return 1; }
    void setCurrentDevice(c10::DeviceIndex) const override {}
    c10::DeviceIndex getCurrentDevice() const override { return 0; }
    c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
    c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
    bool isPinnedPtr(const void* data) const override {
        const std::lock_guard lock(device().mutex);
        return device().pinned.contains(data);
    }
    at::Allocator* getPinnedMemoryAllocator() const override {
        static auto* const kPinned = new Pinned;
        return kPinned;
    }
    const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
};

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
    return at::detail::empty_generic(size, c10::GetAllocator(kType), c10::DispatchKeySet(kKey), type.value_or(at::kFloat), format);
}
at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
    return at::detail::empty_strided_generic(size, stride, c10::GetAllocator(kType), c10::DispatchKeySet(kKey), type.value_or(at::kFloat));
}

/// A view of the device's memory as the host's.
at::Tensor seen_from_host(const at::Tensor& tensor) {
    return tensor.is_cpu() ? tensor : torch::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), at::TensorOptions(tensor.scalar_type()));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
    const at::NoGradGuard no_grad;
    const at::Tensor source = seen_from_host(from.detach()), target = seen_from_host(to.detach());
    const bool waits = !non_blocking || !from.is_cpu() || !from.is_pinned();
    const std::lock_guard lock(device().mutex);
    if (from.is_cpu()) {
        ++device().log.copies;
        device().log.copies_of_unpinned += waits;
        device().log.on_current_stream += current_stream == 0;
    }
    if (waits) {
        device().run(current_stream);
        target.copy_(source);
    } else {
        device().queues[current_stream].emplace_back([source, target] { target.copy_(source); });
    }
    return to;
}

at::Tensor copy_and_resize(const at::Tensor& from, const at::Tensor& to) {
    to.resize_(from.sizes());
    return copy_from(from, to, false);
}
const at::Tensor& resize(const at::Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat>) {
    if (self.sizes() == size) return self;
    self.set_(torch::empty(size, self.options()));
    return self;
}
at::Tensor& set(at::Tensor& self, const at::Tensor& source) {
    self.unsafeGetTensorImpl()->set_storage_and_dtype(source.storage(), source.dtype());
    self.unsafeGetTensorImpl()->set_sizes_and_strides(source.sizes(), source.strides());
    return self;
}
at::Tensor strided_view(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<std::int64_t> offset) {
    at::Tensor view = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), self.dtype());
    view.unsafeGetTensorImpl()->set_storage_offset(offset.value_or(self.storage_offset()));
    view.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
    return view;
}
at::Tensor view(const at::Tensor& self, c10::IntArrayRef size) {
    const auto whole = at::infer_size(size, self.numel());
    return strided_view(self, whole, *at::detail::computeStride(self.sizes(), self.strides(), whole), std::nullopt);
}
at::Tensor reshape_alias(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride) { return strided_view(self, size, stride, std::nullopt); }
at::Scalar local_scalar(const at::Tensor& self) { return seen_from_host(self).item(); }
void record_stream(at::Tensor&, at::Stream) {
    const std::lock_guard lock(device().mutex);
    ++device().log.recorded;
}
void fall_back(const c10::OperatorHandle& op, torch::jit::Stack* stack) { at::native::cpu_fallback(op, stack); }

void make_known() {
    c10::register_privateuse1_backend("imagined");
    static const c10::impl::DeviceGuardImplRegistrar kGuard(kType, new Guard);
    c10::SetAllocator(kType, new Memory);
    at::RegisterPrivateUse1HooksInterface(new Hooks);
    at::setHostAllocator(kType, static_cast<at::HostAllocator*>(Hooks().getPinnedMemoryAllocator()));
    static auto* const kFallback = new torch::Library(torch::Library::IMPL, "_", kKey, __FILE__, __LINE__);
    kFallback->fallback(torch::CppFunction::makeFromBoxedFunction<&fall_back>());
    static auto* const kKernels = new torch::Library(torch::Library::IMPL, "aten", kKey, __FILE__, __LINE__);
    kKernels->impl("empty.memory_format", &empty);
    kKernels->impl("empty_strided", &empty_strided);
    kKernels->impl("_copy_from", &copy_from);
    kKernels->impl("_copy_from_and_resize", &copy_and_resize);
    kKernels->impl("resize_", &resize);
    kKernels->impl("set_.source_Tensor", &set);
    kKernels->impl("as_strided", &strided_view);
    kKernels->impl("view", &view);
    kKernels->impl("_reshape_alias", &reshape_alias);
    kKernels->impl("_local_scalar_dense", &local_scalar);
    kKernels->impl("record_stream", &record_stream);
}

}  // namespace

ImaginedDevice* ImaginedDevice::get() {
    static ImaginedDevice* const kImagined = [] {
        if (at::accelerator::getAccelerator()) return static_cast<ImaginedDevice*>(nullptr);
        make_known();
        return new ImaginedDevice;
    }();
    return kImagined;
}

DeviceLog ImaginedDevice::take_log() {
    const std::lock_guard lock(test::device().mutex);
    return std::exchange(test::device().log, {});
}

}  // namespace torchbus::test

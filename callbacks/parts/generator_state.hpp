#pragma once
/// A device's default generator as it was.

#include <mutex>

#include <torch/types.h>

namespace torchbus {

class GeneratorState {
public:
    explicit GeneratorState(c10::Device device) : generator_(at::globalContext().defaultGenerator(device)) {
        const std::lock_guard lock(generator_.mutex());
        state_ = generator_.get_state();
    }
    void put_back() const {
        at::Generator generator = generator_;  // a handle
        const std::lock_guard lock(generator.mutex());
        generator.set_state(state_);
    }

private:
    at::Generator generator_;
    at::Tensor state_;
};

/// Leaves a device's default generator as it was found.
class GeneratorGuard {
public:
    explicit GeneratorGuard(c10::Device device) : state_(device) {}
    GeneratorGuard(const GeneratorGuard&) = delete;
    GeneratorGuard& operator=(const GeneratorGuard&) = delete;
    ~GeneratorGuard() { state_.put_back(); }

private:
    GeneratorState state_;
};

}  // namespace torchbus

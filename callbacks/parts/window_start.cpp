#include "window_start.hpp"

#include <ATen/ATen.h>

namespace torchbus {

void WindowStart::begin_run(const Model& model) {
    end_run();
    model_ = &model;
}

void WindowStart::end_run() { *this = {}; }

void WindowStart::note(const RunState& run, std::int64_t attempts) {
    const at::NoGradGuard no_grad;
    if (model_ && !std::exchange(has_listed_, true))
        for (const auto& [name, buffer] : (*model_)->named_buffers()) {
            if (!buffer.defined()) continue;
            names_.push_back(name);
            buffers_.push_back(buffer.detach());
            copies_.push_back(buffers_.back().clone());
        }
    if (!buffers_.empty()) at::_foreach_copy_(copies_, buffers_);
    generators_ = run.save("generators");
    attempts_ = attempts;
}

void WindowStart::put_into(TrainingState& state) const {
    if (state.parts.at("position").values.at("attempts") != attempts_) return;
    state.parts["generators"] = generators_;
    auto& tensors = state.parts.at("model").tensors;
    for (std::size_t i = 0; i < names_.size(); ++i)
        if (const auto found = tensors.find(names_[i]); found != tensors.end()) found->second = copies_[i];
}

}  // namespace torchbus

#pragma once
/// One callback attached to a bus of its own, without a trainer.

#include <memory>
#include <stdexcept>

#include <torchbus/callback.hpp>

namespace torchbus::test {

/// A run without anything to save.
class NoRunState final : public RunState {
public:
    std::vector<std::string> parts() const override { return {}; }
    bool is_resumable() const override { return false; }
    SavedState save(std::string_view) const override { return {}; }
    void load(std::string_view, const SavedState&) override {}
};

class AloneOnBus {
public:
    explicit AloneOnBus(std::shared_ptr<Callback> callback, std::shared_ptr<Consensus> consensus = std::make_shared<Consensus>())
        : callback_(std::move(callback)), consensus_(std::move(consensus)), subscriber_(bus_.subscribe(callback_->kind(), callback_->declare().subscriber)) {
        attach();
    }
    AloneOnBus(const AloneOnBus&) = delete;
    AloneOnBus& operator=(const AloneOnBus&) = delete;
    ~AloneOnBus() { callback_->detach(); }
    void attach() { callback_->attach(attachment_); }

    Callback& callback() { return *callback_; }
    Bus& bus() { return bus_; }
    Blackboard& blackboard() { return blackboard_; }
    Requests& requests() { return requests_; }

private:
    std::shared_ptr<Callback> callback_;
    Bus bus_;
    Blackboard blackboard_;
    std::shared_ptr<Consensus> consensus_;
    Requests requests_;
    NoRunState run_state_;
    Subscriber subscriber_;
    Attachment attachment_{subscriber_, blackboard_, *consensus_, bus_.moment(), Asker(requests_, "test"), run_state_};
};

}  // namespace torchbus::test

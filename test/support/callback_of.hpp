#pragma once
/// A callback made of a lambda, so that a test says in one place what it listens to.

#include <functional>
#include <utility>

#include <torchbus/callback.hpp>

namespace torchbus::test {

class CallbackOf final : public Callback {
public:
    using Connect = std::function<void(Attachment& run, Connections& connections)>;
    CallbackOf(std::string kind, Connect connect, Declaration declared) : kind_(std::move(kind)), connect_(std::move(connect)), declared_(std::move(declared)) {}
    std::string kind() const override { return kind_; }
    Declaration declare() const override { return declared_; }
    void attach(Attachment& run) override { connect_(run, connections_); }
    void detach() override { connections_.clear(); }

private:
    std::string kind_;
    Connect connect_;
    Declaration declared_;
    Connections connections_;
};

inline ComposedCallback callback_of(std::string kind, CallbackOf::Connect connect, Declaration declared = {}) {
    return ComposedCallback(std::make_shared<CallbackOf>(std::move(kind), std::move(connect), std::move(declared)));
}

}  // namespace torchbus::test

#pragma once
/// A callback made of functions, for code where a class would be more words than behaviour:
///
///     .callbacks = {make_metrics(),
///                   FunctionCallback("good_enough")
///                       .on<TrainingRunEpochEnd>(Stage::Report, [](const TrainingRunEpochEnd&, Attachment& run) {
///                           if (*run.blackboard.number("train.loss") < 0.1) run.asker.ask(Decision::StopRun, "the loss is below 0.1");
///                       })
///                       .declares({.needs = {{"train.loss", "training_run_epoch_end", Stage::Report}}, .asks = {Decision::StopRun}})}
///
/// What it listens to is declared by itself; what else it reads, writes, publishes and asks for is said with declares().

#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <torchbus/callback.hpp>

namespace torchbus {

/// Collects functions under an id, and becomes a callback of kind `function` where a composition wants one.
/// A function takes the event, or the event and the Attachment. Values that it captures live as long as the composition:
/// what it counts goes on in a second run, unless it starts anew at RunConfigured. It has no state that a resumed run would get.
class FunctionCallback {
public:
    explicit FunctionCallback(std::string id) : id_(std::move(id)) {}

    /// An observer. Stage: Observe, Report or Persist.
    template <AnEvent E, class Slot>
        requires(std::invocable<Slot&, const E&> || std::invocable<Slot&, const E&, Attachment&>)
    FunctionCallback& on(Stage stage, Slot slot, Filter filter = {}) {
        return listen<E>([=](Attachment& run) { return run.bus.observe<E>(stage, bound<const E>(slot, run), filter); });
    }

    /// An interceptor. It writes what one of that event commonly writes (BatchReady: batch, OutputReady: output, BackwardStart:
    /// root, TrainStepStart: learning_rate); name the resource where it is another one, see Declaration.
    template <AnEvent E, class Slot>
        requires(!std::same_as<E, GradientsReady> && (std::invocable<Slot&, E&> || std::invocable<Slot&, E&, Attachment&>))
    FunctionCallback& intercept(Slot slot, Filter filter = {}, std::string writes = common_resource<E>()) {
        if (!writes.empty()) parts_.declared.writes.push_back(std::move(writes));
        return listen<E>([=](Attachment& run) { return run.bus.intercept<E>(bound<E>(slot, run), filter); });
    }

    /// An interceptor of GradientsReady, which writes gradients.<phase>.
    template <class Slot>
        requires(std::invocable<Slot&, GradientsReady&> || std::invocable<Slot&, GradientsReady&, Attachment&>)
    FunctionCallback& intercept(Phase phase, Slot slot, Filter filter = {}) {
        parts_.declared.writes.push_back("gradients." + std::string(name_of(phase)));
        return listen<GradientsReady>([=](Attachment& run) { return run.bus.intercept(phase, bound<GradientsReady>(slot, run), filter); });
    }

    /// A wrapper of Forward, Backward or OptimizerStep. `writes`: the resource that it changes meanwhile, e.g. precision; empty: none.
    template <class Span, std::invocable<const Span&> Enter>
    FunctionCallback& around(Enter enter, std::function<void()> exit, std::string writes = {}, Filter filter = {}) {
        if (!writes.empty()) parts_.declared.writes.push_back(std::move(writes));
        return listen<Span>([=](Attachment& run) { return run.bus.around<Span>(enter, exit, filter); });
    }

    /// Adds to the declaration; fault policy and the like are those of the last call.
    FunctionCallback& declares(Declaration more) {
        const Declaration known = std::move(parts_.declared);
        Declaration& all = parts_.declared = std::move(more);
        const auto join = [&](auto member) { (all.*member).insert((all.*member).begin(), (known.*member).begin(), (known.*member).end()); };
        for (auto member : {&Declaration::listens, &Declaration::reads, &Declaration::writes, &Declaration::views, &Declaration::before, &Declaration::after}) join(member);
        for (auto member : {&Declaration::publishes, &Declaration::needs}) join(member);
        join(&Declaration::asks);
        return *this;
    }

    /// Later calls of the builder do not reach what was made. Two made of one builder share what its functions share.
    ComposedCallback make() const { return ComposedCallback(id_, std::make_shared<Made>(parts_)); }
    operator ComposedCallback() const { return make(); }  // NOLINT: so that it stands in a list of callbacks

private:
    using Connect = std::function<Connection(Attachment&)>;
    struct Parts {
        Declaration declared;
        std::vector<Connect> connects;
    };

    class Made final : public Callback {
    public:
        explicit Made(Parts parts) : parts_(std::move(parts)) {}
        std::string kind() const override { return "function"; }
        Declaration declare() const override { return parts_.declared; }
        void attach(Attachment& run) override {
            for (const Connect& connect : parts_.connects) connections_ += connect(run);
        }
        void detach() override { connections_.clear(); }

    private:
        Parts parts_;
        Connections connections_;
    };

    template <class E>
    static std::string common_resource() {
        if constexpr (std::same_as<E, BatchReady>) return "batch";
        else if constexpr (std::same_as<E, OutputReady>) return "output";
        else if constexpr (std::same_as<E, BackwardStart>) return "root";
        else if constexpr (std::same_as<E, TrainStepStart>) return "learning_rate";
        else return {};
    }

    /// A slot of the event alone.
    template <class E, class Slot>
    static auto bound(Slot slot, Attachment& run) {
        return [slot = std::move(slot), &run](E& event) mutable {
            if constexpr (std::invocable<Slot&, E&, Attachment&>) slot(event, run);
            else slot(event);
        };
    }

    template <class E>
    FunctionCallback& listen(Connect connect) {
        auto& listens = parts_.declared.listens;
        const std::string& name = detail::event_type<E>().name;
        if (std::ranges::find(listens, name) == listens.end()) listens.push_back(name);
        parts_.connects.push_back(std::move(connect));
        return *this;
    }

    std::string id_;
    Parts parts_;
};

}  // namespace torchbus

#pragma once
/// What a callback says of itself before it runs. From this a composition is sorted and checked.

#include <string>
#include <utility>
#include <vector>

#include <torchbus/decision.hpp>
#include <torchbus/subscriber.hpp>

namespace torchbus {

/// A number on the blackboard, and when it is new there.
/// `eval.loss` stands for that metric of every evaluation split and weights view.
struct Value {
    std::string name;
    std::string event = {};         ///< at which it is published or read, in snake_case; empty: at any time
    Stage stage = Stage::Observe;
    Value(const char* its_name) : name(its_name) {}             // NOLINT
    Value(std::string its_name) : name(std::move(its_name)) {}  // NOLINT
    Value(std::string its_name, std::string at, Stage in = Stage::Observe) : name(std::move(its_name)), event(std::move(at)), stage(in) {}
};

/// A kind of callback that cannot be in the same run.
struct Exclusion {
    std::string kind;
    std::string why;  ///< "both supply the loss"
};

/// What a callback listens to, reads, writes and publishes.
///
/// Resources, for reads and writes (see resources() in arrangement.hpp): plan.window, plan.limits, plan.views,
/// window, model, batch.device, batch, precision, output, loss, root, gradients.finalize, gradients.inspect, gradients.change,
/// gradients.decide, states, parameters, trainable, learning_rate, optimizer_options, callback_options; for reads also gradients and blackboard.
/// A resource may be narrowed to one update or group with a colon: learning_rate:generator.
struct Declaration {
    std::vector<std::string> listens = {};    ///< events and spans, in snake_case; "*": any event, as its options choose
    std::vector<std::string> reads = {};
    std::vector<std::string> writes = {};
    std::vector<Value> publishes = {};        ///< numbers it puts on the blackboard
    std::vector<Value> needs = {};            ///< numbers that others must publish; without them the run is refused
    std::vector<std::string> views = {};      ///< weights views that it holds the lease of
    std::vector<std::string> folders = {};    ///< which it alone writes to and deletes from
    std::vector<std::string> before = {};     ///< kinds of callbacks that must run later within a stage
    std::vector<std::string> after = {};      ///< kinds of callbacks that must run earlier within a stage
    std::vector<Exclusion> excludes = {};
    std::vector<Decision> asks = {};          ///< decisions that it may ask for
    SubscriberOptions subscriber = {};        ///< fault policy, budget and queue
    bool collectives = false;                 ///< performs collectives: inline, critical, on all ranks or on none
    bool on_thread = false;                   ///< its observers work on a thread of their own
};

/// What stands against a run, or deserves a warning: a sentence that names both sides and what to do.
struct Finding {
    enum class Weight : std::uint8_t { Warning, Error };
    Weight weight = Weight::Error;
    std::string text;
};

}  // namespace torchbus

// What every callback of the registry must hold to.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <torchbus/arrangement.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/registry.hpp>
#include <torchbus/error.hpp>
#include <torchbus/events_reference.hpp>

#include "support/alone_on_bus.hpp"
#include "support/catch.hpp"
#include "support/source_root.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using nlohmann::json;

namespace {

std::shared_ptr<Callback> from_options(const CallbackEntry& entry, const json& options) {
    OptionReader reader(options, std::string(entry.kind));
    std::shared_ptr<Callback> callback = entry.from_json(reader);
    reader.finish();
    return callback;
}

std::shared_ptr<Callback> from_defaults(const CallbackEntry& entry) { return from_options(entry, json::object()); }

/// A temporary folder that the program runs in meanwhile.
class WorkingFolder {
public:
    explicit WorkingFolder(const std::string& topic) : folder_(topic) { std::filesystem::current_path(folder_.path()); }
    WorkingFolder(const WorkingFolder&) = delete;
    WorkingFolder& operator=(const WorkingFolder&) = delete;
    ~WorkingFolder() { std::filesystem::current_path(former_); }

private:
    std::filesystem::path former_ = std::filesystem::current_path();
    TemporaryFolder folder_;
};

}  // namespace

TEST_CASE("every callback is made from {}, and is what its name says", "[callbacks][registry]") {
    for (const CallbackEntry& entry : callback_registry()) {
        INFO(entry.kind);
        const auto callback = from_defaults(entry);
        CHECK(callback->kind() == entry.kind);
        CHECK_FALSE(entry.summary.empty());
        std::set<std::string_view> events = {"forward", "backward", "optimizer_step", "*"};
        for (const EventReference& event : event_reference()) events.insert(event.name);
        for (const std::string& event : callback->declare().listens) CHECK(events.contains(event));
    }
}

TEST_CASE("every callback listens to what it declares, and to nothing else", "[callbacks][registry]") {
    for (const CallbackEntry& entry : callback_registry()) {
        INFO(entry.kind);
        AloneOnBus alone(from_defaults(entry));
        const Declaration declared = alone.callback().declare();
        std::set<std::string> connected;
        bool changes = false;
        for (const ConnectedSlot& slot : alone.bus().slots()) {
            connected.insert(slot.event == "every event" ? "*" : slot.event);
            changes = changes || (slot.changes && slot.event != "run_configured");
        }
        std::set<std::string> listens(declared.listens.begin(), declared.listens.end());
        if (listens.erase("*") > 0) {  // all, or what its options choose, and with what runs begin and end
            CHECK(std::ranges::includes(connected, listens));
            CHECK((connected.contains("*") || (connected.contains("run_configured") && connected.contains("run_closed"))));
        } else {
            CHECK(connected == listens);
        }
        if (changes) CHECK_FALSE(declared.writes.empty());
    }
}

TEST_CASE("every callback declares resources and numbers that exist, and goes with itself alone", "[callbacks][registry]") {
    for (const CallbackEntry& entry : callback_registry()) {
        INFO(entry.kind);
        const Arrangement arrangement = arrange({{std::string(entry.kind), std::string(entry.kind), from_defaults(entry)->declare()}});
        CHECK(errors_of(arrangement.findings) == "");
    }
}

TEST_CASE("every callback survives two runs, and another one takes over its state", "[callbacks][registry]") {
    const WorkingFolder here("registry");  // savers made from {} write where the program runs
    for (const CallbackEntry& entry : callback_registry()) {
        INFO(entry.kind);
        const auto callback = from_defaults(entry);
        auto model = toy_model();
        std::vector<ComposedCallback> callbacks = {ComposedCallback(callback)};
        if (entry.kind != "metrics") callbacks.insert(callbacks.begin(), make_metrics());
        Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                         .callbacks = std::move(callbacks), .handle_signals = false});
        for (int run = 0; run < 2; ++run) CHECK(trainer.train(toy_data(8), toy_data(4), {.epochs = 2, .batch_size = 4}).outcome == Outcome::Finished);
        const SavedState state = callback->state();
        const auto successor = from_defaults(entry);
        successor->load_state({json::parse(state.values.dump()), state.tensors, state.version});
        const SavedState again = successor->state();
        CHECK(again.values == state.values);
        CHECK(again.tensors.size() == state.tensors.size());
        for (const auto& [name, tensor] : state.tensors) CHECK(torch::equal(again.tensors.at(name), tensor));
    }
}

TEST_CASE("every callback detaches fully: afterwards nobody listens", "[callbacks][registry]") {
    for (const CallbackEntry& entry : callback_registry()) {
        INFO(entry.kind);
        AloneOnBus alone(from_defaults(entry));
        Bus& bus = alone.bus();
        alone.callback().detach();
        const bool listens = [&]<class... E>(std::type_identity<std::tuple<E...>>) { return (bus.wants<E>() || ...); }(std::type_identity<TrainerEvents>());
        const bool wraps = [&]<class... S>(std::type_identity<std::tuple<S...>>) { return (bus.wants<S>() || ...); }(std::type_identity<TrainerSpans>());
        CHECK_FALSE(listens);
        CHECK_FALSE(wraps);
        alone.attach();  // and may be attached again
    }
}

TEST_CASE("every callback can be detached in mid-run: it hears nothing more, and another trainer takes it", "[callbacks][registry]") {
    const WorkingFolder here("registry");
    for (const CallbackEntry& entry : callback_registry()) {
        INFO(entry.kind);
        const std::shared_ptr<Callback> callback = from_defaults(entry);
        const auto trainer_with = [&](torch::nn::Sequential model) {
            std::vector<ComposedCallback> callbacks = {ComposedCallback(callback)};
            if (entry.kind != "metrics") callbacks.insert(callbacks.begin(), make_metrics());
            return std::make_unique<Trainer>(TrainerOptions{.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                                                            .callbacks = std::move(callbacks), .handle_signals = false});
        };
        const auto trainer = trainer_with(toy_model());
        const std::string id(entry.kind);
        const auto calls = [&] {
            std::uint64_t sum = 0;
            for (const AccountingRow& row : trainer->accounting())
                if (row.subscriber == id) sum += row.calls;
            return sum;
        };
        std::optional<std::uint64_t> calls_when_gone;
        Subscriber onlooker = trainer->subscribe("onlooker");
        const Connection gone = onlooker.observe<SubscriberDetached>(Stage::Persist, [&](const SubscriberDetached& event) {
            if (event.id == id) calls_when_gone = calls();
        });
        trainer->start_training(toy_data(16), toy_data(4), {.epochs = 2, .batch_size = 4});
        while (trainer->position().attempts < 2 && trainer->advance()) {}
        auto detached = trainer->detach(id, "test");
        while (trainer->advance()) {}
        CHECK_NOTHROW(detached.get());
        CHECK(trainer->result().outcome == Outcome::Finished);
        REQUIRE(calls_when_gone.has_value());
        CHECK(calls() == *calls_when_gone);
        CHECK(trainer_with(toy_model())->train(toy_data(8), toy_data(4), {.batch_size = 4}).outcome == Outcome::Finished);
    }
}

TEST_CASE("every option has a line about it", "[callbacks][registry]") {
    for (const CallbackEntry& entry : callback_registry())
        for (const OptionDescription& option : describe_callback(entry.kind)) {
            INFO(entry.kind << "." << option.name);
            CHECK(option.about.size() > 5);
        }
}

TEST_CASE("the options that are marked as changeable are those that change_option takes", "[callbacks][registry]") {
    for (const CallbackEntry& entry : callback_registry()) {
        json given = json::object();
        std::vector<std::string> marked;
        for (const OptionDescription& option : describe_callback(entry.kind)) {
            if (!option.changeable) continue;
            marked.push_back(option.name);
            const json value = json::parse(option.default_value);
            given[option.name] = value == "0" ? json("2step") : value;  // an interval of 0 cannot be set
        }
        const std::string refusal = marked.empty() ? "(none of its options can)" : fmt::format("(those that can: {})", fmt::join(marked, ", "));
        AloneOnBus alone(from_options(entry, given));
        for (const OptionDescription& option : describe_callback(entry.kind)) {
            INFO(entry.kind << "." << option.name);
            if (option.changeable)
                CHECK(alone.callback().change_option(option.name, given[option.name]) == given[option.name]);
            else
                CHECK_THROWS_WITH(alone.callback().change_option(option.name, json::parse(option.default_value)),
                                  fmt::format("{}: the option '{}' cannot be changed while a run is under way {}", entry.kind, option.name, refusal));
        }
    }
}

TEST_CASE("the registry and the folders name the same callbacks", "[callbacks][registry]") {
    namespace fs = std::filesystem;
    const fs::path root = source_root();
    std::set<std::string> registered, sources, headers;
    for (const CallbackEntry& entry : callback_registry()) registered.emplace(entry.kind);
    for (const auto& file : fs::directory_iterator(root / "callbacks"))
        if (file.path().extension() == ".cpp" && file.path().stem() != "registry") sources.insert(file.path().stem());
    for (const auto& file : fs::directory_iterator(root / "include/torchbus/callbacks"))
        if (file.path().stem() != "registry") headers.insert(file.path().stem());
    CHECK(registered == sources);
    CHECK(registered == headers);
}

TEST_CASE("an unknown callback is refused with a suggestion", "[callbacks][registry]") {
    CHECK_THROWS_WITH(find_callback("gradient_cliping"), "unknown callback 'gradient_cliping'; did you mean 'gradient_clipping'? (torchbus callbacks lists them)");
}

TEST_CASE("every event is documented, in the order of the map", "[events]") {
    std::vector<std::string> names, documented;
    []<class... E>(std::type_identity<std::tuple<E...>>, std::vector<std::string>& out) {
        (out.push_back(torchbus::detail::event_type<E>().name), ...);
    }(std::type_identity<TrainerEvents>(), names);
    for (const EventReference& event : event_reference()) {
        documented.emplace_back(event.name);
        CHECK_FALSE(event.fires.empty());
        CHECK_FALSE(event.ranks.empty());
    }
    CHECK(names == documented);
}

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/arrangement.hpp>
#include <torchbus/composition.hpp>
#include <torchbus/distributed/world.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizer_state.hpp>
#include <torchbus/trainer.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {

namespace {

/// Which of the others at the same event the slot's subscriber stands before or after, and why.
std::string reasons(const CompositionReport& report, const ConnectedSlot& slot) {
    const auto is_there = [&](const std::string& id) {
        return std::ranges::any_of(report.slots, [&](const ConnectedSlot& other) { return other.event == slot.event && other.subscriber == id; });
    };
    std::vector<std::string> reasons;
    for (const auto& precedence : report.precedences)
        if (precedence.second == slot.subscriber && is_there(precedence.first)) reasons.push_back(precedence.why);
    return reasons.empty() ? "" : fmt::format("   ({})", fmt::join(reasons, "; "));
}

/// For each event, who runs, in which order and why.
void print_plan(const CompositionReport& report) {
    std::string event;
    for (const ConnectedSlot& slot : report.slots) {
        if (slot.event != event) std::printf("%s\n", slot.event.c_str());
        event = slot.event;
        const bool in_phase = slot.event == "gradients_ready" && slot.changes;
        const std::string place = in_phase ? fmt::format("{} {}", name_of(slot.stage), name_of(slot.phase)) : std::string(name_of(slot.stage));
        std::printf("    %-20s %s%s\n", place.c_str(), slot.subscriber.c_str(), reasons(report, slot).c_str());
    }
}

}  // namespace

std::unique_ptr<Trainer> trainer_of(Composition& made) {
    return in_file(made.name, [&] { return std::make_unique<Trainer>(std::move(made.trainer)); });
}

CheckedTrainer checked_trainer_of(Composition& made) {
    std::unique_ptr<Trainer> trainer = trainer_of(made);
    try {
        CompositionReport report = in_file(made.name, [&] { return trainer->check(made.train_dataset, made.eval_dataset, made.train); });
        return {std::move(trainer), std::move(report)};
    } catch (const SubscriberError& error) {  // at RunConfigured: the run would end there
        throw ConfigError(made.name + ": " + error.what());
    }
}

void tell_findings(const std::vector<Finding>& findings, const std::string& name) {
    for (const Finding& finding : findings)
        if (finding.weight == Finding::Weight::Warning) std::printf("warning: %s\n", finding.text.c_str());
    if (const std::string errors = errors_of(findings); !errors.empty()) throw ConfigError(fmt::format("{}: {}", name, errors));
}

namespace {

constexpr double kMib = 1024.0 * 1024.0;

/// As a launcher would say to rank 0 of so many.
std::shared_ptr<World> imagine(int world_size) {
    for (const auto& [name, value] : {std::pair{"RANK", 0}, {"WORLD_SIZE", world_size}, {"MASTER_PORT", 1}}) ::setenv(name, std::to_string(value).c_str(), 1);
    ::setenv("MASTER_ADDR", "127.0.0.1", 1);
    return World::imagined(world_size);
}

/// Makes one update as rank 0 of an imagined world, with what takes part in it and writes no files.
void dry_run(const nlohmann::json& options, World& world) {
    Composition made = composition_of(options);
    std::erase_if(made.trainer.callbacks, [](const ComposedCallback& composed) {
        const Declaration declared = composed.callback->declare();
        return !declared.folders.empty() || (declared.writes.empty() && !declared.collectives);
    });
    made.train.epochs = 1;
    made.train.max_steps = 1;
    const std::int64_t batch_size = made.train.batch_size;
    const auto optimizer = made.trainer.optimizer;
    const auto trainer = trainer_of(made);
    if (trainer->consensus().world_size() != world.size()) throw ConfigError(made.name + ": --world-size: no callback trains on several ranks; add data_parallel");
    const Traffic before = world.traffic();
    trainer->train(made.train_dataset, made.train);
    const Traffic after = world.traffic();
    double state_bytes = 0;
    for (const auto& [part, state] : save_optimizer(*optimizer, {}).tensors) state_bytes += static_cast<double>(state.nbytes());
    std::printf("ranks      %d, each with %lld samples of a batch of %lld\n", world.size(), static_cast<long long>(batch_size), static_cast<long long>(batch_size * world.size()));
    std::printf("update     made over c10d's fake backend: %.3f MiB summed in %lld messages; the optimizer keeps %.3f MiB on this rank\n", static_cast<double>(after.bytes - before.bytes) / kMib,
                static_cast<long long>(after.messages - before.messages), state_bytes / kMib);
}

}  // namespace

/// Makes everything that the run file names, and prints what would run, without training.
int check(const nlohmann::json& options) {
    const int world_size = options.at("world_size");
    const std::shared_ptr<World> world = world_size > 0 ? imagine(world_size) : nullptr;
    Composition made = composition_of(options);
    std::printf("data       %s\n", made.data.c_str());
    std::printf("epochs     %lld of batches of %lld\n", static_cast<long long>(made.train.epochs), static_cast<long long>(made.train.batch_size));
    const auto [trainer, report] = checked_trainer_of(made);
    if (made.output) require_writable_folder(*made.output, made.name + ": output", Probe::LeaveNoTrace);
    print_plan(report);
    tell_findings(report.findings, made.name);
    if (world) dry_run(options, *world);
    std::printf("%s: nothing stands against this run\n", made.name.c_str());
    return 0;
}

int summary(const nlohmann::json& options) {
    Composition made = composition_of(options);
    made.trainer.callbacks.clear();
    std::printf("%s", trainer_of(made)->summary().c_str());
    return 0;
}

}  // namespace torchbus::cli

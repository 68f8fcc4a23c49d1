// A recorded run told to other callbacks.
#include <algorithm>
#include <cstdio>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/composition.hpp>
#include <torchbus/composition/replay.hpp>
#include <torchbus/error.hpp>
#include <torchbus/plugin.hpp>

#include "shown_text.hpp"
#include "torch_commands.hpp"

namespace torchbus::cli {
namespace {

using nlohmann::json;

/// `said`: an array as it stands in a run file, or a file with one, or a run file.
std::vector<ComposedCallback> callbacks_of(const std::string& said, const std::vector<std::string>& overrides) {
    if (said.starts_with('[')) {
        const json list = json::parse(said, nullptr, /*allow_exceptions=*/false);
        if (list.is_discarded()) throw ConfigError(R"(--callbacks: it is no JSON; give a file, or an array such as '[{"kind": "early_stopping", "patience": 3}]')");
        return callbacks_from_json(list, "--callbacks");
    }
    const json run = read_run_file(said, overrides);
    if (!run.contains("callbacks")) throw ConfigError(fmt::format("{}: it names no callbacks; give a file whose `callbacks` are to be told the run", said));
    load_plugins(run.value("plugins", std::vector<std::string>()), said + ": plugins");
    return callbacks_from_json(run["callbacks"], said + ": callbacks");
}

bool is_same(const ReplayedDecision& one, const ReplayedDecision& other) { return one.decision == other.decision && one.requester == other.requester && one.reason == other.reason; }

std::string text_of(const ReplayedDecision& one) {
    return fmt::format("{} by {} after step {} (epoch {}): {}", std::string(name_of(one.decision)), terminal_text(one.requester), one.position.step, one.position.epoch, terminal_text(one.reason));
}

json json_of(const ReplayResult& result) {
    const auto list = [](const std::vector<ReplayedDecision>& decisions) {
        json all = json::array();
        for (const ReplayedDecision& one : decisions)
            all.push_back({{"decision", name_of(one.decision)}, {"requester", one.requester}, {"reason", one.reason}, {"epoch", one.position.epoch}, {"step", one.position.step}});
        return all;
    };
    return {{"run", result.run}, {"events", result.events}, {"left_out", result.left_out}, {"asked", list(result.asked)}, {"taken", list(result.taken)}, {"warnings", result.warnings}};
}

}  // namespace

int replay(const json& options) {
    std::vector<ComposedCallback> callbacks = callbacks_of(options.at("callbacks"), options.at("set"));
    std::vector<std::string> ids;
    for (const ComposedCallback& composed : callbacks) ids.push_back(composed.id);
    const ReplayResult result = torchbus::replay(options.at("paths").at(0).get<std::string>(), std::move(callbacks));
    if (options.value("json", false)) {
        std::puts(json_of(result).dump(2, ' ', false, json::error_handler_t::replace).c_str());
        return 0;
    }
    fmt::print("run {}: {} events were told to {} callbacks\n", terminal_text(result.run), result.events, ids.size());
    for (const ReplayedDecision& one : result.asked) {
        const bool was_taken = std::ranges::any_of(result.taken, [&](const ReplayedDecision& other) { return is_same(one, other); });
        fmt::print("asked for {}{}\n", text_of(one), was_taken ? "; so did the run" : "; the run did not");
    }
    for (const ReplayedDecision& one : result.taken) {
        const bool is_of_one = std::ranges::find(ids, one.requester) != ids.end();
        if (is_of_one && std::ranges::none_of(result.asked, [&](const ReplayedDecision& other) { return is_same(one, other); })) fmt::print("did not ask for {}; the run did\n", text_of(one));
    }
    if (result.asked.empty()) fmt::print("nobody asked for anything\n");
    for (const auto& [name, count] : result.left_out) fmt::print(stderr, "torchbus: warning: {} events {} were left out: they are a user's own\n", count, terminal_text(name));
    for (const std::string& warning : result.warnings) fmt::print(stderr, "torchbus: warning: {}\n", terminal_text(warning));
    return 0;
}

}  // namespace torchbus::cli

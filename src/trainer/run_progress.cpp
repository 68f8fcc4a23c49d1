#include "run_progress.hpp"

#include <array>

#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/events.hpp>

namespace torchbus {
namespace {

using nlohmann::json;
constexpr std::array<const char*, 3> kNext = {"step", "evaluation", "epoch"};

json to_values(const std::optional<Request>& request) {
    if (!request) return nullptr;
    return {{"requester", request->requester}, {"reason", request->reason}, {"rank", request->rank}};
}

std::optional<Request> request_from(const json& values) {
    if (values.is_null()) return std::nullopt;
    return Request{values.at("requester"), values.at("reason"), values.at("rank")};
}

}  // namespace

json to_values(const RunProgress& progress) {
    json left_out = json::array();
    for (const LeftOut& one : progress.left_out) left_out.push_back(one);
    return {{"left_out", std::move(left_out)}, {"next", kNext.at(static_cast<std::size_t>(progress.next))}, {"evaluation_due", progress.evaluation_due}, {"stop_epoch", progress.stop_epoch},
            {"windows", progress.windows}, {"skip_update", to_values(progress.skip_update)}, {"skip_batch", to_values(progress.skip_batch)}, {"epoch_cut", progress.epoch_cut}};
}

RunProgress run_progress_from(const json& values) {
    RunProgress progress{RunProgress::Next::Epoch, values.at("evaluation_due"), values.at("stop_epoch"), values.at("windows"),
                         request_from(values.at("skip_update")), request_from(values.at("skip_batch")), values.value("epoch_cut", false)};
    if (values.contains("left_out"))  // states of before roll-backs have none
        for (const json& one : values.at("left_out"))
            progress.left_out.push_back({{one.at("epoch"), one.at("first"), one.at("count")}, one.at("requester"), one.at("reason")});
    const std::string next = values.at("next");
    for (std::size_t i = 0; i < kNext.size(); ++i)
        if (next == kNext[i]) return progress.next = static_cast<RunProgress::Next>(i), progress;
    throw CheckpointError("what the run was about to do is called '" + next + "', expected step, evaluation or epoch");
}

}  // namespace torchbus

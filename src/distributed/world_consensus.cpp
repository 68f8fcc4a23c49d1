// What one rank asks for becomes the decision of all.
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/data/loader.hpp>

#include "groups.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

json to_values(const RequestSet& requests) {
    json values = json::array();
    for (const auto& request : requests) {
        if (!request) {
            values.push_back(nullptr);
            continue;
        }
        json changes = json::array();
        for (const auto& [subscriber, option, value, requester] : request->changes) changes.push_back({subscriber, option, value, requester});
        values.push_back({{"requester", request->requester}, {"reason", request->reason}, {"exit_code", request->exit_code}, {"by_signal", request->by_signal},
                          {"leave_out", {request->leave_out.epoch, request->leave_out.first, request->leave_out.count}}, {"changes", std::move(changes)}});
    }
    return values;
}

Request request_from(const json& values, int rank) {
    const json& range = values.at("leave_out");
    Request request{values.at("requester"), values.at("reason"), rank, values.at("exit_code"), values.at("by_signal"), {range.at(0), range.at(1), range.at(2)}};
    for (const json& change : values.at("changes")) request.changes.push_back({change.at(0), change.at(1), change.at(2), change.at(3)});
    return request;
}

class WorldConsensus final : public Consensus {
public:
    explicit WorldConsensus(std::shared_ptr<World> world) : owner_(std::move(world)), world_(owner_->groups()) {}
    int rank() const override { return world_.ranks.rank; }
    int world_size() const override { return world_.ranks.world_size; }
    Shard shard() const override { return {rank(), world_size()}; }
    void sum(std::span<double> values) override { sum_over(world_, *world_.control, values); }
    std::vector<std::string> gather(std::string own) override { return gather_on_first(world_, *world_.control, std::move(own)); }
    std::string broadcast(std::string own) override { return broadcast_over(world_, *world_.control, std::move(own)); }

    std::unique_ptr<Loader> dispatch(std::unique_ptr<Loader> of_first) override { return make_dispatching_loader(owner_, std::move(of_first)); }

    RequestSet exchange(RequestSet local, Agreement when) override {
        RequestSet agreed = pending_ ? finish() : RequestSet{};
        merge(asked_, std::move(local));
        Ballot& ballot = world_.ballot;
        const bool was_carried = std::exchange(ballot.was_carried, false);
        if (when == Agreement::AtOnce || (was_carried && ballot.is_anything_asked)) {
            begin();
            merge(agreed, finish());
        } else if (!was_carried) {
            begin();  // no sum of gradients comes by in an evaluation
        }
        for (std::size_t kind = 0; kind < kDecisionCount; ++kind) ballot.own[kind] = asked_[kind] ? 1.0F : 0.0F;
        return agreed;
    }

private:
    /// Only which kinds are asked for, and by whom first: what they are is exchanged where there are some.
    void begin() {
        cast_ = std::exchange(asked_, {});
        flags_ = torch::full({static_cast<std::int64_t>(kDecisionCount)}, world_.ranks.world_size, torch::kInt);
        for (std::size_t kind = 0; kind < kDecisionCount; ++kind)
            if (cast_[kind]) flags_.mutable_data_ptr<std::int32_t>()[kind] = order_of(*cast_[kind]);
        std::vector<at::Tensor> tensors = {flags_};
        c10d::AllreduceOptions options;
        options.reduceOp = c10d::ReduceOp::MIN;
        collective(world_, "agreeing on decisions", [&] { pending_ = world_.control->allreduce(tensors, options); });
    }
    /// A signal wins over all other requests, then the lowest rank does.
    std::int32_t order_of(const Request& request) const { return request.by_signal ? rank() - world_size() : rank(); }

    RequestSet finish() {
        awaited(world_, "agreeing on decisions", [&] { std::exchange(pending_, nullptr)->wait(); });
        const std::int32_t* first = flags_.const_data_ptr<std::int32_t>();
        const std::int32_t nobody = world_.ranks.world_size;
        RequestSet agreed;
        if (std::all_of(first, first + kDecisionCount, [&](std::int32_t order) { return order == nobody; })) return agreed;
        const std::vector<std::string> texts = gather_over(world_, *world_.control, to_values(cast_).dump(-1, ' ', false, json::error_handler_t::replace));
        for (std::size_t kind = 0; kind < kDecisionCount; ++kind) {
            if (first[kind] == nobody) continue;
            const int rank = first[kind] < 0 ? first[kind] + nobody : first[kind];
            agreed[kind] = request_from(json::parse(texts[static_cast<std::size_t>(rank)]).at(kind), rank);
            if (static_cast<Decision>(kind) == Decision::ChangeOption) agreed[kind]->changes = changes_of_all(texts);
        }
        return agreed;
    }
    static std::vector<OptionChange> changes_of_all(const std::vector<std::string>& texts) {
        std::vector<OptionChange> changes;
        for (const std::string& text : texts) {
            const json values = json::parse(text).at(static_cast<std::size_t>(Decision::ChangeOption));
            if (values.is_null()) continue;
            const Request request = request_from(values, 0);
            changes.insert(changes.end(), request.changes.begin(), request.changes.end());
        }
        return changes;
    }
    static void merge(RequestSet& into, RequestSet later) {
        for (std::size_t kind = 0; kind < kDecisionCount; ++kind)
            if (later[kind]) torchbus::merge(into[kind], std::move(*later[kind]));
    }

    std::shared_ptr<World> owner_;
    World::Groups& world_;
    RequestSet asked_;  ///< and not exchanged yet
    RequestSet cast_;   ///< in the exchange under way
    at::Tensor flags_;
    c10::intrusive_ptr<c10d::Work> pending_;
};

}  // namespace

std::shared_ptr<Consensus> make_consensus(std::shared_ptr<World> world) { return std::make_shared<WorldConsensus>(std::move(world)); }

}  // namespace torchbus

#include <torchbus/checkpoint/states_of_ranks.hpp>

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

#include "checksum.hpp"
#include "safetensors_header.hpp"
#include "tensor_file.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

constexpr const char* kName = "a state of another rank";

/// What stands beside the tensors.
std::map<std::string, std::string> metadata_of(const SavedState& state) { return {{"values", state.values.dump()}, {"version", std::to_string(state.version)}}; }

std::string packed(const SavedState& state) { return bytes_of_tensors({state.tensors.begin(), state.tensors.end()}, metadata_of(state), kName); }

SavedState unpacked(std::string_view bytes, int rank) {
    const std::string name = fmt::format("the state of rank {}", rank);
    const auto metadata = parse_safetensors_header(bytes, name).metadata;
    SavedState state{json::parse(metadata.at("values")), {}, std::stoi(metadata.at("version"))};
    for (auto& [tensor_name, tensor] : tensors_of_file(bytes, name)) state.tensors.emplace(tensor_name, tensor);
    return state;
}

std::string digest_of(const SavedState& state) {
    Checksum checksum;
    write_tensors({state.tensors.begin(), state.tensors.end()}, metadata_of(state), kName, [&](const void* part, std::size_t count) { checksum.update(part, count); });
    return checksum.hex();
}

/// Of every part but the model, in the order of `parts`.
json digests_of(const RunState& run, const std::vector<std::string>& parts) {
    json digests = json::object();
    for (const std::string& part : parts)
        if (part != "model") digests[part] = digest_of(run.save(part));
    return digests;
}

/// By part, the ranks whose state is another than rank 0's.
json differing(const std::vector<std::string>& digests) {
    const json first = json::parse(digests.front());
    json found = json::object();
    for (std::size_t rank = 1; rank < digests.size(); ++rank) {
        const json own = json::parse(digests[rank]);
        for (const auto& [part, digest] : first.items())
            if (own.contains(part) && own.at(part) != digest) found[part].push_back(rank);
    }
    return found;
}

/// Adds another rank's shard of an optimizer's state.
void add_shard(SavedState& whole, SavedState shard, const std::string& part, int rank) {
    const auto refuse = [&](const std::string& what) {
        throw DistributedError(fmt::format("the ranks' states of '{}' are not shards of one: rank {} has another {} than rank 0; were they trained apart?", part, rank, what));
    };
    if (shard.values.value("kind", "") != whole.values.value("kind", "") || shard.values.value("groups", json()) != whole.values.value("groups", json())) refuse("configuration of its optimizer");
    const json parameters = shard.values.value("parameters", json::object());
    for (const auto& [name, values] : parameters.items()) {
        if (whole.values["parameters"].contains(name)) refuse(fmt::format("state of '{}'", name));
        whole.values["parameters"][name] = values;
    }
    for (auto& [name, tensor] : shard.tensors)
        if (!whole.tensors.emplace(name, std::move(tensor)).second) refuse(fmt::format("'{}'", name));
}

/// One part of another rank.
void add(TrainingState& state, const std::string& part, int rank, SavedState of_rank) {
    if (is_essential_part(part))
        add_shard(state.parts.at(part), std::move(of_rank), part, rank);
    else
        state.parts.emplace(part_of_rank(part, rank), std::move(of_rank));
}

}  // namespace

std::string part_of_rank(std::string_view part, int rank) { return rank == 0 ? std::string(part) : fmt::format("rank.{}.{}", rank, part); }
bool is_part_of_rank(std::string_view part) { return part.starts_with("rank."); }

TrainingState capture_over_ranks(const RunState& run, Consensus& consensus, bool copied) {
    const int own_rank = consensus.rank();
    TrainingState state;
    if (own_rank == 0) state = capture(run, copied);
    if (consensus.world_size() == 1) return state;
    const std::vector<std::string> digests = consensus.gather(digests_of(run, run.parts()).dump());
    const json differs = json::parse(consensus.broadcast(own_rank == 0 ? differing(digests).dump() : ""));
    for (const auto& [part, ranks] : differs.items()) {
        const auto differing_ranks = ranks.get<std::vector<int>>();
        const bool is_sent = std::ranges::find(differing_ranks, own_rank) != differing_ranks.end();
        const std::vector<std::string> of_ranks = consensus.gather(is_sent ? packed(run.save(part)) : "");
        if (own_rank != 0) continue;
        for (const int rank : differing_ranks) add(state, part, rank, unpacked(of_ranks[static_cast<std::size_t>(rank)], rank));
    }
    return state;
}

std::vector<SavedState> states_of_ranks(const TrainingState& saved, const std::string& part, int world_size) {
    std::vector<SavedState> states;
    for (int rank = 0; rank < world_size; ++rank) {
        const auto own = saved.parts.find(part_of_rank(part, rank));
        states.push_back(own != saved.parts.end() ? own->second : saved.parts.at(part));
    }
    return states;
}

}  // namespace torchbus

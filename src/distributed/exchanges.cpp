// Sums, broadcasts and gatherings of tensors and texts.
#include <algorithm>
#include <map>

#include <fmt/format.h>
#include <torch/types.h>

#include "c10d_process.hpp"
#include "groups.hpp"
#include "roll_call.hpp"

namespace torchbus {
namespace {

/// Bytes of each rank, the rest of the row zero. Shapes: [bytes].
at::Tensor row_of(std::string_view text, std::int64_t bytes) {
    at::Tensor row = torch::zeros({bytes}, torch::kByte);
    std::copy(text.begin(), text.end(), reinterpret_cast<char*>(row.mutable_data_ptr<std::uint8_t>()));
    return row;
}

std::vector<std::string> texts_of(const std::vector<at::Tensor>& rows, const std::vector<std::int64_t>& lengths) {
    std::vector<std::string> texts;
    for (std::size_t rank = 0; rank < rows.size(); ++rank) texts.emplace_back(reinterpret_cast<const char*>(rows[rank].const_data_ptr<std::uint8_t>()), static_cast<std::size_t>(lengths[rank]));
    return texts;
}

void sum_within(World::Groups& world, c10d::Backend& group, at::Tensor values) {
    std::vector<at::Tensor> tensors = {std::move(values)};
    count_sum(world, tensors[0]);
    collective(world, fmt::format("a sum of {} number{}", tensors[0].numel(), tensors[0].numel() == 1 ? "" : "s"), [&] { group.allreduce(tensors)->wait(); });
}

/// Requires: contiguous.
void broadcast_within(World::Groups& world, c10d::Backend& group, at::Tensor values, int from = 0) {
    std::vector<at::Tensor> tensors = {std::move(values)};
    c10d::BroadcastOptions options;
    options.rootRank = from;
    collective(world, "a broadcast", [&] { group.broadcast(tensors, options)->wait(); });
}

}  // namespace

c10d::Backend& backend_of(World::Groups& world, const at::Tensor& tensor) {
    if (tensor.is_cpu()) return *world.data_backend;
    if (world.device_backend && tensor.device() == world.device) return *world.device_backend;
    throw ConfigError(fmt::format("ranks are to exchange a tensor on {}, and were told of {}; keep what is exchanged on the device of device_placement, or on the CPU", tensor.device().str(),
                                  world.device.is_cpu() ? "no device but the CPU" : world.device.str()));
}

std::vector<at::Tensor> gather_equal(World::Groups& world, c10d::Backend& group, at::Tensor own) {
    std::vector<std::vector<at::Tensor>> all(1);
    for (int rank = 0; rank < world.ranks.world_size; ++rank) all[0].push_back(torch::empty_like(own));
    std::vector<at::Tensor> inputs = {std::move(own)};
    collective(world, "gathering", [&] { group.allgather(all, inputs)->wait(); });
    return all[0];
}

std::vector<std::int64_t> gather_numbers(World::Groups& world, c10d::Backend& group, std::int64_t own) {
    std::vector<std::int64_t> numbers;
    for (const at::Tensor& of_rank : gather_equal(world, group, torch::tensor({own}, torch::kLong))) numbers.push_back(of_rank.item<std::int64_t>());
    return numbers;
}

void fail_collective(World::Groups& world, std::string_view what, const std::exception& error) {
    const std::string blame = world.watch ? world.watch->diagnosis() : "";
    fail(world.ranks, fmt::format("{} with the other ranks did not come to its end: {}{}", what, blame.empty() ? "" : blame + "; ", first_line(error)));
}

void count_sum(World::Groups& world, const at::Tensor& values) {
    ++world.messages;
    world.bytes += static_cast<std::int64_t>(values.nbytes());
}

void sum_over(World::Groups& world, at::Tensor values) {
    c10d::Backend& group = backend_of(world, values);
    sum_within(world, group, std::move(values));
}

void sum_over(World::Groups& world, c10d::Backend& group, std::span<double> values) {
    sum_within(world, group, torch::from_blob(values.data(), {static_cast<std::int64_t>(values.size())}, torch::kDouble));
}

std::vector<std::string> gather_over(World::Groups& world, c10d::Backend& group, std::string_view text) {
    const auto lengths = gather_numbers(world, group, static_cast<std::int64_t>(text.size()));
    const std::vector<at::Tensor> rows = gather_equal(world, group, row_of(text, std::max<std::int64_t>(1, std::ranges::max(lengths))));
    return texts_of(rows, lengths);
}

std::vector<std::string> gather_on_first(World::Groups& world, c10d::Backend& group, std::string text) {
    const auto lengths = gather_numbers(world, group, static_cast<std::int64_t>(text.size()));
    std::vector<at::Tensor> own = {row_of(text, std::max<std::int64_t>(1, std::ranges::max(lengths)))};
    std::vector<std::vector<at::Tensor>> rows;
    if (world.ranks.rank == 0)
        for (auto& row : rows.emplace_back(lengths.size())) row = torch::empty_like(own[0]);
    collective(world, "gathering", [&] { group.gather(rows, own)->wait(); });
    if (rows.empty()) return {std::move(text)};
    return texts_of(rows[0], lengths);
}

std::string broadcast_over(World::Groups& world, c10d::Backend& group, std::string text) {
    at::Tensor length = torch::tensor({static_cast<std::int64_t>(text.size())}, torch::kLong);
    broadcast_within(world, group, length);
    const auto bytes = length.item<std::int64_t>();
    if (bytes == 0) return "";
    at::Tensor row = world.ranks.rank == 0 ? row_of(text, bytes) : torch::empty({bytes}, torch::kByte);
    broadcast_within(world, group, row);
    return {reinterpret_cast<const char*>(row.const_data_ptr<std::uint8_t>()), static_cast<std::size_t>(bytes)};
}

std::string scatter_over(World::Groups& world, c10d::Backend& group, std::vector<std::string> texts) {
    at::Tensor lengths = torch::zeros({world.ranks.world_size}, torch::kLong);
    for (std::size_t rank = 0; rank < texts.size(); ++rank) lengths[static_cast<std::int64_t>(rank)] = static_cast<std::int64_t>(texts[rank].size());
    broadcast_within(world, group, lengths);
    const auto longest = lengths.max().item<std::int64_t>();
    std::vector<at::Tensor> own = {torch::empty({longest}, torch::kByte)};
    std::vector<std::vector<at::Tensor>> rows;
    for (const std::string& text : texts) (rows.empty() ? rows.emplace_back() : rows.front()).push_back(row_of(text, longest));
    collective(world, "sending batches", [&] { group.scatter(own, rows)->wait(); });
    return {reinterpret_cast<const char*>(own[0].const_data_ptr<std::uint8_t>()), static_cast<std::size_t>(lengths[world.ranks.rank].item<std::int64_t>())};
}

void broadcast_over(World::Groups& world, std::vector<at::Tensor> tensors, int from) {
    const at::NoGradGuard no_grad;
    std::map<std::pair<bool, at::ScalarType>, std::vector<at::Tensor>> alike;  // those of the CPU first
    for (at::Tensor& tensor : tensors) alike[{!tensor.is_cpu(), tensor.scalar_type()}].push_back(std::move(tensor));
    for (auto& [type, of_type] : alike) {
        std::vector<at::Tensor> flat;
        for (const at::Tensor& tensor : of_type) flat.push_back(tensor.reshape({-1}));
        const at::Tensor sent = of_type.size() == 1 ? flat[0].contiguous() : torch::cat(flat);
        broadcast_within(world, backend_of(world, sent), sent, from);
        if (world.ranks.rank == from || sent.is_alias_of(of_type[0])) continue;
        std::int64_t begin = 0;
        for (at::Tensor& tensor : of_type) {
            tensor.copy_(sent.narrow(0, begin, tensor.numel()).view(tensor.sizes()));
            begin += tensor.numel();
        }
    }
}

}  // namespace torchbus

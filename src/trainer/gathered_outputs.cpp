#include "gathered_outputs.hpp"

#include <fmt/format.h>
#include <torch/types.h>

#include "../checkpoint/tensor_file.hpp"

namespace torchbus {
namespace {

std::vector<NamedTensor> numbered(const std::vector<at::Tensor>& tensors) {
    std::vector<NamedTensor> named;
    for (const at::Tensor& tensor : tensors) named.emplace_back(fmt::format("{:010}", named.size()), tensor);
    return named;
}

}  // namespace

at::Tensor gathered_outputs(const std::vector<at::Tensor>& own, Consensus& consensus) {
    if (consensus.world_size() == 1) return torch::cat(own);
    const std::vector<std::string> of_ranks = consensus.gather(bytes_of_tensors(numbered(own), {}, "predictions"));
    std::string whole;
    if (consensus.rank() == 0) {
        std::vector<std::vector<NamedTensor>> parts;
        for (const std::string& bytes : of_ranks) parts.push_back(tensors_of_file(bytes, "predictions"));
        std::vector<at::Tensor> in_order;
        for (std::size_t batch = 0; batch < own.size(); ++batch)
            for (const auto& of_rank : parts)
                if (const at::Tensor& part = of_rank.at(batch).second; part.size(0) > 0) in_order.push_back(part);
        whole = bytes_of_tensors({{"outputs", torch::cat(in_order)}}, {}, "predictions");
    }
    return tensors_of_file(consensus.broadcast(std::move(whole)), "predictions").front().second;
}

}  // namespace torchbus

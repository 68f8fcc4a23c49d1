#pragma once
/// Several ranks as threads of one process: a Consensus and a reducer without c10d.

#include <barrier>
#include <string>
#include <vector>

#include <torchbus/callback.hpp>

namespace torchbus::test {

/// What the ranks share.
class FakeWorld {
public:
    explicit FakeWorld(int size) : size_(size), barrier_(size), values_(static_cast<std::size_t>(size)), requests_(static_cast<std::size_t>(size)),
                                   gradients_(static_cast<std::size_t>(size)), texts_(static_cast<std::size_t>(size)) {}
    int size() const { return size_; }
    void sum(int rank, std::span<double> values);
    RequestSet exchange(int rank, RequestSet local);
    std::vector<std::string> gather(int rank, std::string own);
    std::string broadcast(int rank, std::string own);
    /// Sums tensors over ranks, in place, in the order of the ranks: the same bits on all of them.
    void sum(int rank, std::vector<at::Tensor> tensors);
    std::shared_ptr<Consensus> consensus(int rank);
    /// Sums the window's weight at TrainStepStart, and gradients in phase Finalize.
    std::shared_ptr<Callback> reducer(int rank);

private:
    int size_;
    std::barrier<> barrier_;
    std::vector<std::vector<double>> values_;
    std::vector<RequestSet> requests_;
    std::vector<std::vector<at::Tensor>> gradients_;
    std::vector<std::string> texts_;
};

}  // namespace torchbus::test

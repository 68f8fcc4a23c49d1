#include "fake_world.hpp"

#include <torch/torch.h>

namespace torchbus::test {

void FakeWorld::sum(int rank, std::span<double> values) {
    values_[static_cast<std::size_t>(rank)].assign(values.begin(), values.end());
    barrier_.arrive_and_wait();
    for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = 0;
        for (const auto& of_rank : values_) values[i] += of_rank[i];
    }
    barrier_.arrive_and_wait();
}

RequestSet FakeWorld::exchange(int rank, RequestSet local) {
    requests_[static_cast<std::size_t>(rank)] = std::move(local);
    barrier_.arrive_and_wait();
    RequestSet agreed;
    for (std::size_t other = 0; other < requests_.size(); ++other)
        for (std::size_t kind = 0; kind < kDecisionCount; ++kind)
            if (!agreed[kind] && requests_[other][kind]) {
                agreed[kind] = requests_[other][kind];
                agreed[kind]->rank = static_cast<int>(other);
            }
    barrier_.arrive_and_wait();
    return agreed;
}

std::vector<std::string> FakeWorld::gather(int rank, std::string own) {
    texts_[static_cast<std::size_t>(rank)] = own;
    barrier_.arrive_and_wait();
    const std::vector<std::string> all = rank == 0 ? texts_ : std::vector{std::move(own)};
    barrier_.arrive_and_wait();
    return all;
}

std::string FakeWorld::broadcast(int rank, std::string own) {
    if (rank == 0) texts_[0] = std::move(own);
    barrier_.arrive_and_wait();
    const std::string text = texts_[0];
    barrier_.arrive_and_wait();
    return text;
}

void FakeWorld::sum(int rank, std::vector<at::Tensor> tensors) {
    auto& mine = gradients_[static_cast<std::size_t>(rank)];
    mine.clear();
    for (const at::Tensor& tensor : tensors) mine.push_back(tensor.clone());
    barrier_.arrive_and_wait();
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        tensors[i].zero_();
        for (const auto& of_rank : gradients_) tensors[i].add_(of_rank[i]);
    }
    barrier_.arrive_and_wait();
}

namespace {

class FakeConsensus final : public Consensus {
public:
    FakeConsensus(FakeWorld& world, int rank) : world_(world), rank_(rank) {}
    RequestSet exchange(RequestSet local, Agreement) override { return world_.exchange(rank_, std::move(local)); }
    void sum(std::span<double> values) override { world_.sum(rank_, values); }
    std::vector<std::string> gather(std::string own) override { return world_.gather(rank_, std::move(own)); }
    std::string broadcast(std::string own) override { return world_.broadcast(rank_, std::move(own)); }
    int rank() const override { return rank_; }
    int world_size() const override { return world_.size(); }

private:
    FakeWorld& world_;
    int rank_;
};

class FakeReducer final : public Callback {
public:
    FakeReducer(FakeWorld& world, int rank) : world_(world), rank_(rank) {}
    std::string kind() const override { return "fake_reducer"; }
    Declaration declare() const override { return {.listens = {"train_step_start", "gradients_ready"}, .writes = {"gradients.finalize"}, .before = {"mixed_precision"}, .collectives = true}; }
    void attach(Attachment& run) override {
        connections_ += run.bus.intercept<TrainStepStart>([&run](TrainStepStart& event) {
            run.consensus.sum(std::span(&event.window.total_weight, 1));
        });
        connections_ += run.bus.intercept(Phase::Finalize, [this](GradientsReady& event) {
            const at::NoGradGuard no_grad;
            world_.sum(rank_, event.gradients.held());
        });
    }
    void detach() override { connections_.clear(); }

private:
    FakeWorld& world_;
    int rank_;
    Connections connections_;
};

}  // namespace

std::shared_ptr<Consensus> FakeWorld::consensus(int rank) { return std::make_shared<FakeConsensus>(*this, rank); }
std::shared_ptr<Callback> FakeWorld::reducer(int rank) { return std::make_shared<FakeReducer>(*this, rank); }

}  // namespace torchbus::test

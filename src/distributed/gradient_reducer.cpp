#include <torchbus/distributed/gradient_reducer.hpp>

#include <algorithm>
#include <unordered_map>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#include <torch/types.h>

#include <torchbus/error.hpp>

#include "groups.hpp"

namespace torchbus {
namespace {

constexpr double kMib = 1024.0 * 1024.0;

/// Sums; c10d's own hooks average, and here the share of each rank is in its loss already.
class SumHook final : public c10d::CommHookInterface {
public:
    SumHook(World::Groups& world, bool bf16) : world_(world), bf16_(bf16) {}
    c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override {
        at::Tensor whole = bucket.getBuffer();
        std::vector<at::Tensor> sent = {bf16_ ? whole.to(at::kBFloat16) : whole};
        count_sum(world_, sent[0]);
        c10::intrusive_ptr<c10::ivalue::Future> future;
        collective(world_, fmt::format("a sum of {} gradients", whole.numel()), [&] { future = world_.data->allreduce(sent)->getFuture(); });
        return future->then([&world = world_, bf16 = bf16_, whole](c10::ivalue::Future& done) -> c10::IValue {
            awaited(world, "a sum of gradients", [&] {
                if (done.hasError()) std::rethrow_exception(done.exception_ptr());
            });
            if (bf16) whole.copy_(done.value().toTensorVector()[0]);
            return std::vector<at::Tensor>{whole};
        }, future->elementType());
    }
    at::Tensor parseHookResult(const c10::IValue& result) override {
        return result.isTensor() ? result.toTensor() : result.toTensorVector()[0];
    }

private:
    World::Groups& world_;
    bool bf16_;
};

/// Names, shapes and types in their order, a line each.
std::string signature_of(const std::vector<at::Tensor>& parameters, const std::vector<std::string>& names) {
    std::string all;
    for (std::size_t i = 0; i < parameters.size(); ++i) all += fmt::format("{} [{}] {}\n", names[i], fmt::join(parameters[i].sizes(), ", "), c10::toString(parameters[i].scalar_type()));
    return all;
}

}  // namespace

namespace {

/// Asked whether it is done after a backward, and not only before the next.
class AskedReducer final : public c10d::Reducer {
public:
    using Reducer::Reducer;
    using Reducer::ensure_prior_reduction_finished;
};

}  // namespace

struct GradientReducer::Impl {
    std::shared_ptr<World> world;
    std::unique_ptr<AskedReducer> reducer;
    bool find_unused = false;
    at::Tensor ballot;  ///< a parameter of no model, whose gradient is what is asked for: it travels in the first bucket
};

GradientReducer::GradientReducer(std::shared_ptr<World> world, std::vector<at::Tensor> parameters, std::vector<std::string> names, const GradientReducerOptions& options)
    : impl_(std::make_unique<Impl>()) {
    impl_->find_unused = options.find_unused;
    if (!parameters.empty() && parameters.back().is_cpu()) {  // to read it on a device would be to wait for that
        impl_->ballot = torch::zeros({static_cast<std::int64_t>(kDecisionCount)}, parameters.back().options().requires_grad(true));
        parameters.push_back(impl_->ballot);
        names.emplace_back("requests");
    }
    const auto signatures = world->gather(signature_of(parameters, names));
    for (std::size_t rank = 1; rank < signatures.size(); ++rank) {
        if (signatures[rank] == signatures[0]) continue;
        const auto [own, other] = std::ranges::mismatch(signatures[0], signatures[rank]);
        const auto line = [](const std::string& text, std::string::const_iterator at) {
            const auto place = static_cast<std::size_t>(at - text.begin());
            const std::size_t begin = place == 0 ? 0 : text.rfind('\n', place - 1) + 1;
            const std::string found = text.substr(begin, text.find('\n', begin) - begin);
            return found.empty() ? std::string("nothing") : found;
        };
        throw DistributedError(fmt::format("rank {} trains other parameters than rank 0: {} where rank 0 has {}; make the same model on all ranks", rank, line(signatures[rank], other), line(signatures[0], own)));
    }
    const auto bytes = [](double mib) { return static_cast<std::size_t>(mib * kMib); };
    const std::vector<bool> sparse(parameters.size(), false);
    auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(parameters, {bytes(options.first_bucket_mib), bytes(options.bucket_mib)}, sparse);
    std::ranges::reverse(buckets);  // backward reaches the last parameters first
    std::ranges::reverse(limits);
    std::unordered_map<std::size_t, std::string> by_index;
    for (std::size_t i = 0; i < names.size(); ++i) by_index.emplace(i, names[i]);
    auto& groups = world->groups();
    impl_->reducer = std::make_unique<AskedReducer>(std::move(parameters), std::move(buckets), groups.data, sparse, static_cast<std::int64_t>(bytes(options.bucket_mib)), options.find_unused,
                                                     /*gradient_as_bucket_view=*/true, std::move(by_index), static_cast<std::int64_t>(bytes(options.first_bucket_mib)),
                                                     /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false, std::vector<std::int64_t>{});
    impl_->reducer->register_comm_hook(std::make_unique<SumHook>(groups, options.bf16));
    impl_->world = std::move(world);
}

GradientReducer::~GradientReducer() = default;

at::Tensor GradientReducer::arm(const at::Tensor& root) {
    at::Tensor with_ballot = root;
    if (const at::Tensor& ballot = impl_->ballot; ballot.defined()) {
        auto& own = impl_->world->groups().ballot.own;
        const at::Tensor asked = torch::from_blob(own.data(), {static_cast<std::int64_t>(own.size())}, torch::kFloat).to(ballot.options().requires_grad(false), /*non_blocking=*/false, /*copy=*/true);
        with_ballot = root + (ballot * asked).sum().to(root.scalar_type());  // adds zero
    }
    awaited(impl_->world->groups(), "a sum of gradients", [&] {
        if (impl_->reducer->should_rebuild_buckets()) impl_->reducer->rebuild_buckets();  // in the order in which gradients became ready
        impl_->reducer->prepare_for_backward(impl_->find_unused ? std::vector<at::Tensor>{with_ballot} : std::vector<at::Tensor>{});
    });
    return with_ballot;
}

void GradientReducer::finish() {
    try {
        impl_->reducer->ensure_prior_reduction_finished();
    } catch (const c10::Error&) {
        throw ConfigError("the loss does not reach all parameters of an update, so that their gradients were not summed; give find_unused to data_parallel, or freeze what is not used");
    }
    if (!impl_->ballot.defined() || !impl_->ballot.grad().defined()) return;
    Ballot& ballot = impl_->world->groups().ballot;
    ballot.is_anything_asked = impl_->ballot.grad().abs().max().item<float>() > 0;
    ballot.was_carried = true;
    impl_->ballot.mutable_grad().reset();
}

}  // namespace torchbus

#include <torchbus/distributed/batch_norm_over_ranks.hpp>

#include <numeric>

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/library.h>
#include <torch/types.h>

#include "groups.hpp"

namespace torchbus {

struct BatchNormOverRanks::State {
    State(std::shared_ptr<World> of_ranks, Samples of_batch) : world(std::move(of_ranks)), samples(of_batch) {}
    std::shared_ptr<World> world;
    Samples samples;
    /// A key of the dispatcher that LibTorch leaves to projects outside: above autograd, so that a kernel may bring its own.
    c10::impl::IncludeDispatchKeyGuard included{c10::DispatchKey::DeferredInit};
};

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using State = BatchNormOverRanks::State;

thread_local const State* current = nullptr;

/// All dimensions but that of the channels. Shapes: inputs [N, C, …].
std::vector<std::int64_t> all_but_channels(const at::Tensor& input) {
    std::vector<std::int64_t> dimensions(static_cast<std::size_t>(input.dim()));
    std::iota(dimensions.begin(), dimensions.end(), 0);
    dimensions.erase(dimensions.begin() + 1);
    return dimensions;
}

/// Shapes: [C] to [1, C, 1, …].
at::Tensor by_channel(const at::Tensor& values, const at::Tensor& like) {
    std::vector<std::int64_t> shape(static_cast<std::size_t>(like.dim()), 1);
    shape[1] = values.numel();
    return values.view(shape);
}

/// Sums over ranks, in double: what is subtracted afterwards is nearly equal. Shapes: [k, C].
at::Tensor summed(const std::shared_ptr<World>& world, at::Tensor values) {
    at::Tensor sums = values.to(at::kDouble, /*non_blocking=*/false, /*copy=*/true).contiguous();
    sum_over(world->groups(), sums);
    return sums;
}

struct Moments {
    at::Tensor mean, variance;  ///< over all ranks, variance biased. Shapes: [C], double
    at::Tensor count;           ///< of values a channel, on all ranks: a device is not waited for. Shapes: [], double
};

at::ScalarType precise(const at::Tensor& tensor) { return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

Moments moments_of(const at::Tensor& input, std::int64_t valid, const std::shared_ptr<World>& world) {
    const std::int64_t channels = input.size(1);
    at::Tensor sums = torch::zeros({3, channels}, input.options().dtype(at::kDouble));  // of ones, values, squares
    if (valid > 0) {
        const at::Tensor counted = input.narrow(0, 0, valid).to(precise(input));
        const auto own_count = static_cast<double>(counted.numel() / channels);
        const auto [variance, mean] = torch::var_mean(counted, all_but_channels(counted), /*unbiased=*/false);
        const at::Tensor exact = mean.to(at::kDouble);
        sums[0].fill_(own_count);
        sums[1] = exact * own_count;
        sums[2] = (variance.to(at::kDouble) + exact.square()) * own_count;
    }
    sums = summed(world, sums);
    const at::Tensor count = sums[0][0];
    const at::Tensor mean = sums[1] / count;
    return {mean, (sums[2] / count - mean.square()).clamp_min(0), count};
}

/// What backward needs of its world; the graph holds it.
struct WorldInGraph final : torch::CustomClassHolder {
    explicit WorldInGraph(std::shared_ptr<World> in_graph) : world(std::move(in_graph)) {}
    std::shared_ptr<World> world;
};

std::optional<at::Tensor> optional(const at::Tensor& tensor) { return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt; }

/// With m and v mean and variance over all samples that count, and r = 1 / sqrt(v + eps): y = (x - m) r w + b. For x that
/// counts dL/dx = r w (g - mean(g) - (x - m) r² mean(g (x - m))), g being dL/dy and both means sums over all, divided by the
/// number of those that count; for other x, which do not enter m and v, dL/dx = r w g. Gradients of w and b are this rank's.
/// Source: Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.
class NormOverRanks final : public torch::autograd::Function<NormOverRanks> {
public:
    static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& mean, const at::Tensor& variance, const at::Tensor& count,
                              double eps, std::int64_t valid, const std::shared_ptr<World>& world) {
        context->save_for_backward({input, weight, mean, (variance + eps).rsqrt(), count});
        context->saved_data["valid"] = valid;
        context->saved_data["world"] = c10::IValue::make_capsule(c10::make_intrusive<WorldInGraph>(world));
        const at::ScalarType type = weight.defined() ? weight.scalar_type() : precise(input);
        return at::batch_norm(input, optional(weight), optional(bias), mean.to(type), variance.to(type), /*training=*/false, 0, eps, false);
    }
    static variable_list backward(AutogradContext* context, const variable_list& outputs) {
        TORCH_CHECK(!at::GradMode::is_enabled(), "sync_batch_norm: a gradient of its gradient was asked for (create_graph), which it does not have");
        const c10::impl::ExcludeDispatchKeyGuard off(c10::DispatchKey::DeferredInit);
        const variable_list saved = context->get_saved_variables();
        const at::Tensor &input = saved[0], &weight = saved[1];
        const at::Tensor& count = saved[4];
        const std::int64_t valid = context->saved_data.at("valid").toInt();
        const auto world = c10::static_intrusive_pointer_cast<WorldInGraph>(context->saved_data.at("world").toCapsule())->world;

        const at::ScalarType type = precise(input);
        const at::Tensor gradient = outputs[0].to(type), mean = by_channel(saved[2].to(type), input), inverse = by_channel(saved[3].to(type), input);
        const at::Tensor centred = input.to(type) - mean;
        const auto dimensions = all_but_channels(input);
        const at::Tensor own = torch::stack({gradient.sum(dimensions), (gradient * centred).sum(dimensions)});
        const at::Tensor means = (summed(world, own) / count).to(type);
        at::Tensor of_input = gradient.clone();
        if (valid > 0) of_input.narrow(0, 0, valid).sub_((by_channel(means[0], input) + centred * inverse.square() * by_channel(means[1], input)).narrow(0, 0, valid));
        of_input.mul_(weight.defined() ? inverse * by_channel(weight.to(type), input) : inverse);
        const at::Tensor of_weight = weight.defined() ? (own[1] * saved[3].to(type)).to(weight.scalar_type()) : at::Tensor();
        return {of_input.to(input.scalar_type()), of_weight, weight.defined() ? own[0].to(weight.scalar_type()) : at::Tensor(), {}, {}, {}, {}, {}, {}};
    }
};

/// n / (n - 1) makes the variance that is kept unbiased, as LibTorch does.
void update_running(const std::optional<at::Tensor>& running_mean, const std::optional<at::Tensor>& running_variance, const Moments& moments, double momentum) {
    const at::NoGradGuard no_grad;
    const auto update = [&](const std::optional<at::Tensor>& running, const at::Tensor& now) {
        if (running && running->defined()) running->mul_(1 - momentum).add_(now.to(running->scalar_type()), momentum);
    };
    update(running_mean, moments.mean);
    update(running_variance, moments.variance * (moments.count / (moments.count - 1)));
}

at::Tensor batch_norm(const at::Tensor& input, const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& running_mean,
                      const std::optional<at::Tensor>& running_variance, bool training, double momentum, double eps, bool cudnn_enabled) {
    const c10::impl::ExcludeDispatchKeyGuard off(c10::DispatchKey::DeferredInit);
    if (!training || !current) return at::batch_norm(input, weight, bias, running_mean, running_variance, training, momentum, eps, cudnn_enabled);
    const std::int64_t valid = input.size(0) == current->samples.all ? current->samples.valid : input.size(0);
    Moments moments;
    {
        const at::NoGradGuard no_grad;
        moments = moments_of(input, valid, current->world);
    }
    if (input.is_cpu()) TORCH_CHECK(moments.count.item<double>() > 1, "sync_batch_norm: all ranks together have ", moments.count.item<double>(), " value a channel, of which there is no variance; give larger batches");
    update_running(running_mean, running_variance, moments, momentum);
    return NormOverRanks::apply(input, weight.value_or(at::Tensor()), bias.value_or(at::Tensor()), moments.mean, moments.variance, moments.count, eps, valid, current->world);
}

/// Calls batch norm, and is to have a mean of its own for each sample.
at::Tensor instance_norm(const at::Tensor& input, const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& running_mean,
                         const std::optional<at::Tensor>& running_variance, bool use_input_stats, double momentum, double eps, bool cudnn_enabled) {
    const c10::impl::ExcludeDispatchKeyGuard off(c10::DispatchKey::DeferredInit);
    return at::instance_norm(input, weight, bias, running_mean, running_variance, use_input_stats, momentum, eps, cudnn_enabled);
}

}  // namespace

BatchNormOverRanks::BatchNormOverRanks(std::shared_ptr<World> world, Samples samples) {
    // Its profiling executor calls another function than batch_norm from the second run on.
    torch::jit::getProfilingMode() = false;
    state_ = std::make_unique<State>(std::move(world), samples);
    current = state_.get();
}

BatchNormOverRanks::~BatchNormOverRanks() { current = nullptr; }

}  // namespace torchbus

// Whatever is not named here passes through the key.
TORCH_LIBRARY_IMPL(_, DeferredInit, library) { library.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, DeferredInit, library) {
    library.impl("batch_norm", &torchbus::batch_norm);
    library.impl("instance_norm", &torchbus::instance_norm);
}

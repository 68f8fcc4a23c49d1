// One step: a window of batches forward and backward, and its update.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/optim/optimizer.h>

#include <torchbus/error.hpp>
#include <torchbus/label_range.hpp>

#include "run.hpp"

namespace torchbus {
namespace {

/// A bound for a subscriber that never gives up: halving a batch so often leaves less than a sample of any.
constexpr int kMaxFailuresOfWindow = 64;

std::string message_of(const std::exception& error) {
    const auto* of_library = dynamic_cast<const c10::Error*>(&error);
    return of_library ? of_library->what_without_backtrace() : error.what();
}

void require_scalar(const at::Tensor& loss) {
    if (loss.numel() != 1) throw ConfigError(fmt::format("the loss has shape [{}], expected a scalar; reduce it, e.g. with mean()", fmt::join(loss.sizes(), ", ")));
}

/// LibTorch's CPU allocator throws no type of its own.
bool is_out_of_memory(const std::exception& error) {
    const bool told = dynamic_cast<const c10::OutOfMemoryError*>(&error) || dynamic_cast<const std::bad_alloc*>(&error);
    return told || std::string_view(error.what()).find("DefaultCPUAllocator: can't allocate memory") != std::string_view::npos;
}

}  // namespace

Trigger Run::fetch_window() {
    const RunPlan& plan = parts_.plan;
    Loader& loader = *parts_.loaders.front();
    std::int64_t count = plan.micro_batches_per_step;
    window_data_ = loader.position();
    if (const auto limit = plan.splits.front().max_batches) count = std::min(count, *limit - window_data_.batches);
    switch (loader.next(count, kPollInterval, window_)) {
        case Fetch::Pending: return is_asked_while_waiting() ? Trigger::DecisionDue : Trigger::DataPending;
        case Fetch::Exhausted: return Trigger::DataExhausted;
        case Fetch::Ready: break;
    }
    window_.range = {window_data_.epoch, window_data_.batches, window_.count()};
    if (const LeftOut* why = left_out(window_.range)) {
        parts_.bus.emit([&] { return WindowLeftOut{position(), window_, *why}; });
        return Trigger::WindowLeftOut;
    }
    // Agreed on by all ranks, it concerns the one that asked.
    if (skip_batch_ && skip_batch_->rank == parts_.consensus.rank())
        for (Batch& batch : window_.batches) batch.weight = 0;
    update_index_ = 0;
    while (windows_ % current_update().every != 0) ++update_index_;  // one of them is due on every window
    window_began_ = position();
    in_window_ = true;
    has_updated_ = false;
    start_step();
    return Trigger::WindowReady;
}

void Run::start_step() {
    micro_ = 0;
    pass_ = 0;
    failures_ = 0;
    window_.total_weight = 0;
    for (Batch& batch : window_.batches) {
        window_.total_weight += batch.weight;
        if (batch.over_ranks.weight == 0) batch.over_ranks = {batch.valid, batch.tokens, batch.weight, batch.weight};
        batch.progress.measured = false;
    }
    renew_gradients_view();
    parts_.bus.emit([&] { return TrainStepStart{position(), current_update(), window_}; });
}

/// Model, OutputReady and loss, within the wrappers of Forward. Leaves output_ and loss_.
void Run::forward(Batch& batch, const StepFunction& step, Scope scope, MicroBatch micro_batch) {
    Bus& bus = parts_.bus;
    bus.emit([&] { return ForwardStart{position(), scope, micro_batch, batch}; });
    {
        SpanGuard guard;
        bus.enter(guard, Forward{scope, micro_batch});
        StepOutput result = step(batch);
        output_ = std::move(result.output);
        loss_ = std::move(result.loss);
        bus.emit([&] { return OutputReady{position(), scope, micro_batch, batch, output_, loss_}; });
        const bool computes_loss = !loss_.defined() && scope.mode != Mode::Predict && parts_.loss;
        if (computes_loss) loss_ = with_labels_explained([&] { return parts_.loss(output_, batch); }, output_.tensor, batch);
        if (loss_.defined()) require_scalar(loss_);
        guard.close();
    }
    bus.emit([&] { return ForwardEnd{position(), scope, micro_batch, batch, output_, loss_}; });
}

TriedBatch Run::try_first_batch() {
    const at::NoGradGuard no_grad;
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const at::Tensor drawn = generator.get_state();
    Loader& loader = *parts_.loaders.front();
    loader.begin({});
    Window window;
    while (loader.next(1, kPollInterval, window) == Fetch::Pending) {}
    if (window.batches.empty()) throw ConfigError("the training data has no batch");
    TriedBatch tried{std::move(window.batches.front()), {}};
    if (const auto parameters = parts_.model->named_parameters(); !parameters.empty())
        tried.batch.for_each_tensor([&](at::Tensor& tensor) { tensor = tensor.to(parameters.front().second.device()); });
    parts_.model->set_training(false);
    tried.output = parts_.model->forward(tried.batch);
    parts_.model->set_training(true);
    if (parts_.loss) require_scalar(with_labels_explained([&] { return parts_.loss(tried.output, tried.batch); }, tried.output.tensor, tried.batch));
    generator.set_state(drawn);
    return tried;
}

void Run::check_loss() const {
    if (!loss_.defined())
        throw ConfigError("the step function returned no loss, and the trainer has no loss function; give one of the two");
    if (!loss_.requires_grad())
        throw ConfigError("the loss does not depend on any trainable parameter; is everything frozen or detached?");
}

Trigger Run::run_micro_batch() {
    try {
        forward_and_backward();
        return ++micro_ == window_.count() ? Trigger::WindowDone : Trigger::MicroBatchDone;
    } catch (const SubscriberError&) {
        throw;
    } catch (const std::exception& error) {
        if (!starts_over_after(error)) throw;
    }
    return Trigger::Again;
}

/// Of the micro-batch whose turn it is.
void Run::forward_and_backward() {
    Bus& bus = parts_.bus;
    const Update& update = current_update();
    const Scope scope{Mode::Train, parts_.plan.splits.front().name, "training"};
    Batch& batch = window_.batches[static_cast<std::size_t>(micro_)];
    const MicroBatch micro_batch = current_micro_batch();
    if (!std::exchange(batch.progress.prepared, true)) bus.emit([&] { return BatchReady{position(), scope, micro_batch, batch}; });

    forward(batch, update.step ? update.step : default_step_, scope, micro_batch);
    batch.progress.measured = true;
    check_loss();
    output_ = {};  // no slot sees it after ForwardEnd, and backward keeps what it needs
    const double share = window_.share(micro_);
    at::Tensor root = share == 1.0 ? loss_ : loss_ * share;
    if (pass_ == 0) window_loss_ = micro_ == 0 ? root.detach() : window_loss_ + root.detach();

    bus.emit([&] { return BackwardStart{position(), micro_batch, root}; });
    {
        SpanGuard guard;
        bus.enter(guard, Backward{micro_batch});
        root.backward();
        guard.close();
    }
    if (!std::exchange(batch.progress.counted, true))
        count([&](Counts& counts) {
            ++counts.micro_batch;
            counts.samples += batch.over_ranks.samples;
            counts.tokens += batch.over_ranks.tokens;
        });
    bus.emit([&] { return BackwardEnd{position(), micro_batch}; });
    loss_ = at::Tensor();  // not to be alive beside that of the next forward
}

MicroBatch Run::current_micro_batch() {
    const BatchProgress& progress = window_.batches[static_cast<std::size_t>(micro_)].progress;
    return {micro_, window_.count(), pass_, current_update().name, progress.measured};
}

/// Whether a subscriber wants the window tried again from its first micro-batch.
bool Run::starts_over_after(const std::exception& error) {
    if (!parts_.bus.wants<MicroBatchFailed>() || failures_ == kMaxFailuresOfWindow) return false;
    output_ = {};  // what the failed forward holds
    loss_ = at::Tensor();
    const double weight = window_.total_weight;
    MicroBatchFailed failed{position(), current_micro_batch(), window_, message_of(error), is_out_of_memory(error)};
    parts_.bus.emit(failed);
    if (!failed.repeat) return false;
    if (window_.batches.empty() || window_.total_weight != weight)
        throw StateError("the window was changed at MicroBatchFailed into one of another weight; split batches, and leave none out");
    ++failures_;
    clear_gradients();
    micro_ = 0;
    return true;
}

Trigger Run::update() {
    Bus& bus = parts_.bus;
    const Update& update = current_update();
    GradientsReady ready{position(), update, window_, *gradients_[update_index_].view, pass_};
    if (skip_update_) ready.skip(skip_update_->requester, skip_update_->reason);
    if (skip_batch_ && window_.total_weight == 0) ready.skip(skip_batch_->requester, skip_batch_->reason);
    bus.emit(ready);
    const bool skipped = !ready.skip_requester.empty();
    const bool repeats = ready.repeat && !skipped;  // what is skipped need not be computed again
    if (repeats && pass_ + 1 < parts_.plan.max_passes) {
        clear_gradients();
        micro_ = 0;
        ++pass_;
        return Trigger::Again;
    }
    if (repeats)
        throw StateError(fmt::format("GradientsReady was answered `again` {} times at step {}; raise max_passes in the plan, "
                                     "or let the subscriber give up", pass_ + 1, position().step));
    count([](Counts& counts) { ++counts.attempts; });
    has_updated_ = true;
    if (skipped) {
        skip_update_.reset();
        bus.emit([&] { return OptimizerStepSkipped{position(), update, ready.skip_requester, ready.skip_reason}; });
    } else {
        bus.emit([&] { return OptimizerStepStart{position(), update}; });
        SpanGuard guard;
        bus.enter(guard, OptimizerStep{update});
        update.optimizer->step();
        guard.close();
        count([](Counts& counts) { ++counts.step; });
        bus.emit([&] { return OptimizerStepEnd{position(), update}; });
    }
    end_step(skipped);
    if (!in_window_) return Trigger::UpdateDone;
    start_step();
    return Trigger::NextUpdate;
}

/// After the last update of a window an update boundary is reached, whatever a slot of TrainStepEnd throws.
void Run::end_step(bool skipped) {
    const Update& ended = current_update();
    if (!next_update()) finish_window();
    parts_.bus.emit([&] { return TrainStepEnd{position(), ended, window_, window_loss_, skipped}; });
    clear_gradients();
}

/// Moves on to the next update that is due on this window. Returns whether there is one.
bool Run::next_update() {
    const auto max_steps = parts_.plan.max_steps;
    while (++update_index_ < parts_.updates.size()) {
        const bool enough = max_steps && position().step >= *max_steps;
        if (!enough && windows_ % current_update().every == 0) return true;
    }
    return false;
}

void Run::finish_window() {
    in_window_ = false;
    update_index_ = 0;
    ++windows_;
    skip_batch_.reset();
}

Run::SeenGradients Run::gradients_of(const Update& update) {
    return {update.owners, std::make_unique<GradientsView>(update.parameters(), update.owners)};
}

/// A subscriber may have added parameters to the optimizer since, or divided them among ranks.
void Run::renew_gradients_view() {
    std::size_t count = 0;
    for (const auto& group : current_update().optimizer->param_groups()) count += group.params().size();
    auto& [owners, view] = gradients_[update_index_];
    if (view->parameters().size() != count || owners != current_update().owners) gradients_[update_index_] = gradients_of(current_update());
}

/// Of all updates: a backward through one may reach the parameters of another.
void Run::clear_gradients() {
    for (const SeenGradients& seen : gradients_)
        for (const at::Tensor& parameter : seen.view->parameters()) parameter.mutable_grad().reset();
}

}  // namespace torchbus

// Numbers on the blackboard: whether somebody publishes what others need, and in time.
#include <algorithm>
#include <array>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/arrangement.hpp>
#include <torchbus/error.hpp>

namespace torchbus {
namespace {

enum class Often : std::uint8_t { Run, Epoch, Step, MicroBatch };

/// Where an event stands within a run: how often it comes, and in which order within that.
struct Place {
    std::string_view event;
    Often often;
};
constexpr auto kPlaces = std::to_array<Place>({
    {"run_configured", Often::Run}, {"training_run_start", Often::Run}, {"train_epoch_start", Often::Epoch},
    {"train_step_start", Often::Step}, {"batch_ready", Often::MicroBatch}, {"forward_start", Often::MicroBatch},
    {"output_ready", Often::MicroBatch}, {"forward_end", Often::MicroBatch}, {"backward_start", Often::MicroBatch},
    {"backward_end", Often::MicroBatch}, {"gradients_ready", Often::Step}, {"optimizer_step_start", Often::Step},
    {"optimizer_step_end", Often::Step}, {"train_step_end", Often::Step}, {"step_checkpoint", Often::Step},
    {"train_epoch_end", Often::Epoch}, {"eval_epoch_start", Often::Epoch}, {"eval_step_end", Often::Step},
    {"eval_epoch_end", Often::Epoch}, {"training_run_epoch_end", Often::Epoch}, {"epoch_checkpoint", Often::Epoch},
    {"training_run_end", Often::Run}, {"run_closed", Often::Run},
});

std::string_view words(Often often) {
    switch (often) {
        case Often::Run: return "once a run";
        case Often::Epoch: return "once an epoch";
        case Often::Step: return "every step";
        case Often::MicroBatch: return "every batch";
    }
    return "";
}

class ValueCheck {
public:
    ValueCheck(const std::vector<Member>& members, const RunPlan& plan) : members_(members), plan_(plan) {
        evaluates_ = plan.has(Mode::Eval);
        evaluates_in_steps_ = std::ranges::any_of(members, [](const Member& member) { return (std::ranges::count(member.declared.asks, Decision::EvaluateNow) > 0); });
    }

    std::vector<Finding> findings() && {
        for (const Member& member : members_) {
            check_asks(member);
            for (const Value& needed : member.declared.needs) check_need(member, needed);
        }
        for (const std::string& view : plan_.views) check_view(view);
        return std::move(findings_);
    }

private:
    void error(std::string text) { findings_.push_back({Finding::Weight::Error, std::move(text)}); }

    void check_asks(const Member& member) {
        const bool keeps_states = std::ranges::any_of(members_, [](const Member& one) { return std::ranges::count(one.declared.listens, "rolling_back") > 0; });
        if (!keeps_states && std::ranges::count(member.declared.asks, Decision::RollBack) > 0)
            error(fmt::format("'{0}' rolls the run back, and nobody saves states that it could go back to; add save_training_state, or give '{0}' another action", member.id));
        if (!evaluates_ && (std::ranges::count(member.declared.asks, Decision::EvaluateNow) > 0))
            error(fmt::format("'{}' asks for evaluations, and the run has no evaluation data; give some, or leave '{}' out", member.id, member.id));
    }

    void check_view(const std::string& view) {
        if (view == "training" || std::ranges::any_of(members_, [&](const Member& member) { return (std::ranges::count(member.declared.views, view) > 0); })) return;
        error(fmt::format("the plan evaluates the weights view '{}', which nobody holds; add who does, e.g. model_ema, or take the view out", view));
    }

    void check_need(const Member& reader, const Value& needed) {
        const std::string name = canonical(needed.name);
        if (name.starts_with("eval.") && !evaluates_) {
            error(fmt::format("'{}' needs {}, and the run has no evaluation data; give some, or let it watch a training metric", reader.id, needed.name));
            return;
        }
        const Member* provider = nullptr;
        const Value* published = nullptr;
        std::vector<std::string> known;
        for (const Member& member : members_)
            for (const Value& value : member.declared.publishes) {
                known.push_back(value.name);
                if (canonical(value.name) == name) provider = &member, published = &value;
            }
        if (!provider) {
            const std::string there = known.empty() ? "nobody publishes anything" : fmt::format("there are {}", fmt::join(known, ", "));
            error(fmt::format("'{}' needs {}, which nobody publishes{} ({}); add who does, or name another", reader.id, needed.name,
                              did_you_mean(needed.name, known), there));
            return;
        }
        if (provider != &reader) check_time(reader, needed, *provider, *published);
    }

    /// eval.noisy.ema.loss → eval.loss, where noisy is a split and ema a view of this run.
    std::string canonical(const std::string& name) const {
        std::vector<std::string> parts(1);
        for (const char c : name) c == '.' ? (void)parts.emplace_back() : parts.back().push_back(c);
        const auto is_known = [this](const std::string& part) {
            if (std::ranges::any_of(plan_.splits, [&](const SplitPlan& split) { return split.name == part; })) return true;
            return std::ranges::any_of(members_, [&](const Member& member) { return (std::ranges::count(member.declared.views, part) > 0); });
        };
        std::string result = parts.front();
        for (std::size_t i = 1; i < parts.size(); ++i)
            if (i + 1 == parts.size() || !is_known(parts[i])) result += '.' + parts[i];
        return result;
    }

    static std::optional<std::size_t> place_of(const std::string& event) {
        const auto found = std::ranges::find(kPlaces, event, &Place::event);
        return found == kPlaces.end() ? std::nullopt : std::optional<std::size_t>(found - kPlaces.begin());
    }

    void check_time(const Member& reader, const Value& needed, const Member& provider, const Value& published) {
        const auto read_at = place_of(needed.event), published_at = place_of(published.event);
        if (!read_at || !published_at) return;
        const bool in_evaluation = published.event.starts_with("eval_");
        // An evaluation between two steps is followed by StepCheckpoint.
        if (in_evaluation && evaluates_in_steps_ && needed.event == "step_checkpoint") return;
        const Often provided = kPlaces[*published_at].often, wanted = kPlaces[*read_at].often;
        if (provided < wanted) {
            error(fmt::format("'{}' needs {} at {}, {}, and '{}' publishes it at {}, {}; read it less often, or let it watch a number of every step",
                              reader.id, needed.name, needed.event, words(wanted), provider.id, published.event, words(provided)));
            return;
        }
        const bool same_event = *published_at == *read_at, same_stage = same_event && published.stage == needed.stage;
        const bool too_late = *published_at > *read_at || (same_event && published.stage > needed.stage);
        if (too_late)
            error(fmt::format("'{}' needs {} at {}{}, and '{}' publishes it only later, at {}{}; read it later", reader.id, needed.name, needed.event,
                              stage_words(needed, published), provider.id, published.event, stage_words(published, needed)));
        else if (same_stage && &reader < &provider)  // by an order of the user's: the library's would be the other one
            error(fmt::format("'{0}' runs before '{1}', which publishes {2} that '{0}' needs at {3}; take that order out of the composition, or turn it around",
                              reader.id, provider.id, needed.name, needed.event));
    }

    static std::string stage_words(const Value& value, const Value& other) {
        return value.event == other.event ? fmt::format(" in stage {}", name_of(value.stage)) : "";
    }

    const std::vector<Member>& members_;
    const RunPlan& plan_;
    bool evaluates_ = false, evaluates_in_steps_ = false;
    std::vector<Finding> findings_;
};

}  // namespace

std::vector<Finding> check_values(const std::vector<Member>& members, const RunPlan& plan) { return ValueCheck(members, plan).findings(); }

}  // namespace torchbus

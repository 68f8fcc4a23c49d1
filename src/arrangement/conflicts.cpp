#include "conflicts.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

constexpr auto kResources = std::to_array<Resource>({
    {"plan.window", "how many batches make an update", true},
    {"window", "the batches of an update, at TrainStepStart", true},
    {"plan.limits", "batches after which a pass ends; the smallest limit holds", false},
    {"plan.views", "weights views that an evaluation goes through", false},
    {"model", "the model as a whole: its device and type", true},
    {"batch.device", "where a batch's tensors lie", true},
    {"batch", "a batch's inputs and targets", true},
    {"precision", "the types that forward computes in", true},
    {"output", "what forward produced", true},
    {"loss", "supplies the loss, in place of the loss function", true},
    {"root", "what backward starts from: scaled here, unscaled in gradients.finalize", true},
    {"gradients.finalize", "GradientsReady, phase finalize: reduces or unscales", true},
    {"gradients.inspect", "GradientsReady, phase inspect", false},
    {"gradients.change", "GradientsReady, phase change: clips", true},
    {"gradients.decide", "GradientsReady, phase decide: skips or repeats; the first to skip is named", false},
    {"states", "training states that a run may be rolled back to", false},
    {"parameters", "the weights, outside of the optimizer's step", true},
    {"trainable", "which parameters and layers train", true},
    {"learning_rate", "the rate of an update's groups", true},
    {"optimizer_options", "other options of an update's groups", true},
    {"callback_options", "numbers that other callbacks work with", true},
    {"gradients", "the gradients of a window (reads)", false},
    {"blackboard", "whatever numbers are there (reads)", false},
});

bool is_tensor(std::string_view resource) {
    return resource == "batch" || resource == "output" || resource == "loss" || resource == "root" || resource == "parameters" ||
           resource.starts_with("gradients");
}

/// learning_rate:generator → learning_rate, generator
std::pair<std::string_view, std::string_view> split_scope(std::string_view resource) {
    const auto colon = resource.find(':');
    return colon == std::string_view::npos ? std::pair{resource, std::string_view()} : std::pair{resource.substr(0, colon), resource.substr(colon + 1)};
}

const Resource* find_resource(std::string_view name) {
    const auto found = std::ranges::find(kResources, split_scope(name).first, &Resource::name);
    return found == kResources.end() ? nullptr : &*found;
}

bool overlap(std::string_view one, std::string_view other) {
    const auto [name, scope] = split_scope(one);
    const auto [other_name, other_scope] = split_scope(other);
    return name == other_name && (scope.empty() || other_scope.empty() || scope == other_scope);
}

bool reads(const Member& member, std::string_view resource) {
    return std::ranges::any_of(member.declared.reads, [&](const std::string& read) { return overlap(read, resource); });
}

/// Only then does it matter who is first.
bool meet_at_an_event(const Member& one, const Member& other) {
    return std::ranges::any_of(one.declared.listens, [&](const std::string& event) { return event != "run_configured" && std::ranges::count(other.declared.listens, event) > 0; });
}

bool writes(const Member& member, std::string_view resource) {
    return std::ranges::any_of(member.declared.writes, [&](const std::string& written) { return overlap(written, resource); });
}

class Conflicts {
public:
    Conflicts(const std::vector<Member>& members, std::vector<Finding>& findings) : members_(members), findings_(findings) {}

    void find_unknown_resources() {
        std::vector<std::string> known;
        for (const Resource& resource : kResources) known.emplace_back(resource.name);
        for (const Member& member : members_)
            for (const auto* list : {&member.declared.reads, &member.declared.writes})
                for (const std::string& name : *list)
                    if (!find_resource(name)) error(fmt::format("'{}' declares '{}', which is no resource{}", member.id, name, did_you_mean(name, known)));
    }

    using IsOrdered = std::function<bool(std::size_t, std::size_t)>;

    void find_unordered_writers(const IsOrdered& is_ordered) {
        for (std::size_t a = 0; a < members_.size(); ++a)
            for (std::size_t b = a + 1; b < members_.size(); ++b)
                for (const std::string& resource : members_[a].declared.writes) {
                    const Resource* known = find_resource(resource);
                    if (!known || !known->ordered || !writes(members_[b], resource) || is_ordered(a, b) || excluded_.contains({a, b})) continue;
                    at_odds_.insert({a, b});
                    error(fmt::format("'{0}' and '{1}' both write {2} ({3}), and neither says who goes first; leave one out, or give '{1}' \"after\": [\"{0}\"] in the composition",
                                      members_[a].id, members_[b].id, resource, known->about));
                }
    }

    void find_shared_leases() {
        for_each_holder(&Declaration::views, [this](const Member* first, const Member& member, const std::string& view) {
            if (first) error(fmt::format("'{}' and '{}' both hold the weights view '{}'; give one of them a view of another name", first->id, member.id, view));
            if (view == "training") error(fmt::format("'{}' wants the view 'training', which is the trained weights' own; give it another name", member.id));
        });
    }

    void find_shared_folders() {
        for_each_holder(&Declaration::folders, [this](const Member* first, const Member& member, const std::string& folder) {
            if (first) error(fmt::format("'{}' and '{}' both save into '{}', and would delete each other's; give one of them another folder", first->id, member.id, folder));
        });
    }

    void find_unscaled() {
        for (const Member& scaler : members_) {
            if (!writes(scaler, "root")) continue;
            if (std::ranges::any_of(members_, [](const Member& member) { return writes(member, "gradients.finalize"); })) continue;
            std::string sufferer;
            for (const Member& member : members_)
                if (&member != &scaler && (writes(member, "gradients.change") || (std::ranges::count(member.declared.reads, "gradients") > 0))) sufferer = member.id;
            error(sufferer.empty()
                      ? fmt::format("'{}' scales the root of backward, and nobody unscales the gradients (writes gradients.finalize); unscale them there", scaler.id)
                      : fmt::format("'{}' works on gradients that '{}' has scaled (it writes root), and nobody unscales them (writes gradients.finalize); unscale them there",
                                    sufferer, scaler.id));
        }
    }

    void find_wrong_delivery() {
        for (const Member& member : members_) {
            const Declaration& declared = member.declared;
            if (declared.collectives && declared.on_thread)
                error(fmt::format("'{}' performs collectives on a thread of its own; ranks would meet in different orders: let it work inline", member.id));
            if (declared.collectives && declared.subscriber.fault == Fault::Optional)
                error(fmt::format("'{}' performs collectives and is optional; detached on one rank it would leave the others waiting: make it critical", member.id));
            if (!declared.on_thread) continue;
            for (const auto* list : {&declared.reads, &declared.writes})
                for (const std::string& resource : *list)
                    if (is_tensor(split_scope(resource).first))
                        error(fmt::format("'{}' works on a thread of its own and uses {}, which changes meanwhile; let it work inline, or take a copy and leave {} out of its declaration",
                                          member.id, resource, resource));
        }
    }

    void find_excluded() {
        for (std::size_t a = 0; a < members_.size(); ++a)
            for (std::size_t b = 0; b < members_.size(); ++b)
                for (const Exclusion& exclusion : members_[a].declared.excludes) {
                    if (exclusion.kind != members_[b].kind) continue;
                    excluded_.insert(std::minmax(a, b));
                    error(fmt::format("'{0}' and '{1}' cannot be in one run: {2}; leave '{1}' out of the run with '{0}'", members_[a].id, members_[b].id, exclusion.why));
                }
    }

    void find_same_ids() {
        std::set<std::string> ids;
        for (const Member& member : members_)
            if (!ids.insert(member.id).second) error(fmt::format("two subscribers have the id '{}'; give one of them an id of its own", member.id));
    }

    /// In a known order the later one's number is the one that stays.
    void find_shared_names(const IsOrdered& is_ordered) {
        for (std::size_t a = 0; a < members_.size(); ++a)
            for (std::size_t b = a + 1; b < members_.size(); ++b) {
                if (at_odds_.contains({a, b}) || excluded_.contains({a, b}) || is_ordered(a, b)) continue;
                for (const Value& value : members_[a].declared.publishes)
                    if (std::ranges::any_of(members_[b].declared.publishes, [&](const Value& other) { return other.name == value.name; }))
                        error(fmt::format("'{}' and '{}' both publish {}; give one of them another name, or leave one out", members_[a].id, members_[b].id, value.name));
            }
    }

private:
    /// `visit` is handed the first one that holds the same, or null.
    template <class Visit>
    void for_each_holder(std::vector<std::string> Declaration::*held, const Visit& visit) {
        std::map<std::string, const Member*> holders;
        for (const Member& member : members_)
            for (const std::string& one : member.declared.*held) {
                const auto [place, added] = holders.try_emplace(one, &member);
                visit(added ? nullptr : place->second, member, one);
            }
    }
    void error(std::string text) { findings_.push_back({Finding::Weight::Error, std::move(text)}); }
    const std::vector<Member>& members_;
    std::vector<Finding>& findings_;
    std::set<std::pair<std::size_t, std::size_t>> excluded_, at_odds_;  ///< pairs that are told of already
};

}  // namespace

std::span<const Resource> resources() { return kResources; }

void find_conflicts(const std::vector<Member>& members, const std::function<bool(std::size_t, std::size_t)>& is_ordered,
                    std::vector<Finding>& findings) {
    Conflicts conflicts(members, findings);
    conflicts.find_unknown_resources();
    conflicts.find_same_ids();
    conflicts.find_excluded();
    conflicts.find_unordered_writers(is_ordered);
    conflicts.find_shared_names(is_ordered);
    conflicts.find_shared_leases();
    conflicts.find_shared_folders();
    conflicts.find_unscaled();
    conflicts.find_wrong_delivery();
}

std::vector<Precedence> precedences_of_resources(const std::vector<Member>& members) {
    std::vector<Precedence> found;
    for (std::size_t mover = 0; mover < members.size(); ++mover)
        for (std::size_t other = 0; other < members.size(); ++other)
            if (mover != other && writes(members[mover], "batch.device") && writes(members[other], "batch") && !writes(members[other], "batch.device"))
                found.push_back({mover, other, fmt::format("{} moves batches before {} changes them", members[mover].id, members[other].id)});
    for (std::size_t writer = 0; writer < members.size(); ++writer)
        for (std::size_t reader = 0; reader < members.size(); ++reader) {
            if (writer == reader || !meet_at_an_event(members[writer], members[reader])) continue;
            for (const std::string& resource : members[writer].declared.writes)
                if (reads(members[reader], resource) && !writes(members[reader], resource))
                    found.push_back({writer, reader, fmt::format("{} writes {}, {} reads it", members[writer].id, resource, members[reader].id)});
        }
    return found;
}

}  // namespace torchbus

// Sorting: whose order is said by the user, by declarations, or follows from what one publishes and another needs.
#include <torchbus/arrangement.hpp>

#include <algorithm>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/error.hpp>

#include "conflicts.hpp"

namespace torchbus {
namespace {

bool is_called(const Member& member, const std::string& name) { return member.id == name || member.kind == name; }

/// Who runs before whom, as a graph over the members.
class Precedences {
public:
    explicit Precedences(const std::vector<Member>& members) : members_(members) {}

    void add(std::size_t first, std::size_t second, std::string why) { all_.push_back({first, second, std::move(why)}); }

    /// The members from `first` to `second` along precedences, both included; empty where there is no way.
    std::vector<std::size_t> way(std::size_t first, std::size_t second) const {
        std::vector<std::size_t> came_from(members_.size(), members_.size()), open = {first};
        while (!open.empty()) {
            const std::size_t here = open.back();
            open.pop_back();
            for (const Precedence& edge : all_) {
                if (edge.first != here || came_from[edge.second] != members_.size() || edge.second == first) continue;
                came_from[edge.second] = here;
                open.push_back(edge.second);
            }
        }
        if (came_from[second] == members_.size()) return {};
        std::vector<std::size_t> path = {second};
        while (path.back() != first) path.push_back(came_from[path.back()]);
        std::ranges::reverse(path);
        return path;
    }

    /// Adds a precedence unless the reverse is settled already; then says so in a finding, or gives way in silence
    /// to a user's word.
    void add_or_report(std::size_t first, std::size_t second, const std::string& why, bool of_user, std::vector<Finding>& findings) {
        if (first == second) {
            findings.push_back({Finding::Weight::Error, fmt::format("'{}' is to run before itself ({}); remove that", members_[first].id, why)});
            return;
        }
        const auto reverse = way(second, first);
        if (reverse.empty()) {
            add(first, second, why);
            return;
        }
        if (!of_user && rests_on_user(reverse)) return;
        std::vector<std::string> cycle = {fmt::format("'{}' before '{}' ({})", members_[first].id, members_[second].id, why)};
        for (std::size_t i = 0; i + 1 < reverse.size(); ++i)
            cycle.push_back(fmt::format("'{}' before '{}' ({})", members_[reverse[i]].id, members_[reverse[i + 1]].id, why_of(reverse[i], reverse[i + 1])));
        findings.push_back({Finding::Weight::Error, fmt::format("the order goes in a circle: {}; take one of these out, or say \"before\" or \"after\" in the composition",
                                                                fmt::join(cycle, ", "))});
    }

    void note_user_edges() { user_edges_ = all_.size(); }
    std::vector<Precedence>& all() { return all_; }

private:
    const std::string& why_of(std::size_t first, std::size_t second) const {
        return std::ranges::find_if(all_, [&](const Precedence& edge) { return edge.first == first && edge.second == second; })->why;
    }
    /// Whether a way goes over a precedence of the user's.
    bool rests_on_user(const std::vector<std::size_t>& path) const {
        for (std::size_t i = 0; i + 1 < path.size(); ++i)
            for (std::size_t edge = 0; edge < user_edges_; ++edge)
                if (all_[edge].first == path[i] && all_[edge].second == path[i + 1]) return true;
        return false;
    }

    const std::vector<Member>& members_;
    std::vector<Precedence> all_;
    std::size_t user_edges_ = 0;  ///< they come first
};

/// "before" and "after" of one member, by names of others. A name that nobody has is an error in a user's list.
void add_named(const std::vector<Member>& members, std::size_t self, const std::vector<std::string>& names, bool goes_first, bool of_user,
               Precedences& graph, std::vector<Finding>& findings) {
    for (const std::string& name : names) {
        bool found = false;
        for (std::size_t other = 0; other < members.size(); ++other) {
            if (other == self || !is_called(members[other], name)) continue;
            found = true;
            const std::string why = fmt::format("{} {} {}{}", members[self].id, goes_first ? "before" : "after", name, of_user ? ", said in the composition" : "");
            graph.add_or_report(goes_first ? self : other, goes_first ? other : self, why, of_user, findings);
        }
        if (found || !of_user) continue;
        std::vector<std::string> known;
        for (const Member& member : members) known.push_back(member.id);
        findings.push_back({Finding::Weight::Error, fmt::format("'{}' is to run {} '{}', which is not in the composition{}", members[self].id,
                                                                goes_first ? "before" : "after", name, did_you_mean(name, known))});
    }
}

/// Who publishes a number goes before who needs it at the same event and stage.
void add_data_flow(const std::vector<Member>& members, Precedences& graph, std::vector<Finding>& findings) {
    for (std::size_t provider = 0; provider < members.size(); ++provider)
        for (std::size_t reader = 0; reader < members.size(); ++reader) {
            if (provider == reader) continue;
            for (const Value& published : members[provider].declared.publishes)
                for (const Value& needed : members[reader].declared.needs) {
                    const bool meet = published.name == needed.name && published.event == needed.event && published.stage == needed.stage;
                    if (meet) graph.add_or_report(provider, reader, fmt::format("{} publishes {}, {} needs it", members[provider].id, needed.name, members[reader].id), false, findings);
                }
        }
}

/// Kahn's algorithm; of those that may come next, the first of the list does.
std::vector<std::size_t> sorted(std::size_t count, const std::vector<Precedence>& edges) {
    std::vector<std::size_t> waits_for(count, 0), order;
    for (const Precedence& edge : edges) ++waits_for[edge.second];
    std::set<std::size_t> ready;
    for (std::size_t i = 0; i < count; ++i)
        if (waits_for[i] == 0) ready.insert(i);
    while (!ready.empty()) {
        const std::size_t next = *ready.begin();
        ready.erase(ready.begin());
        order.push_back(next);
        for (const Precedence& edge : edges)
            if (edge.first == next && --waits_for[edge.second] == 0) ready.insert(edge.second);
    }
    return order;
}

}  // namespace

Arrangement arrange(const std::vector<Member>& members) {
    Arrangement arrangement;
    auto& findings = arrangement.findings;
    Precedences graph(members);
    for (std::size_t i = 0; i < members.size(); ++i) {
        add_named(members, i, members[i].before, true, true, graph, findings);
        add_named(members, i, members[i].after, false, true, graph, findings);
    }
    graph.note_user_edges();
    for (std::size_t i = 0; i < members.size(); ++i) {
        add_named(members, i, members[i].declared.before, true, false, graph, findings);
        add_named(members, i, members[i].declared.after, false, false, graph, findings);
    }
    const auto is_ordered = [&](std::size_t a, std::size_t b) { return !graph.way(a, b).empty() || !graph.way(b, a).empty(); };
    find_conflicts(members, is_ordered, findings);
    for (const Precedence& edge : precedences_of_resources(members)) graph.add_or_report(edge.first, edge.second, edge.why, false, findings);
    add_data_flow(members, graph, findings);
    arrangement.precedences = std::move(graph.all());
    arrangement.order = sorted(members.size(), arrangement.precedences);
    return arrangement;
}

std::string errors_of(const std::vector<Finding>& findings) {
    std::vector<std::string> errors;
    for (const Finding& finding : findings)
        if (finding.weight == Finding::Weight::Error) errors.push_back(finding.text);
    if (errors.size() < 2) return errors.empty() ? "" : errors.front();
    return fmt::format("{} things stand against this composition:\n  - {}", errors.size(), fmt::join(errors, "\n  - "));
}

}  // namespace torchbus

#pragma once
/// Sorts a composition by what its callbacks declare, and finds what does not go together, before anything runs.

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <torchbus/declaration.hpp>
#include <torchbus/run_plan.hpp>

namespace torchbus {

/// One member of a composition, as far as its order is concerned.
struct Member {
    std::string id;
    std::string kind;
    Declaration declared;
    std::vector<std::string> before = {};  ///< the user's: ids or kinds; they override the library's
    std::vector<std::string> after = {};
};

/// `first` runs before `second`, because of `why`. Indices into the members.
struct Precedence {
    std::size_t first;
    std::size_t second;
    std::string why;
};

/// In which order the members run within a stage and phase, why, and what stands against it.
struct Arrangement {
    std::vector<std::size_t> order;  ///< indices into the members
    std::vector<Precedence> precedences;
    std::vector<Finding> findings;   ///< cycles, two writers without an order, two leases of one view, …
};

/// Keeps the order of the list where nothing speaks against it.
Arrangement arrange(const std::vector<Member>& members);

/// What follows from the declarations once the plan is known: numbers that nobody publishes, or too late, …
/// `members` in the order in which they run.
std::vector<Finding> check_values(const std::vector<Member>& members, const RunPlan& plan);

/// What callbacks may read and write.
struct Resource {
    std::string_view name;
    std::string_view about;
    bool ordered;  ///< two writers must say who goes first; otherwise the order does not matter
};
std::span<const Resource> resources();

/// The errors among the findings as one message; empty where there are none.
std::string errors_of(const std::vector<Finding>& findings);

}  // namespace torchbus

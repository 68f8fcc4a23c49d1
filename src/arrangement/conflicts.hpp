#pragma once
/// What follows from reads and writes of resources.

#include <functional>

#include <torchbus/arrangement.hpp>

namespace torchbus {

/// Two writers of one resource without an order, two leases of one view, a scaled root that nobody unscales, …
void find_conflicts(const std::vector<Member>& members, const std::function<bool(std::size_t, std::size_t)>& is_ordered,
                    std::vector<Finding>& findings);

/// Who moves batches goes before all others that change them, and who writes a resource before who reads it at the same
/// event.
std::vector<Precedence> precedences_of_resources(const std::vector<Member>& members);

}  // namespace torchbus

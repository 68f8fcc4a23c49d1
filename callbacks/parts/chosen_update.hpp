#pragma once
/// The option `update` of callbacks that work on one update or, where it is empty, on all.

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include <torchbus/declaration.hpp>
#include <torchbus/update.hpp>

namespace torchbus {

inline bool is_chosen(const std::string& chosen, const Update& update) { return chosen.empty() || update.name == chosen; }

/// The finding where the run has no update of that name.
inline std::vector<Finding> check_chosen_update(std::string_view kind, const std::string& chosen, const std::vector<Update>& updates) {
    if (chosen.empty() || std::ranges::any_of(updates, [&](const Update& update) { return is_chosen(chosen, update); })) return {};
    return {{Finding::Weight::Error, std::string(kind) + ": update: there is no update '" + chosen + "'"}};
}

}  // namespace torchbus

#pragma once
/// What `torchbus events` prints: the documentation of every event, at run time. Needs no LibTorch.

#include <span>
#include <string_view>

namespace torchbus {

struct EventReference {
    std::string_view name;     ///< snake_case
    std::string_view fires;    ///< when, and how often under accumulation
    std::string_view ranks;    ///< on which ranks
    std::string_view changes;  ///< what an interceptor may change; empty: nothing
};

/// In the order of the map in events.hpp.
std::span<const EventReference> event_reference();

}  // namespace torchbus

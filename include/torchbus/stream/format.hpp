#pragma once
/// What all messages of a stream keep to.

#include <cstddef>

namespace torchbus {

/// Grows when a field changes its name, type or meaning, or goes; not when one is added.
inline constexpr int kStreamVersion = 1;
/// Levels of brackets in a message; readers refuse more.
inline constexpr std::size_t kDeepestMessage = 64;

}  // namespace torchbus

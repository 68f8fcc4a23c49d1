#pragma once
/// The version of these headers.

namespace torchbus {

/// As in meson.build; a test compares the two.
inline constexpr const char* kVersion = "0.1.0";

}  // namespace torchbus

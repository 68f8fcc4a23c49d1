#pragma once
/// Files of callbacks/fingerprint.hpp, without tensors.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace torchbus {

struct FingerprintDifference {
    std::int64_t line = 0;  ///< from 1; the first in which they differ, or that one of them has alone
    std::int64_t step = 0;
    std::string what;       ///< "gradients differ: fc1.weight"
    bool is_shorter = false;  ///< one ends before the other; all lines that both have are equal
};

/// Compares records of the same attempts; what one has alone, written at another interval, is passed over. Nothing where they are equal. Throws: DataError for a file that is missing or no such file.
std::optional<FingerprintDifference> first_fingerprint_difference(const std::filesystem::path& one, const std::filesystem::path& other);

}  // namespace torchbus

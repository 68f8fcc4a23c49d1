#pragma once
/// How two JSON values differ, field by field.

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace torchbus::cli {

struct Tolerance {
    double relative = 0, absolute = 0;
    bool is_exact() const { return relative <= 0 && absolute <= 0; }
};

struct FieldDifference {
    std::string path;  ///< plan.seed, plan.splits[1].name
    std::string one, other;  ///< JSON, shortened; "nothing" where the field is not there
    std::string how_far;     ///< of two numbers; else empty
    /// "loss: 0.5 and 0.25, 0.25 apart, 0.5 of the larger"
    std::string text() const;
};

/// In the order of the fields' names. Numbers are compared as doubles, -0.0 unlike 0; a tolerance holds for all but counts.
std::vector<FieldDifference> differences(const nlohmann::json& one, const nlohmann::json& other, const Tolerance& tolerance);

}  // namespace torchbus::cli

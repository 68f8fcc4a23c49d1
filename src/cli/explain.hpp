#pragma once
/// The story of a run in words.

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace torchbus::cli {

/// A heading, and what stands below it.
struct StorySection {
    std::string title;
    std::vector<std::string> lines;
};
/// `story`: as RunStory tells it.
std::vector<StorySection> sections_of(const nlohmann::json& story);
/// "epoch 3, step 90"
std::string words_on_position(const nlohmann::json& position);
/// "1 min 12 s"
std::string words_on_seconds(double seconds);

}  // namespace torchbus::cli

#pragma once
/// Recordings of event_file, read as they grow.

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace torchbus {

class FollowedRecordings {
public:
    /// Whole lines of one run of one rank, in their order. `path`: of the recording that they are of.
    using Take = std::function<void(const std::filesystem::path& path, const std::string& run, int rank, std::string lines)>;

    /// `take` is called by a thread of its own, until this goes. A damaged line is warned of, and the recording left alone from there on.
    /// Throws: ConfigError where there is no recording.
    FollowedRecordings(const std::vector<std::filesystem::path>& paths, Take take);
    ~FollowedRecordings();
    FollowedRecordings(const FollowedRecordings&) = delete;
    FollowedRecordings& operator=(const FollowedRecordings&) = delete;

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace torchbus

#pragma once
/// What MLflow is to be told of a run, made of the messages of a stream; it needs no server yet.
///
///     {"kind":"begin","experiment":…,"run_name":…,"run":…,"start_time":…,"tags":[…]}
///     {"kind":"log","metrics":[…]} or {"kind":"log","params":[…]} or {"kind":"log","tags":[…]}
///     {"kind":"end","status":…,"end_time":…}

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace torchbus {

inline constexpr std::size_t kMlflowMetrics = 1000;  ///< of one request, as MLflow has it
inline constexpr std::size_t kMlflowEntries = 100;   ///< parameters or tags, likewise
inline constexpr const char* kMlflowRunTag = "torchbus.run";

struct MlflowNames {
    std::string experiment, run_name;
    std::vector<std::pair<std::string, std::string>> tags;
};
/// `tags`: "name=value". Throws: ConfigError.
MlflowNames mlflow_names(std::string experiment, std::string run_name, const std::vector<std::string>& tags);

/// Thread: one at a time.
class MlflowRecords {
public:
    MlflowRecords(MlflowNames names, std::function<void(const nlohmann::json& record)> add) : names_(std::move(names)), add_(std::move(add)) {}
    /// `run`: the id of the run, that of its first part where it goes on from a training state.
    void take(std::string_view lines, const std::string& run);

private:
    void take_message(const nlohmann::json& message, const std::string& run);
    void begin(const nlohmann::json& message, std::string_view mode, const std::string& run);
    void end(const nlohmann::json& message);
    void tag(std::string_view name, const std::string& value);
    void flush();

    MlflowNames names_;
    std::function<void(const nlohmann::json&)> add_;
    nlohmann::json metrics_ = nlohmann::json::array();
    using LastPoint = std::pair<std::int64_t, double>;  ///< step and value
    std::map<std::string, LastPoint, std::less<>> last_;  ///< by name: what is published again as it was is no other point
    std::string version_;
    bool is_resumed_ = false;
};

/// As a metric may be called: what is no letter, digit, `_`, `-`, `.`, space or `/` becomes `_`, and so do parts of a path that are none.
std::string mlflow_key(std::string_view name);

/// Not longer than `most` bytes, and no character is cut in two.
std::string shortened(std::string text, std::size_t most);

}  // namespace torchbus

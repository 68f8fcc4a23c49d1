#include "mlflow_records.hpp"

#include <cmath>

#include <fmt/format.h>

#include <torchbus/error.hpp>
#include <torchbus/stream/numbers.hpp>

namespace torchbus {
namespace {

using nlohmann::json;

constexpr std::size_t kLongestKey = 250, kLongestParam = 500, kLongestTag = 5000;  // what older servers take as well

bool is_of_key(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.' || c == ' '; }

json metric_value(double value) {
    if (std::isfinite(value)) return value;
    return std::isnan(value) ? "NaN" : value > 0 ? "Infinity" : "-Infinity";
}

json key_and_value(const std::string& key, const std::string& value, std::size_t longest) { return {{"key", shortened(key, kLongestKey)}, {"value", shortened(value, longest)}}; }

std::int64_t milliseconds_of(double seconds) { return static_cast<std::int64_t>(std::floor(seconds * 1000)); }
std::int64_t emitted_at(const json& message) { return milliseconds_of(seconds_of_time(message.value("time", "")).value_or(0)); }

std::string param_text(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

/// What a run's plan says, in one level.
std::vector<std::pair<std::string, std::string>> plan_texts(const json& plan) {
    std::vector<std::pair<std::string, std::string>> texts;
    for (const auto& [name, value] : plan.items())
        if (!value.is_null() && name != "splits" && name != "views") texts.emplace_back(name, param_text(value));
    for (const json& split : plan.value("splits", json::array()))
        if (!split.value("batches", json()).is_null()) texts.emplace_back(fmt::format("batches.{}", split.value("name", "")), split["batches"].dump());
    return texts;
}

bool is_message_of(std::string_view line, std::string_view name) {
    const std::size_t at = line.find("\"type\":\"torchbus.");
    return at != std::string_view::npos && line.substr(at + 17).starts_with(name) && line.substr(at + 17 + name.size()).starts_with('"');
}

}  // namespace

MlflowNames mlflow_names(std::string experiment, std::string run_name, const std::vector<std::string>& tags) {
    MlflowNames names{std::move(experiment), std::move(run_name), {}};
    for (const std::string& tag : tags) {
        const std::size_t equals = tag.find('=');
        if (equals == std::string::npos || equals == 0) throw ConfigError(fmt::format("mlflow: tags: '{}' is no tag; give name=value, e.g. team=vision", tag));
        names.tags.emplace_back(tag.substr(0, equals), tag.substr(equals + 1));
    }
    return names;
}

std::string shortened(std::string text, std::size_t most) {
    if (text.size() <= most) return text;
    while (most > 0 && (static_cast<unsigned char>(text[most]) & 0xC0U) == 0x80U) --most;
    text.resize(most);
    return text;
}

std::string mlflow_key(std::string_view name) {
    std::string key;
    std::size_t part = 0;  // of the path, where it begins
    const auto end_part = [&] {
        const std::string_view its = std::string_view(key).substr(part);
        if (its.empty() || its == "." || its == "..") key.resize(part), key += '_';
    };
    for (const char c : name) {
        if ((static_cast<unsigned char>(c) & 0xC0U) == 0x80U) continue;  // one mark for a character, however many bytes it has
        if (c == '/') {
            end_part();
            key += '/';
            part = key.size();
        } else {
            key += is_of_key(c) ? c : '_';
        }
        if (key.size() >= kLongestKey) break;
    }
    end_part();
    return key;
}

void MlflowRecords::take(std::string_view lines, const std::string& run) {
    for (std::size_t begin = 0; begin < lines.size();) {
        const std::size_t end = std::min(lines.find('\n', begin), lines.size());
        const std::string_view line = lines.substr(begin, end - begin);
        begin = end + 1;
        if (!is_message_of(line, "numbers")) {
            take_message(json::parse(line), run);
            continue;
        }
        const auto numbers = numbers_of(line);
        if (!numbers) continue;
        for (const auto& [name, value] : numbers->fresh) {
            const auto [last, is_first] = last_.try_emplace(name, numbers->step, value);
            if (!is_first && std::exchange(last->second, {numbers->step, value}) == LastPoint{numbers->step, value}) continue;
            metrics_.push_back({{"key", mlflow_key(name)}, {"value", metric_value(value)}, {"timestamp", milliseconds_of(numbers->seconds)}, {"step", numbers->step}});
            if (metrics_.size() >= kMlflowMetrics) flush();
        }
    }
    flush();
}

void MlflowRecords::take_message(const json& message, const std::string& run) {
    constexpr std::string_view kStart = "_run_start";
    const std::string name = message.value("type", "").substr(std::string_view("torchbus.").size());
    const json& data = message["data"];
    if (name == "stream_start") {
        last_.clear();
        version_ = data.value("torchbus", "");
        is_resumed_ = data.value("resumed", false);
    } else if (name.ends_with(kStart)) {
        begin(message, std::string_view(name).substr(0, name.size() - kStart.size()), run);
    } else if (name == "decision_taken") {
        tag(fmt::format("torchbus.decision.{}", data.value("decision", "")), fmt::format("step {}, {}: {}", data["position"].value("step", 0), data.value("requester", ""), data.value("reason", "")));
    } else if (name == "checkpoint_saved") {
        tag("torchbus.checkpoint", data.value("path", ""));
    } else if (name == "run_failed") {
        tag("torchbus.error", data.value("error", ""));
    } else if (name == "gap") {
        tag("torchbus.gap", fmt::format("{} messages were left out before message {}", data.value("count", 0), data.value("last", 0)));
    } else if (name == "run_closed") {
        end(message);
    }
}

void MlflowRecords::begin(const json& message, std::string_view mode, const std::string& run) {
    json tags = json::array({key_and_value(kMlflowRunTag, run, kLongestTag), key_and_value("torchbus.version", version_, kLongestTag), key_and_value("torchbus.mode", std::string(mode), kLongestTag)});
    for (const auto& [key, value] : names_.tags) tags.push_back(key_and_value(key, value, kLongestTag));
    add_({{"kind", "begin"}, {"experiment", names_.experiment}, {"run_name", names_.run_name.empty() ? run : names_.run_name}, {"run", run}, {"start_time", emitted_at(message)}, {"tags", tags}});
    // MLflow refuses a parameter that changes, as it may when a run goes on.
    json entries = json::array();
    const auto add_entries = [&] { add_({{"kind", "log"}, {is_resumed_ ? "tags" : "params", std::exchange(entries, json::array())}}); };
    for (const auto& [key, value] : plan_texts(message["data"].value("plan", json::object()))) {
        entries.push_back(key_and_value(is_resumed_ ? fmt::format("torchbus.resumed.{}", mlflow_key(key)) : mlflow_key(key), value, kLongestParam));
        if (entries.size() == kMlflowEntries) add_entries();
    }
    if (!entries.empty()) add_entries();
}

void MlflowRecords::tag(std::string_view name, const std::string& value) {
    flush();
    add_({{"kind", "log"}, {"tags", json::array({key_and_value(std::string(name), value, kLongestTag)})}});
}

void MlflowRecords::end(const json& message) {
    const json& result = message["data"]["result"];
    const std::string outcome = result.value("outcome", "");
    tag("torchbus.outcome", outcome);
    for (const char* field : {"requester", "reason"})
        if (const std::string value = result.value(field, ""); !value.empty()) tag(fmt::format("torchbus.{}", field), value);
    add_({{"kind", "end"}, {"status", outcome == "failed" ? "FAILED" : outcome == "signalled" ? "KILLED" : "FINISHED"}, {"end_time", emitted_at(message)}});
}

void MlflowRecords::flush() {
    if (metrics_.empty()) return;
    add_({{"kind", "log"}, {"metrics", std::exchange(metrics_, json::array())}});
}

}  // namespace torchbus

#include "compared_run.hpp"

#include <algorithm>
#include <iterator>

#include <fmt/format.h>

#include <torchbus/name_pattern.hpp>

#include "../stream/json_member.hpp"
#include "shown_text.hpp"

namespace torchbus::cli {
namespace {

using nlohmann::json;

constexpr std::size_t kMostKept = 100'000;

std::string file_name(const json& path) { return path.is_string() ? std::filesystem::path(path.get<std::string>()).filename().string() : std::string(); }

/// The text writes the double -0 as "-0", which would be read as the whole number 0.
json data_of(const RecordedMessage& message) {
    const std::string_view text = message.view().data;
    if (text.find("-0") == std::string_view::npos) return message.data();
    std::string exact;
    bool is_quoted = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        exact += text[i];
        if (text[i] == '"') is_quoted = !is_quoted;
        else if (is_quoted && text[i] == '\\' && i + 1 < text.size()) exact += text[++i];
        else if (!is_quoted && text.substr(i).starts_with("-0") && std::string_view(",]}").find(i + 2 < text.size() ? text[i + 2] : ' ') != std::string_view::npos) exact += "0.0", ++i;
    }
    json data = json::parse(exact, nullptr, false);
    return data.is_object() ? data : message.data();
}

}  // namespace

std::string words_on(const RecordedMessage& message) {
    const auto epoch = message.view().position("epoch"), step = message.view().position("step"), attempts = message.view().position("attempts");
    if (!epoch || !step) return terminal_text(message.name());
    return fmt::format("{} after epoch {}, step {}{}", terminal_text(message.name()), *epoch, *step, attempts && *attempts != *step ? fmt::format(" ({} attempts)", *attempts) : "");
}

std::string words_on_decision(const RecordedMessage& message) {
    const json& data = message.data();
    const std::string place = words_on(message), decision = text_member(data, "decision"), requester = text_member(data, "requester"), reason = text_member(data, "reason");
    return fmt::format("{}{}{}{}{}{}", terminal_text(decision), place.substr(std::min(place.size(), terminal_text(message.name()).size())), requester.empty() ? "" : ", asked for by ", terminal_text(requester), reason.empty() ? "" : ": ", terminal_text(reason));
}

ComparedRun::ComparedRun(const std::filesystem::path& path, std::vector<std::string> ignore) : recording_(path), ignore_(std::move(ignore)) { advance(); }

void ComparedRun::begin(const RecordedMessage& start) {
    const json& data = start.data();
    if (is_true(data, "resumed")) ++resumed_;
    if (count_ > 0) return;
    if (data.contains("events") && data["events"].is_array()) {
        patterns_.clear();
        for (const json& pattern : data["events"])
            if (pattern.is_string()) patterns_.push_back(pattern);
    }
    if (const std::string every = text_member(data, "every"); !every.empty()) every_ = every;
}

void ComparedRun::put_aside(const RecordedMessage& message) {
    const json& data = message.data();
    const std::string text = message.name() == "checkpoint_saved" ? fmt::format("checkpoint_saved: {}", file_name(data.value("path", json())))
                                                                  : fmt::format("subscriber_failed: {} at {}: {}", text_member(data, "id"), text_member(data, "event"), text_member(data, "error"));
    if (const std::string shown = terminal_text(text); aside.size() < kMostKept || aside.contains(shown)) ++aside[shown];
}

bool ComparedRun::is_compared(const RecordedMessage& message) {
    const std::string_view name = message.name();
    if (message.is_start()) begin(message);
    if (name == "gap") {
        had_gap_ = true;
        constexpr std::int64_t kMost = std::int64_t{1} << 60;
        gaps_ = std::min(kMost, gaps_ + std::clamp(whole_member(message.data(), "count", 0), std::int64_t{0}, kMost));
    }
    if (message.is_start() || name == "gap" || name == "accounting" || name == "snapshot") return false;
    auto held = is_held_.find(name);
    if (held == is_held_.end()) held = is_held_.emplace(std::string(name), matches_any(part_.patterns, std::string(name)) && !matches_any(ignore_, std::string(name))).first;
    if (!held->second) return false;
    if (name == "decision_taken" && decisions.size() < kMostKept) decisions.push_back({data_of(message), fmt::format("{} ({})", words_on_decision(message), terminal_text(message.where()))});
    if (name == "checkpoint_saved" || name == "subscriber_failed") return put_aside(message), false;
    if (!part_.attempts || !message.view().is_frequent()) return true;
    const auto known = part_.attempts->find(name);
    return known != part_.attempts->end() && std::ranges::binary_search(known->second, message.view().position("attempts").value_or(-1));
}

void ComparedRun::advance() {
    if (message_) last_ = words_on(*message_);
    for (;;) {
        message_ = recording_.next();
        if (!message_) return;
        if (run_.empty()) run_ = message_->run();
        const bool is_first = !std::exchange(has_begun_, true);
        if (is_compared(*message_)) break;
        if (message_->is_start() && is_first) return;  // it says how the rest was recorded
    }
    ++count_;
}

json ComparedRun::data() const {
    json data = data_of(*message_);
    if (message_->name() == "numbers") data = with_all_numbers(std::move(data));  // which are new depends on the messages before
    if (data.contains("path")) data["path"] = file_name(data["path"]);
    if (data.contains("states") && data["states"].is_array())
        for (json& state : data["states"]) state = file_name(state);
    return data;
}

RecordedAttempts recorded_attempts(const std::filesystem::path& path) {
    RecordedAttempts found;
    for (Recording recording(path); const RecordedMessage* message = recording.next();) {
        if (!message->view().is_frequent()) continue;
        auto its = found.find(message->name());
        if (its == found.end()) its = found.emplace(std::string(message->name()), std::vector<std::int64_t>()).first;
        const std::int64_t attempts = message->view().position("attempts").value_or(-1);
        if (its->second.empty() || its->second.back() != attempts) its->second.push_back(attempts);
    }
    for (auto& [name, attempts] : found) std::ranges::sort(attempts);
    return found;
}

RecordedAttempts of_both(const RecordedAttempts& one, const RecordedAttempts& other) {
    RecordedAttempts both;
    for (const auto& [name, attempts] : one)
        if (const auto found = other.find(name); found != other.end()) std::ranges::set_intersection(attempts, found->second, std::back_inserter(both[name]));
    return both;
}

}  // namespace torchbus::cli

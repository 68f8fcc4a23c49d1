#include "run_story.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "../stream/json_member.hpp"
#include "../stream/run_events.hpp"

namespace torchbus::cli {
namespace {

using nlohmann::json;

constexpr std::size_t kMostEntries = 1000;
constexpr std::int64_t kMostMessages = std::int64_t{1} << 60;  // sums of what files say stay below what would overflow

json part_of(const json& data, const std::vector<const char*>& names) {
    json part = json::object();
    for (const char* name : names) part[name] = data.contains(name) ? data[name] : json();
    return part;
}

/// Null where it is no JSON, such as an object that was cut where a nested one ends.
json position_from(const std::string& text) {
    json position = text.empty() ? json() : json::parse(text, nullptr, false);
    return position.is_discarded() ? json() : position;
}

}  // namespace

void RunStory::append(const char* list, json entry) {
    json& its = story_[list];
    if (its.is_array() && its.size() >= kMostEntries) story_["not_listed"][list] = whole_member(story_["not_listed"], list, 0) + 1;
    else its.push_back(std::move(entry));
}

/// One entry for all that are alike in the fields `by`: how many, and where the first and the last was.
void RunStory::group(const char* list, const std::vector<std::string>& by, const json& data) {
    std::string key = list;
    json entry = json::object();
    for (const std::string& name : by) {
        entry[name] = data.contains(name) ? data[name] : json();
        key += '\0' + entry[name].dump(-1, ' ', false, json::error_handler_t::replace);
    }
    const json position = data.contains("position") ? data["position"] : json();
    const auto known = groups_.find(key);
    if (known != groups_.end()) {
        json& its = story_[list][known->second];
        its["count"] = its["count"].get<std::int64_t>() + 1;
        its["last"] = position;
        return;
    }
    const std::size_t place = story_.contains(list) ? story_[list].size() : 0;
    if (place < kMostEntries) groups_[key] = place;
    entry["count"] = 1;
    entry["first"] = entry["last"] = position;
    append(list, std::move(entry));
}

void RunStory::take_gap(std::int64_t first, std::int64_t last, std::string_view why) {
    append("gaps", {{"first", first}, {"last", last}, {"why", why}, {"after", position_from(last_position_)}});
    story_["left_out_messages"] = std::min(kMostMessages, whole_member(story_, "left_out_messages", 0) + last - first + 1);
}

void RunStory::add(const RecordedMessage& message) {
    if (first_time_.empty()) first_time_ = message.time();
    const std::string_view name = message.name();
    if (message.is_start()) {
        take_start(message);
    } else {
        const std::int64_t expected = sequence_ + 1;
        if (name != "gap" && message.sequence() > expected && message.sequence() < kMostMessages) {
            if (sequence_ == 0) take_gap(expected, message.sequence() - 1, "files that the recording began with are gone");
            else if (!has_gap_) take_gap(expected, message.sequence() - 1, "they are missing in the file");
        }
    }
    has_gap_ = name == "gap";
    sequence_ = std::min(std::max(message.is_start() ? 0 : sequence_, message.sequence()), kMostMessages);
    if (story_.value("run", json()).is_null()) story_["run"] = message.run();
    last_name_ = name;
    last_time_ = message.time();
    if (const auto position = message.view().position_text(); !position.empty()) last_position_ = position;
    if (!message.view().is_frequent() && name != "numbers" && name != "accounting") take(message);
}

void RunStory::take_start(const RecordedMessage& message) {
    const json& data = message.data();
    story_["run"] = message.run();
    append("starts", {{"run", message.run()}, {"time", message.time()}, {"resumed", data.value("resumed", json(false))}, {"after", position_from(last_position_)},
                      {"torchbus", data.value("torchbus", json())}, {"events", data.value("events", json())}, {"every", data.value("every", json())}});
    story_.erase("result");
}

void RunStory::take_save(const json& data) {
    const json position = data.value("position", json());
    const auto known = reasons_.find(position.dump());
    append("saves", {{"path", data.value("path", json())}, {"position", position}, {"why", known == reasons_.end() ? "at its interval" : known->second}});
}

void RunStory::take(const RecordedMessage& message) {
    const std::string_view name = message.name();
    const json& data = message.data();
    if (has_plan(name)) {
        if (is_run_start(name)) story_["kind"] = kind_of_run(name);
        story_["plan"] = data.value("plan", json());
        if (story_.contains("starts") && !story_["starts"].back().contains("from")) story_["starts"].back()["from"] = data.value("position", json());
    } else if (name == "run_closed" || is_run_end(name)) {
        story_["result"] = data.value("result", json());
    } else if (name == "decision_taken") {
        json entry = part_of(data, {"position", "decision", "requester", "reason", "rank"});
        entry["time"] = message.time();
        append("decisions", std::move(entry));
    } else if (name == "step_checkpoint" || name == "epoch_checkpoint") {
        const std::string requester = text_member(data, "requester"), reason = text_member(data, "reason"), place = member_of(data, "position").dump(-1, ' ', false, json::error_handler_t::replace);
        if (!reasons_.contains(place)) reasons_in_order_.push_back(place);
        if (reasons_in_order_.size() > kMostEntries) reasons_.erase(reasons_in_order_.front()), reasons_in_order_.pop_front();
        reasons_[place] = name == "epoch_checkpoint" ? "at the end of an epoch" : fmt::format("asked for by {}{}{}", requester, reason.empty() ? "" : ": ", reason);
    } else if (name == "checkpoint_saved") {
        take_save(data);
    } else if (name == "optimizer_step_skipped") {
        group("skipped", {"requester", "reason", "update"}, data);
    } else if (name == "rolled_back") {
        append("roll_backs", part_of(data, {"position", "from", "path", "left_out", "count"}));
    } else if (name == "window_left_out") {
        json flat = data;
        for (const char* field : {"requester", "reason"}) flat[field] = data.contains("left_out") && data["left_out"].is_object() ? data["left_out"].value(field, json()) : json();
        group("left_out", {"requester", "reason"}, flat);
    } else if (name == "subscriber_failed") {
        group("failures", {"id", "event", "error", "detached"}, data);
    } else if (name == "micro_batch_failed") {
        group("failed_batches", {"error", "out_of_memory", "repeat"}, data);
    } else if (name == "run_failed") {
        story_["failure"] = part_of(data, {"position", "error", "subscriber", "event"});
    } else if (name == "option_changed") {
        append("options", part_of(data, {"position", "subscriber", "option", "from", "to", "requester", "error"}));
    } else if ((name == "subscriber_attached" || name == "subscriber_detached") && !text_member(data, "requester").empty()) {
        append("changes", {{"what", name == "subscriber_attached" ? "attached" : "detached"}, {"id", data.value("id", json())}, {"requester", data["requester"]}, {"after", position_from(last_position_)}});
    } else if (name == "gap") {
        const std::int64_t first = whole_member(data, "first", 0), last = whole_member(data, "last", 0);
        if (first > 0 && last >= first && last < kMostMessages) take_gap(first, last, "the disk was too slow for them");
    }
}

void RunStory::end(const Recording& recording) {
    story_["file"] = recording.path().string();
    story_["files"] = recording.files();
    story_["torn_bytes"] = recording.torn_bytes();
    story_["began"] = first_time_;
    story_["ended"] = last_time_;
    const auto from = seconds_of_time(first_time_), to = seconds_of_time(last_time_);
    story_["seconds"] = from && to ? json(*to - *from) : json();
    story_["last"] = {{"event", last_name_}, {"position", position_from(last_position_)}, {"time", last_time_}};
    for (const char* list : {"starts", "decisions", "skipped", "saves", "roll_backs", "left_out", "failures", "failed_batches", "options", "changes", "gaps"})
        if (!story_.contains(list)) story_[list] = json::array();
    for (const char* one : {"result", "plan", "kind", "failure", "run", "not_listed"})
        if (!story_.contains(one)) story_[one] = json();
}

}  // namespace torchbus::cli

#include "run_picture.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <torchbus/events_json.hpp>

#include "json_member.hpp"
#include "run_events.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

constexpr std::size_t kDecisionsKept = 32;

/// `text`: the data of a numbers message, or nothing. All of them as one: what is new, and what is older.
json all_numbers(const std::string& text) {
    json data = json::parse(text, nullptr, /*allow_exceptions=*/false);
    return member_of(data, "numbers").is_object() ? with_all_numbers(std::move(data)) : json();
}

}  // namespace

void append_help(std::string& out, std::string_view name, std::string_view type, std::string_view help) {
    fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

void append_sample(std::string& out, std::string_view name, const std::map<std::string, std::string>& labels, double value) {
    out += name;
    char before = '{';
    for (const auto& [label, text] : labels) {
        out += std::exchange(before, ',');
        out += label;
        out += "=\"";
        for (const char c : text) {
            if (c == '\\' || c == '"') out += '\\';
            if (c == '\n') out += "\\n";
            else out += c;
        }
        out += '"';
    }
    if (!labels.empty()) out += '}';
    if (std::isfinite(value)) fmt::format_to(std::back_inserter(out), " {}\n", value);
    else out += std::isnan(value) ? " NaN\n" : value > 0 ? " +Inf\n" : " -Inf\n";
}

void RunPicture::begin(std::string run, int rank) {
    *this = {};
    run_ = std::move(run);
    rank_ = rank;
    state_ = "running";
}

void RunPicture::take(const MessageView& message) {
    const std::string_view name = message.name, data = message.data;
    sequence_ = message.sequence;
    ++messages_;
    if (const auto position = message.position_text(); !position.empty()) position_ = position;
    if (name == "numbers") numbers_ = data;
    if (name == "accounting") accounting_ = data;
    if (comes_often(name) || name == "numbers" || name == "accounting") return;

    const auto member = [&](const char* its) { return member_of(json::parse(data, nullptr, /*allow_exceptions=*/false), its); };
    if (name == "gap") left_out_ += static_cast<std::int64_t>(std::clamp(stream_number(member("count")).value_or(0), 0.0, 1e15));
    else if (has_plan(name)) plan_ = data;
    else if (name == "eval_epoch_start") state_ = "evaluating";
    else if (name == "eval_epoch_end") state_ = is_paused_ ? "paused" : "running";
    else if (name == "checkpoint_saved") checkpoint_ = data, ++checkpoints_;
    else if (name == "subscriber_failed") ++failures_;
    else if (name == "optimizer_step_skipped") ++skipped_;
    else if (name == "decision_taken") {
        const json decided = member("decision");
        const std::string decision = decided.is_string() ? decided.get<std::string>() : "";
        if (decided_.contains(decision) || decided_.size() < kDecisionsKept) ++decided_[decision];
        if (decision == "pause" || decision == "resume") {
            is_paused_ = decision == "pause";
            state_ = is_paused_ ? "paused" : "running";
        }
        decisions_.emplace_back(data);
        if (decisions_.size() > kDecisionsKept) decisions_.pop_front();
    } else if (name == "run_closed" || name == "training_run_end") {
        result_ = data;
        const std::string outcome = text_member(member("result"), "outcome");
        state_ = outcome.empty() ? "finished" : outcome;
    }
}

std::string RunPicture::snapshot() const {
    std::string out = "{\"state\":";
    append_json_text(out, state_);
    fmt::format_to(std::back_inserter(out), ",\"last_sequence\":{}", sequence_);
    const std::string numbers = all_numbers(numbers_).dump();
    const std::array<std::pair<const char*, const std::string*>, 6> parts = {
        {{"position", &position_}, {"start", &plan_}, {"numbers", &numbers}, {"end", &result_}, {"checkpoint", &checkpoint_}, {"accounting", &accounting_}}};
    for (const auto& [name, text] : parts) fmt::format_to(std::back_inserter(out), ",\"{}\":{}", name, text->empty() ? "null" : *text);
    fmt::format_to(std::back_inserter(out), ",\"decisions\":[{}]}}", fmt::join(decisions_, ","));
    return out;
}

void RunPicture::append_metrics(std::string& out) const {
    if (run_.empty()) return;
    const std::map<std::string, std::string> labels = {{"run", run_}, {"rank", std::to_string(rank_)}};
    const auto with = [&](const char* label, const std::string& value) {
        auto more = labels;
        more[label] = value;
        return more;
    };
    const auto one = [&](const char* name, const char* type, const char* help, double value) {
        append_help(out, name, type, help);
        append_sample(out, name, labels, value);
    };
    append_help(out, "torchbus_run_state", "gauge", "1 for the state that the run is in.");
    append_sample(out, "torchbus_run_state", with("state", state_), 1);
    const json position = json::parse(position_, nullptr, /*allow_exceptions=*/false);
    constexpr std::array<std::array<const char*, 3>, 6> kCounts = {{{"step", "torchbus_steps_total", "Updates made."},
                                                                    {"attempts", "torchbus_attempts_total", "Updates made or skipped."},
                                                                    {"micro_batch", "torchbus_micro_batches_total", "Batches that went forward and backward."},
                                                                    {"samples", "torchbus_samples_total", "Valid samples trained on, of all ranks."},
                                                                    {"tokens", "torchbus_tokens_total", "Tokens trained on, where the data declares them."},
                                                                    {"epoch", "torchbus_epochs_total", "Epochs finished."}}};
    for (const auto& [field, name, help] : kCounts)
        if (const auto count = stream_number(member_of(position, field))) one(name, "counter", help, *count);
    one("torchbus_skipped_updates_total", "counter", "Updates that were skipped.", static_cast<double>(skipped_));
    one("torchbus_checkpoints_total", "counter", "Training states and weights saved.", static_cast<double>(checkpoints_));
    one("torchbus_subscriber_failures_total", "counter", "Failures of optional subscribers.", static_cast<double>(failures_));
    one("torchbus_messages_total", "counter", "Messages of the event stream.", static_cast<double>(messages_));
    one("torchbus_messages_left_out_total", "counter", "Messages that the stream had no place for.", static_cast<double>(left_out_));
    if (!decided_.empty()) append_help(out, "torchbus_decisions_total", "counter", "Decisions taken.");
    for (const auto& [decision, count] : decided_) append_sample(out, "torchbus_decisions_total", with("decision", decision), static_cast<double>(count));
    const json numbers = member_of(all_numbers(numbers_), "numbers");
    if (!numbers.empty()) append_help(out, "torchbus_number", "gauge", "Newest value of each number on the blackboard.");
    for (const auto& [name, value] : numbers.items()) append_sample(out, "torchbus_number", with("name", name), stream_number(value).value_or(NAN));
}

}  // namespace torchbus

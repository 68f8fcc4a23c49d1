#include "run_view.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "../stream/json_member.hpp"
#include "../stream/run_events.hpp"
#include "explain.hpp"
#include "read_run.hpp"
#include "shown_text.hpp"
#include "sparkline.hpp"

namespace torchbus::cli {
namespace {

using nlohmann::json;

constexpr std::size_t kNotesKept = 64;
constexpr double kRateWindow = 30;  // s

std::string whole_at(const json& data, const char* name) { return member_of(data, name).is_number() ? member_of(data, name).dump() : std::string(); }

std::string asked_by(const json& data) {
    const std::string requester = text_member(data, "requester"), reason = text_member(data, "reason");
    return fmt::format("{}{}{}{}", requester.empty() ? "" : ", by ", requester, reason.empty() ? "" : ": ", reason);
}

std::string number_text(double value) { return fmt::format("{:.5g}", value); }

std::string padded(const std::string& text, std::size_t width) {
    const std::string cut = shortened(text, width);
    return cut + std::string(width - std::min(width, count_characters(cut)), ' ');
}

}  // namespace

void RunView::begin(const RecordedMessage& message) {
    *this = RunView();
    run_ = message.run();
    state_ = "running";
    began_ = message.seconds().value_or(0);
}

void RunView::note(std::string line) {
    notes_.push_back(terminal_text(line));
    if (notes_.size() > kNotesKept) notes_.pop_front();
}

void RunView::take_plan(const json& data) {
    if (!data.contains("plan") || !data["plan"].is_object()) return;
    plan_ = data["plan"];
    curves_.set_epoch_length(steps_of_epoch(plan_).value_or(0));
}

void RunView::take_place(const RecordedMessage& message) {
    const auto seconds = message.seconds();
    if (seconds) newest_ = *seconds;
    const auto attempts = message.view().position("attempts");
    if (!attempts || !seconds) return;
    epoch_ = message.view().position("epoch").value_or(epoch_);
    step_ = message.view().position("step").value_or(step_);
    attempts_ = *attempts;
    if (!places_.empty() && (attempts_ < places_.back().attempts)) places_.clear();
    if (places_.empty() || (attempts_ > places_.back().attempts && *seconds - places_.back().seconds > 0.2)) places_.push_back({*seconds, attempts_});
    while (places_.size() > 2 && places_.back().seconds - places_.front().seconds > kRateWindow) places_.pop_front();
}

/// What a server tells first of a run that is under way.
void RunView::take_snapshot(const json& data, std::optional<double> told) {
    const std::string state = text_member(data, "state");
    if (!state.empty()) state_ = state == "idle" ? "waiting" : state;
    is_paused_ = state_ == "paused";
    if (data.contains("start") && data["start"].is_object()) take_plan(data["start"]);
    const json& position = member_of(data, "position");
    epoch_ = whole_member(position, "epoch", epoch_), step_ = whole_member(position, "step", step_), attempts_ = whole_member(position, "attempts", attempts_);
    const json& splits = member_of(plan_, "splits");
    const std::string mode = splits.is_array() && !splits.empty() ? text_member(splits.front(), "mode") : "";
    if (!mode.empty()) kind_ = mode == "train" ? "training" : mode == "eval" ? "evaluation" : "prediction";
    StreamNumbers numbers;
    numbers.seconds = told.value_or(0), numbers.epoch = epoch_, numbers.step = step_, numbers.attempts = attempts_;
    for (const auto& [name, value] : member_of(member_of(data, "numbers"), "numbers").items())
        if (const auto number = stream_number(value)) numbers.fresh.emplace_back(name, *number);
    if (numbers.fresh.empty()) return;
    curves_.add(numbers);
    numbers_ = std::move(numbers);
}

/// It says how long the run had lasted when it was made, which is not after it was told.
void RunView::take_accounting(const json& data, std::optional<double> told) {
    if (const double seconds = number_member(data, "seconds", 0); told && std::isfinite(seconds)) began_ = std::min(began_, *told - seconds);
}

void RunView::take(const RecordedMessage& message) {
    const std::string_view name = message.name();
    if (auto numbers = message.numbers()) {
        curves_.add(*numbers);
        numbers_ = std::move(*numbers);
        return;
    }
    if (name == "optimizer_step_skipped") ++skipped_;
    if (message.view().is_frequent()) return;
    const json& data = message.data();
    if (name == "accounting") return take_accounting(data, message.seconds());
    if (goes_back(name)) curves_.go_back_to(static_cast<double>(step_));
    if (has_plan(name)) {
        take_plan(data);
        if (is_run_start(name)) kind_ = kind_of_run(name);
    } else if (name == "eval_epoch_start") state_ = "evaluating";
    else if (name == "eval_epoch_end") state_ = is_paused_ ? "paused" : "running";
    else if (name == "run_closed" || is_run_end(name)) {
        state_ = data.contains("result") ? text_member(data["result"], "outcome") : "over";
        is_over_ = name == "run_closed";
    } else if (name == "decision_taken") {
        const std::string decision = text_member(data, "decision");
        if (decision == "pause" || decision == "resume") {
            is_paused_ = decision == "pause";
            state_ = is_paused_ ? "paused" : "running";
        }
    } else if (name == "gap") left_out_ += number_member(data, "count", 0);
    const bool comes_each_epoch = name.find("epoch") != std::string_view::npos || is_run_start(name);
    if (std::string line = line_of(message); !line.empty() && !comes_each_epoch) note(std::move(line));
}

bool RunView::add(const RecordedMessage& message) {
    if (message.name() == "snapshot") {
        if (message.run() != run_) begin(message);
        take_snapshot(message.data(), message.seconds());
        take_accounting(member_of(message.data(), "accounting"), message.seconds());
        return true;
    }
    const bool goes_on = message.is_start() && !run_.empty() && is_true(message.data(), "resumed");
    if (goes_on) {
        run_ = message.run();
        state_ = "running";
        sequence_ = 0;
        is_over_ = false;
        places_.clear();
        note("the run goes on from a saved state");
    } else if (message.run() != run_ || message.is_start()) {
        begin(message);
    }
    if (message.sequence() <= sequence_) return false;
    sequence_ = message.sequence();
    take_place(message);
    take(message);
    return true;
}

std::string RunView::line_of(const RecordedMessage& message) const {
    const std::string_view name = message.name();
    const std::string place = fmt::format("epoch {}, step {}", message.view().position("epoch").value_or(epoch_), message.view().position("step").value_or(step_));
    const auto numbers = [&] {
        std::string text;
        for (const auto& [its, value] : numbers_.fresh) text += fmt::format("  {} {}", its, number_text(value));
        for (const auto& [its, value] : numbers_.older) text += its.find("loss") != std::string::npos ? fmt::format("  {} {}", its, number_text(value)) : "";
        return text;
    };
    std::string line;
    if (name == "numbers" && (numbers_.after == "train_epoch_end" || numbers_.after == "eval_epoch_end")) line = fmt::format("{}: {}{}", place, numbers_.after == "eval_epoch_end" ? "evaluated" : "trained", numbers());
    else if (is_run_start(name)) line = fmt::format("{}: {} begins, run {}", place, kind_of_run(name), message.run());
    else if (name == "decision_taken") line = fmt::format("{}: {}{}", place, text_member(message.data(), "decision"), asked_by(message.data()));
    else if (name == "checkpoint_saved") line = fmt::format("{}: saved {}", place, text_member(message.data(), "path"));
    else if (name == "rolled_back") line = fmt::format("{}: rolled back to {}", place, text_member(message.data(), "path"));
    else if (name == "subscriber_failed") line = fmt::format("{}: {} failed: {}", place, text_member(message.data(), "id"), text_member(message.data(), "error"));
    else if (name == "run_failed") line = fmt::format("{}: the run failed: {}", place, text_member(message.data(), "error"));
    else if (name == "option_changed") line = fmt::format("{}: {}.{} from {} to {}", place, text_member(message.data(), "subscriber"), text_member(message.data(), "option"), text_member(message.data(), "from"), text_member(message.data(), "to"));
    else if (name == "run_closed" && message.data().contains("result")) line = fmt::format("{}: {}{}", place, text_member(message.data()["result"], "outcome"), asked_by(message.data()["result"]));
    else if (name == "gap") line = fmt::format("messages {} to {} were left out", whole_at(message.data(), "first"), whole_at(message.data(), "last"));
    return terminal_text(line);
}

std::optional<double> RunView::steps_in_all() const {
    std::optional<double> steps;
    const auto of_epoch = steps_of_epoch(plan_);
    if (const double epochs = number_member(plan_, "epochs", 0); of_epoch && epochs > 0) steps = *of_epoch * epochs;
    if (const json& most = member_of(plan_, "max_steps"); most.is_number()) steps = std::min(steps.value_or(INFINITY), most.get<double>());
    return steps && *steps > 0 ? steps : std::nullopt;
}

std::optional<double> RunView::steps_per_second() const {
    if (places_.size() < 2) return std::nullopt;
    const double seconds = places_.back().seconds - places_.front().seconds;
    return seconds > 0 ? std::optional(static_cast<double>(places_.back().attempts - places_.front().attempts) / seconds) : std::nullopt;
}

std::string RunView::head(const ViewSize& size) const {
    const std::string left = terminal_text(fmt::format("{} {}", kind_, run_)), right = terminal_text(state_);
    const std::size_t used = count_characters(left) + count_characters(right);
    return used + 2 > size.columns ? right + "  " + left : left + std::string(size.columns - used, ' ') + right;
}

std::string RunView::progress(const ViewSize& size, std::optional<double> now) const {
    const auto all = steps_in_all(), rate = steps_per_second();
    const std::string epochs = whole_at(plan_, "epochs");
    std::string left = fmt::format("epoch {}{}{}  step {}{}", epoch_, epochs.empty() ? "" : " of ", epochs, step_, all ? fmt::format(" of {:.0f}", *all) : "");
    std::string right = rate ? fmt::format("{:.4g} steps/s", *rate) : "";
    const double elapsed = (now && !is_over_ ? std::max(*now, newest_) : newest_) - began_;
    right += fmt::format("{}{}", right.empty() ? "" : "  ", words_on_seconds(elapsed));
    if (all && rate && *rate > 0 && now && !is_over_) right += fmt::format("  {} left", words_on_seconds((*all - static_cast<double>(attempts_)) / *rate));
    if (skipped_ > 0) right += fmt::format("  {} skipped", skipped_);
    constexpr double kSilence = 10;  // s
    if (now && !is_over_ && *now - newest_ > kSilence) right += fmt::format("  silent for {}", words_on_seconds(*now - newest_));
    const std::size_t used = count_characters(left) + count_characters(right) + 4;
    constexpr std::size_t kShortestBar = 8;
    if (!all || used + kShortestBar + 6 > size.columns) return left + "  " + right;
    const double share = std::clamp(static_cast<double>(attempts_) / *all, 0.0, 1.0);
    const std::size_t width = std::min<std::size_t>(size.columns - used - 6, 40), done = static_cast<std::size_t>(share * static_cast<double>(width));
    std::string bar;
    for (std::size_t i = 0; i < width; ++i) bar += size.is_utf8 ? i < done ? "█" : "░" : i < done ? "#" : ".";
    return fmt::format("{}  {} {:3.0f} %  {}", left, bar, std::floor(share * 100), right);
}

std::string RunView::curve_line(const std::string& name, std::size_t name_width, const ViewSize& size) const {
    const auto part = curves_.part(name, {.points = std::numeric_limits<std::size_t>::max()});
    const auto& points = part->points;
    double least = std::numeric_limits<double>::infinity(), most = -least;
    for (const CurvePoint& point : points)
        if (std::isfinite(point.y)) least = std::min(least, point.y), most = std::max(most, point.y);
    const std::string last = number_text(points.back().y), range = least <= most ? fmt::format("{} {} {}", number_text(least), size.is_utf8 ? "…" : "..", number_text(most)) : "";
    const std::string left = fmt::format("{} {:>11}  ", padded(terminal_text(name), name_width), last);
    constexpr std::size_t kRange = 26, kLongest = 60;
    if (count_characters(left) + kRange + 4 > size.columns) return left + range;
    const std::size_t width = std::min(size.columns - count_characters(left) - kRange - 2, kLongest);
    return fmt::format("{}{}  {}", left, sparkline(in_columns(points, width), size.is_utf8), range);
}

std::vector<std::string> RunView::lines(const ViewSize& size, std::optional<double> now) const {
    if (run_.empty()) return {shortened("waiting for the first message of a run", size.columns)};
    std::vector<std::string> lines = {head(size), progress(size, now)};
    std::vector<std::string> names = curves_.names();
    std::erase_if(names, [&](const std::string& name) { return curves_.part(name, {.points = 1})->points.empty(); });  // after a roll-back
    std::size_t name_width = 8;
    for (const std::string& name : names) name_width = std::max(name_width, count_characters(terminal_text(name)));
    name_width = std::min(name_width, size.columns / 3);
    const std::size_t room = size.rows > 2 ? size.rows - 2 : 0, for_notes = std::min({notes_.size(), std::max<std::size_t>(room / 4, 2), room}), left = room - for_notes;
    const std::size_t for_curves = names.size() <= left ? names.size() : left - std::min<std::size_t>(left, 1);
    for (std::size_t i = 0; i < for_curves; ++i) lines.push_back(curve_line(names[i], name_width, size));
    if (for_curves < names.size() && left > 0) lines.push_back(fmt::format("and {} numbers more", names.size() - for_curves));
    for (std::size_t i = notes_.size() - for_notes; i < notes_.size(); ++i) lines.push_back(notes_[i]);
    if (left_out_ > 0 && lines.size() < size.rows) lines.push_back(fmt::format("{:.0f} messages were left out of the stream", left_out_));
    if (lines.size() > size.rows) lines.resize(std::max<std::size_t>(size.rows, 1));
    for (std::string& line : lines) line = shortened(line, size.columns);
    return lines;
}

}  // namespace torchbus::cli

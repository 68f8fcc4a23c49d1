#include "explain.hpp"

#include <algorithm>
#include <iostream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "../stream/json_member.hpp"
#include "recorded_commands.hpp"
#include "run_story.hpp"
#include "shown_text.hpp"

namespace torchbus::cli {
namespace {

using nlohmann::json;

/// What a file says may be of any type; what is not as expected is shown as JSON.
std::string said(const json& data, const char* name) {
    if (!data.is_object() || !data.contains(name) || data[name].is_null()) return {};
    return data[name].is_string() ? data[name].get<std::string>() : data[name].dump(-1, ' ', false, json::error_handler_t::replace);
}

std::int64_t number_said(const json& data, const char* name) { return whole_member(data, name, 0); }

std::string place_said(const json& data, const char* name) { return data.is_object() && data.contains(name) ? words_on_position(data[name]) : "an unknown place"; }

/// "by nan_policy: the loss is not finite"
std::string by_whom(const json& data) {
    const std::string requester = said(data, "requester"), reason = said(data, "reason");
    return fmt::format("{}{}{}{}", requester.empty() ? "" : "by ", requester, reason.empty() || requester.empty() ? "" : ": ", reason);
}

std::string counted(std::int64_t count, std::string_view one, std::string_view more) { return count == 1 ? fmt::format("1 {}", one) : fmt::format("{} {}", count, more); }

std::string range_said(const json& entry) {
    const std::string first = place_said(entry, "first"), last = place_said(entry, "last");
    return number_said(entry, "count") == 1 ? "after " + first : fmt::format("{} times, first after {}, last after {}", number_said(entry, "count"), first, last);
}

StorySection run_section(const json& story) {
    const json& plan = story["plan"];
    StorySection section{fmt::format("Run {}", said(story, "run")), {}};
    const std::string kind = said(story, "kind"), epochs = said(plan, "epochs"), seed = said(plan, "seed"), device = said(plan, "device"), steps = said(plan, "max_steps");
    std::string what = kind.empty() ? "a run" : kind;
    if (!epochs.empty() && kind == "training") what += fmt::format(" of {} {}", epochs, epochs == "1" ? "epoch" : "epochs");
    if (!steps.empty()) what += fmt::format(", at most {} updates", steps);
    if (!seed.empty()) what += ", seed " + seed;
    if (!device.empty()) what += ", on " + device;
    section.lines.push_back(what);
    std::string when = fmt::format("recorded from {} to {}", said(story, "began"), said(story, "ended"));
    if (story["seconds"].is_number()) when += fmt::format(", {}", words_on_seconds(story["seconds"].get<double>()));
    section.lines.push_back(when);
    for (std::size_t i = 0; i < story["starts"].size(); ++i) {
        const json& start = story["starts"][i];
        if (i > 0 || is_true(start, "resumed")) section.lines.push_back(fmt::format("went on from a saved state at {}, as run {}, on {}", place_said(start, "from"), said(start, "run"), said(start, "time")));
    }
    return section;
}

StorySection end_section(const json& story) {
    StorySection section{"How it ended", {}};
    const json &result = story["result"], &last = story["last"], &failure = story["failure"];
    if (result.is_object()) {
        std::string line = fmt::format("{} after {}", said(result, "outcome"), place_said(last, "position"));
        if (const std::string whom = by_whom(result); !whom.empty()) line += ", " + whom;
        section.lines.push_back(fmt::format("{} (exit code {})", line, said(result, "exit_code")));
    } else {
        section.lines.push_back(fmt::format("the recording just ends, with {} after {}, at {}: the process was killed or died there, or is still at it", said(last, "event"), place_said(last, "position"), said(last, "time")));
    }
    if (failure.is_object()) {
        const std::string subscriber = said(failure, "subscriber"), event = said(failure, "event");
        section.lines.push_back(fmt::format("it failed after {}{}{}{}{}: {}", place_said(failure, "position"), subscriber.empty() ? "" : ", in ", subscriber, event.empty() ? "" : " at ", event, said(failure, "error")));
    }
    if (const std::int64_t torn = number_said(story, "torn_bytes"); torn > 0) section.lines.push_back(fmt::format("the last line is torn: {} of it are there", counted(torn, "byte", "bytes")));
    return section;
}

template <class Say>
void add_list(std::vector<StorySection>& sections, const json& story, const char* list, const char* title, Say&& say) {
    const json& entries = story[list];
    if (!entries.is_array() || entries.empty()) return;
    const std::int64_t more = number_said(story["not_listed"], list);
    StorySection section{fmt::format("{}: {}", title, static_cast<std::int64_t>(entries.size()) + more), {}};
    for (const json& entry : entries) section.lines.push_back(say(entry));
    if (more > 0) section.lines.push_back(fmt::format("… and {} more", more));
    sections.push_back(std::move(section));
}

std::string roll_back_said(const json& entry) {
    const json left_out = entry.value("left_out", json());
    std::string line = fmt::format("from {} back to {}, the state {}", place_said(entry, "from"), place_said(entry, "position"), said(entry, "path"));
    if (left_out.is_object() && number_said(left_out, "count") > 0) line += fmt::format("; {} from {} on of epoch {} left out, {}", counted(number_said(left_out, "count"), "batch", "batches"), said(left_out, "first"), said(left_out, "epoch"), by_whom(left_out));
    return line;
}

std::string option_said(const json& entry) {
    const std::string error = said(entry, "error"), change = error.empty() ? fmt::format("from {} to {}", said(entry, "from"), said(entry, "to")) : fmt::format("not to {}", said(entry, "to"));
    return fmt::format("after {}: {}.{} {}, by {}{}{}", place_said(entry, "position"), said(entry, "subscriber"), said(entry, "option"), change, said(entry, "requester"), error.empty() ? "" : "; refused: ", error);
}

}  // namespace

std::string words_on_position(const json& position) {
    if (!position.is_object()) return "its beginning";
    const std::string steps = said(position, "step"), attempts = said(position, "attempts");
    return fmt::format("epoch {}, step {}{}", said(position, "epoch"), steps, steps == attempts ? "" : fmt::format(" ({} attempts)", attempts));
}

std::string words_on_seconds(double seconds) {
    if (!(seconds < 1e12)) return "an unknown time";
    if (seconds < 60) return fmt::format("{:.3g} s", std::max(0.0, seconds));
    const auto whole = static_cast<std::int64_t>(seconds);
    if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
    return fmt::format("{} h {} min", whole / 3600, whole / 60 % 60);
}

std::vector<StorySection> sections_of(const json& story) {
    std::vector<StorySection> sections = {run_section(story), end_section(story)};
    add_list(sections, story, "decisions", "Decisions", [](const json& entry) { return fmt::format("after {}: {}, {}", place_said(entry, "position"), said(entry, "decision"), by_whom(entry)); });
    add_list(sections, story, "skipped", "Skipped updates, by reason", [](const json& entry) { return fmt::format("{}; {}", by_whom(entry), range_said(entry)); });
    add_list(sections, story, "saves", "Saves", [](const json& entry) { return fmt::format("after {}: {}, {}", place_said(entry, "position"), said(entry, "path"), said(entry, "why")); });
    add_list(sections, story, "roll_backs", "Roll-backs", roll_back_said);
    add_list(sections, story, "left_out", "Windows left out, by reason", [](const json& entry) { return fmt::format("{}; {}", by_whom(entry), range_said(entry)); });
    add_list(sections, story, "failures", "Failures of subscribers", [](const json& entry) {
        return fmt::format("{} at {}: {}; {}{}", said(entry, "id"), said(entry, "event"), said(entry, "error"), range_said(entry), is_true(entry, "detached") ? "; it was detached" : "");
    });
    add_list(sections, story, "failed_batches", "Batches that failed", [](const json& entry) { return fmt::format("{}; {}{}", said(entry, "error"), range_said(entry), is_true(entry, "repeat") ? "; tried again" : ""); });
    add_list(sections, story, "options", "Changed options", option_said);
    add_list(sections, story, "changes", "Subscribers that came and went", [](const json& entry) { return fmt::format("after {}: {} was {}, by {}", place_said(entry, "after"), said(entry, "id"), said(entry, "what"), said(entry, "requester")); });
    add_list(sections, story, "gaps", "Gaps in the recording", [](const json& entry) { return fmt::format("after {}: messages {} to {}; {}", place_said(entry, "after"), said(entry, "first"), said(entry, "last"), said(entry, "why")); });
    std::vector<std::string> none;
    for (const auto& [list, words] : {std::pair("decisions", "decision taken"), {"skipped", "update skipped"}, {"saves", "save"}, {"roll_backs", "roll-back"}, {"failures", "subscriber failed"}, {"options", "option changed"}, {"gaps", "gap"}})
        if (story[list].empty()) none.emplace_back(words);
    if (!none.empty()) sections.push_back({"Nothing else", {fmt::format("no {}", fmt::join(none, ", no "))}});
    return sections;
}

int explain_run(const ExplainOptions& options) {
    Recording recording(options.run);
    RunStory story;
    while (const RecordedMessage* message = recording.next()) story.add(*message);
    story.end(recording);
    if (options.as_json) {
        std::cout << story.told().dump(2, ' ', false, json::error_handler_t::replace) << '\n';
        return 0;
    }
    for (const StorySection& section : sections_of(story.told())) {
        std::cout << terminal_text(section.title) << '\n';
        for (const std::string& line : section.lines) std::cout << "    " << terminal_text(line) << '\n';
    }
    return 0;
}

}  // namespace torchbus::cli

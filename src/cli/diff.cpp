#include <algorithm>
#include <cstdio>
#include <iostream>
#include <set>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/error.hpp>
#include <torchbus/name_pattern.hpp>
#include <torchbus/stream/fingerprint_records.hpp>

#include "../stream/run_events.hpp"

#include "compared_run.hpp"
#include "field_difference.hpp"
#include "recorded_commands.hpp"
#include "shown_text.hpp"

namespace torchbus::cli {
namespace {

using std::filesystem::path;

/// Of what the machine does, not the run.
const std::vector<std::string> kMeasuredByClock = {"numbers.throughput.*", "numbers.memory.*"};

/// A place for the terminal: names of files found in a folder may be of any bytes.
std::string place_of(const RecordedMessage& message) { return terminal_text(message.where()); }

class RunDiff {
public:
    explicit RunDiff(const DiffOptions& options) : options_(options), one_(options.one, options.ignore), other_(options.other, options.ignore) {
        options_.ignore.insert(options_.ignore.end(), kMeasuredByClock.begin(), kMeasuredByClock.end());
    }
    bool run() {
        limit_to_both();
        for (ComparedRun* side : {&one_, &other_})
            if (side->message() && side->message()->is_start()) side->advance();
        while (one_.message() && other_.message()) {
            compare_messages();
            match_decisions();
            if (has_first_ && !options_.all) break;
        }
        read_to_the_end();
        return report();
    }

private:
    /// How a run was recorded is no difference of the run.
    void limit_to_both() {
        ComparedPart part{.patterns = other_.patterns()}, others{.patterns = one_.patterns()};
        if (one_.every() != other_.every()) {
            both_ = of_both(recorded_attempts(options_.one), recorded_attempts(options_.other));
            part.attempts = others.attempts = &both_;
            fmt::print(stderr, "torchbus: one run was recorded every {}, the other every {}; steps that both hold are compared\n", terminal_text(one_.every()), terminal_text(other_.every()));
        }
        if (one_.patterns() != other_.patterns())
            fmt::print(stderr, "torchbus: one run was recorded with the events {}, the other with {}; events that both hold are compared\n", terminal_text(fmt::format("{}", fmt::join(one_.patterns(), ","))), terminal_text(fmt::format("{}", fmt::join(other_.patterns(), ","))));
        one_.limit_to(std::move(part));
        other_.limit_to(std::move(others));
    }
    bool is_ignored(std::string_view event, const std::string& field) const {
        const std::string whole = fmt::format("{}.{}", event, field);
        return std::ranges::any_of(options_.ignore, [&](const std::string& pattern) {
            return matches(pattern, field) || matches(pattern, whole) || matches(pattern + ".*", field) || matches(pattern + "[[]*", field);
        });
    }
    std::vector<FieldDifference> counting(std::string_view event, std::vector<FieldDifference> all) const {
        std::erase_if(all, [&](const FieldDifference& one) { return is_ignored(event, one.path); });
        return all;
    }
    void compare_messages() {
        const RecordedMessage &one = *one_.message(), &other = *other_.message();
        const bool is_after_gap = one_.take_gap() | other_.take_gap();
        if (one.name() != other.name() || ((is_after_gap || is_aligning_) && one.view().position_text() != other.view().position_text())) return align(one, other, is_after_gap);
        is_aligning_ = false;
        if (one.view().data != other.view().data) {
            const auto found = counting(one.name(), differences(one_.data(), other_.data(), {options_.relative, options_.absolute}));
            if (!found.empty() && has_plan(one.name())) {
                for (const FieldDifference& field : found) configured_.insert(field.text());
            } else if (!found.empty()) {
                std::string text = fmt::format("{} ({} and {})\n", words_on(one), place_of(one), place_of(other));
                for (const FieldDifference& field : found) text += fmt::format("    {}\n", field.text());
                note(std::move(text));
            }
        }
        one_.advance();
        other_.advance();
    }
    /// Goes on in the run that is behind; where both are at one place, in the one that has something more there.
    void align(const RecordedMessage& one, const RecordedMessage& other, bool is_after_gap) {
        const auto place = [](const RecordedMessage& message) {
            return std::tuple(message.view().position("attempts").value_or(-1), message.view().position("micro_batch").value_or(-1), message.view().position("epoch").value_or(-1));
        };
        const bool one_is_rare = !one.view().is_frequent(), other_is_rare = !other.view().is_frequent();
        if (!is_after_gap && !is_aligning_) note(fmt::format("the first run has {} ({}), the second {} ({})\n", words_on(one), place_of(one), words_on(other), place_of(other)));
        is_aligning_ = true;
        const auto its = place(one), others = place(other);
        const bool first_goes_on = its < others || (its == others && (one_is_rare || !other_is_rare)), second_goes_on = others < its || (its == others && (other_is_rare || !one_is_rare));
        if (first_goes_on) one_.advance();
        if (second_goes_on) other_.advance();
    }
    void note(const std::string& text) {
        constexpr std::size_t kMostBytes = 1U << 20;
        if (!std::exchange(has_first_, true)) first_ = text;
        else if (further_.size() < kMostBytes) further_ += text;
        else ++untold_;
    }
    void match_decisions() {
        while (decision_.empty() && !one_.decisions.empty() && !other_.decisions.empty()) {
            const auto found = counting("decision_taken", differences(one_.decisions.front().data, other_.decisions.front().data, {options_.relative, options_.absolute}));
            if (!found.empty()) decision_ = fmt::format("the first run took {}\n    the second took {}\n", one_.decisions.front().text, other_.decisions.front().text);
            one_.decisions.pop_front();
            other_.decisions.pop_front();
        }
        if (decision_.empty()) return;
        one_.decisions.clear();
        other_.decisions.clear();
    }
    void read_to_the_end() {
        const bool one_ended = !one_.message(), other_ended = !other_.message();
        if (one_ended != other_ended && (!has_first_ || options_.all)) {
            const ComparedRun &ended = one_ended ? one_ : other_, &going = one_ended ? other_ : one_;
            ending_ = fmt::format("the {} run ends after {}; the {} goes on with {} ({})\n", one_ended ? "first" : "second", ended.last(), one_ended ? "second" : "first", words_on(*going.message()), place_of(*going.message()));
        }
        while (one_.message() || other_.message()) {
            if (one_.message()) one_.advance();
            if (other_.message()) other_.advance();
            match_decisions();
        }
        for (const bool is_first : {true, false}) {
            const auto& rest = (is_first ? one_ : other_).decisions;
            if (decision_.empty() && !rest.empty()) decision_ = fmt::format("only the {} run took {}\n", is_first ? "first" : "second", rest.front().text);
        }
    }
    std::vector<std::string> sets_apart() const {
        std::vector<std::string> lines;
        std::map<std::string, std::int64_t> balance = one_.aside;
        for (const auto& [text, count] : other_.aside) balance[text] -= count;
        for (const auto& [text, count] : balance)
            if (count != 0) lines.push_back(fmt::format("    {}{} in the {} run alone", text, std::abs(count) > 1 ? fmt::format(", {} times", std::abs(count)) : "", count > 0 ? "first" : "second"));
        return lines;
    }
    std::string fingerprints() const;
    bool report() {
        const auto apart = sets_apart();
        const std::string prints = fingerprints();
        for (const ComparedRun* side : {&one_, &other_}) {
            const std::string name = terminal_text(side->path().string());
            if (side->gaps() > 0) fmt::print(stderr, "torchbus: {}: {} messages were left out when it was recorded; what lies there is not compared\n", name, side->gaps());
            if (side->torn_bytes() > 0) fmt::print(stderr, "torchbus: {}: the last line is torn ({} bytes), and is not compared\n", name, side->torn_bytes());
            if (side->resumed() > 0) fmt::print(stderr, "torchbus: {}: the run went on from a saved state {}; what it had done after that state is compared as it was recorded\n", name, side->resumed() == 1 ? "once" : fmt::format("{} times", side->resumed()));
        }
        if (first_.empty() && ending_.empty() && decision_.empty() && configured_.empty() && apart.empty() && prints.empty()) return false;
        std::cout << fmt::format("first run: {} ({})\nsecond run: {} ({})\n", terminal_text(one_.path().string()), terminal_text(one_.run()), terminal_text(other_.path().string()), terminal_text(other_.run()));
        if (!configured_.empty()) std::cout << fmt::format("configured differently:\n    {}\n", fmt::join(configured_, "\n    "));
        if (!first_.empty()) std::cout << "first difference: " << first_;
        if (!further_.empty()) std::cout << "further differences:\n" << further_;
        if (untold_ > 0) std::cout << fmt::format("… and {} more\n", untold_);
        std::cout << ending_;
        if (!decision_.empty()) std::cout << "first differing decision: " << decision_;
        if (!apart.empty()) std::cout << fmt::format("what comes at any time, as a set:\n{}\n", fmt::join(apart, "\n"));
        if (first_.empty() && ending_.empty()) std::cout << fmt::format("the {} events that were compared in their order are equal\n", one_.count());
        std::cout << prints;
        return true;
    }

    DiffOptions options_;
    ComparedRun one_, other_;
    RecordedAttempts both_;
    std::set<std::string> configured_;
    std::string first_, further_, ending_, decision_;
    std::int64_t untold_ = 0;
    bool has_first_ = false, is_aligning_ = false;
};

/// What the callback fingerprint has written beside a recording of the same rank; empty: nothing.
path fingerprint_file_beside(const path& recording) {
    const std::string stem = recording.stem().string();
    const std::size_t rank = stem.rfind(".rank");
    const std::string ending = rank == std::string::npos ? "" : stem.substr(rank);
    const path folder = recording.has_parent_path() ? recording.parent_path() : path(".");
    const path usual = folder / ("fingerprint.jsonl" + ending);
    if (std::filesystem::is_regular_file(usual)) return usual;
    std::vector<path> found;
    std::error_code unreadable;
    for (const auto& entry : std::filesystem::directory_iterator(folder, unreadable)) {
        const std::string name = entry.path().filename().string();
        const bool is_of_rank = name.find(".rank") == std::string::npos ? ending.empty() : !ending.empty() && name.ends_with(ending);
        if (entry.is_regular_file() && name.find("fingerprint") != std::string::npos && name.ends_with(".jsonl" + ending) && is_of_rank) found.push_back(entry.path());
    }
    return found.size() == 1 ? found.front() : path();
}

std::string RunDiff::fingerprints() const {
    const bool is_exact = options_.relative <= 0 && options_.absolute <= 0;  // hashes know no tolerance
    const path one = fingerprint_file_beside(one_.path()), other = fingerprint_file_beside(other_.path());
    std::error_code none;
    if (!is_exact || one.empty() || other.empty() || std::filesystem::equivalent(one, other, none) || matches_any(options_.ignore, "fingerprint")) return {};
    const auto found = first_fingerprint_difference(one, other);
    if (!found) return {};
    return fmt::format("fingerprints ({} and {}): step {}: {}\n", terminal_text(one.string()), terminal_text(other.string()), found->step, terminal_text(found->what));
}

}  // namespace

int diff_runs(const DiffOptions& options) {
    try {
        return RunDiff(options).run() ? 1 : 0;
    } catch (const ConfigError&) {
        throw;
    } catch (const std::exception& error) {  // 1 is for runs that differ
        fmt::print(stderr, "torchbus: {}\n", terminal_text(error.what()));
        return 2;
    }
}

}  // namespace torchbus::cli

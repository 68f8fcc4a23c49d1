#include <torchbus/stream/fingerprint_records.hpp>

#include <algorithm>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

#include "../json_text.hpp"
#include "json_member.hpp"
#include "line_source.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

class FingerprintFile {
public:
    explicit FingerprintFile(const std::filesystem::path& path) : source_(path) { advance(); }
    /// Nothing at the end.
    const std::optional<json>& record() const { return record_; }
    /// To the next record.
    void advance() {
        const auto line = source_.next();
        const bool is_torn = !line && source_.number() == 0 && source_.rest_bytes() > 0;
        if (is_torn) refuse(1);
        if (!line) return record_.reset();
        constexpr std::size_t kDeepest = 8;
        json record = is_shallow(*line, kDeepest) ? json::parse(*line, nullptr, false) : json();
        if (!record.is_object() || !record.contains("samples") || !member_of(record, "step").is_number_integer()) refuse(source_.number());
        const std::int64_t before = attempts_;
        attempts_ = whole_member(record, "attempts", whole_member(record, "step", 0));
        interval_ = attempts_ - before;
        record_ = std::move(record);
    }
    std::int64_t lines() const { return source_.number(); }
    std::int64_t attempts() const { return attempts_; }   ///< of the record; at the end of the last one
    std::int64_t interval() const { return interval_; }   ///< between the last two, in attempts
    std::int64_t step() const { return whole_member(*record_, "step", 0); }

private:
    [[noreturn]] void refuse(std::int64_t line) const { throw DataError(fmt::format("{}: line {} is no fingerprint; is it a file that `fingerprint` wrote?", source_.path().string(), line)); }

    LineSource source_;
    std::optional<json> record_;
    std::int64_t attempts_ = 0, interval_ = 1;
};

json member_or(const json& record, const char* name, const json& otherwise = json()) { return record.contains(name) ? record[name] : otherwise; }

std::vector<std::string> different_names(const json& one, const json& other) {
    std::vector<std::string> names;
    for (const auto& [name, hash] : one.items())
        if (!other.contains(name) || other[name] != hash) names.push_back(name);
    for (const auto& [name, hash] : other.items())
        if (!one.contains(name)) names.push_back(name);
    return names;
}

/// In the order in which one leads to the other; empty where they are equal.
std::string difference_of(const json& one, const json& other) {
    for (const char* what : {"epoch", "step", "attempts", "update"})
        if (member_or(one, what) != member_or(other, what)) return fmt::format("the {} is {} in one and {} in the other", what, member_or(one, what).dump(), member_or(other, what).dump());
    for (const char* what : {"samples", "loss", "skipped"})
        if (member_or(one, what) != member_or(other, what)) return what == std::string_view("skipped") ? "one update was skipped, the other not" : fmt::format("the {} differ{}", what, what == std::string_view("loss") ? "s" : "");
    for (const char* group : {"gradients", "parameters", "buffers", "generators"}) {
        const json left = member_or(one, group, json::object()), right = member_or(other, group, json::object());
        if (!left.is_object() || !right.is_object()) continue;
        if (const auto names = different_names(left, right); !names.empty()) return fmt::format("{} differ: {}", group, fmt::join(names, ", "));
    }
    return {};
}

}  // namespace

std::optional<FingerprintDifference> first_fingerprint_difference(const std::filesystem::path& one, const std::filesystem::path& other) {
    FingerprintFile left(one), right(other);
    bool are_alike_so_far = true;  // records that one has alone were none
    while (left.record() && right.record()) {
        const std::int64_t line = std::max(left.lines(), right.lines());
        FingerprintFile &behind = left.attempts() <= right.attempts() ? left : right, &ahead = &behind == &left ? right : left;
        if (behind.attempts() < ahead.attempts()) {
            const json passed = *behind.record();
            const std::int64_t step = behind.step();
            behind.advance();
            const bool is_at_same_step = step == ahead.step() && (!behind.record() || behind.attempts() > ahead.attempts());
            if (is_at_same_step) return FingerprintDifference{line, step, &behind == &left ? difference_of(passed, *ahead.record()) : difference_of(*ahead.record(), passed)};
            are_alike_so_far = false;
            continue;
        }
        if (const std::string what = difference_of(*left.record(), *right.record()); !what.empty()) return FingerprintDifference{line, left.step(), what};
        left.advance();
        right.advance();
    }
    if (!left.record() && !right.record()) return std::nullopt;
    FingerprintFile &longer = left.record() ? left : right, &shorter = left.record() ? right : left;
    const std::int64_t line = longer.lines(), step = longer.step(), due = shorter.attempts() + std::max<std::int64_t>(shorter.interval(), 1);
    bool is_missed = shorter.lines() == 0 || are_alike_so_far;
    for (; longer.record(); longer.advance()) is_missed = is_missed || longer.attempts() >= due;
    if (!is_missed) return std::nullopt;
    const std::string equal = are_alike_so_far ? fmt::format("the first {} lines are equal", line - 1) : "what both have is equal";
    return FingerprintDifference{line, step, fmt::format("{}; then one has {} lines, the other {}", equal, left.lines(), right.lines()), true};
}

}  // namespace torchbus

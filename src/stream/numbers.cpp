#include <torchbus/stream/numbers.hpp>

#include <charconv>
#include <chrono>
#include <cmath>

#include <nlohmann/json.hpp>

#include "json_member.hpp"
#include "message_view.hpp"

namespace torchbus {
namespace {

/// Reads on from where it is; what is not as a MessageWriter has it makes it fail for good.
class NumbersScanner {
public:
    explicit NumbersScanner(std::string_view text) : rest_(text) {}
    bool has_failed() const { return failed_; }
    bool take(char c) {
        if (rest_.empty() || rest_.front() != c) return false;
        rest_.remove_prefix(1);
        return true;
    }
    void expect(char c) { failed_ = !take(c) || failed_; }
    std::string text() {
        expect('"');
        std::size_t end = 0;
        bool is_plain = true;
        for (; end < rest_.size() && rest_[end] != '"'; ++end)
            if (rest_[end] == '\\') is_plain = false, ++end;
        if (failed_ || end >= rest_.size()) return fail();
        const std::string_view inside = rest_.substr(0, end);
        rest_.remove_prefix(end + 1);
        if (is_plain) return std::string(inside);
        const auto value = nlohmann::json::parse('"' + std::string(inside) + '"', nullptr, /*allow_exceptions=*/false);
        return value.is_string() ? value.get<std::string>() : fail();
    }
    double number() {
        if (!rest_.empty() && rest_.front() == '"') {
            const auto number = number_of_word(text());
            failed_ = failed_ || !number;
            return number.value_or(NAN);
        }
        double value = 0;
        const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
        if (error == std::errc()) rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
        else failed_ = true;
        return value;
    }

private:
    std::string fail() {
        failed_ = true;
        return {};
    }
    std::string_view rest_;
    bool failed_ = false;
};

/// {"name":number,…}
StreamNumbers::List list_at(NumbersScanner& scanner) {
    StreamNumbers::List list;
    scanner.expect('{');
    if (scanner.take('}')) return list;
    do {
        std::string name = scanner.text();
        scanner.expect(':');
        const double number = scanner.number();
        list.emplace_back(std::move(name), number);
    } while (!scanner.has_failed() && scanner.take(','));
    scanner.expect('}');
    return list;
}

/// "numbers":{…},"older":{…} behind the position; whether they are as they should be.
bool read_lists(std::string_view data, StreamNumbers& numbers) {
    constexpr std::string_view kFirst = "\"numbers\":";
    const std::size_t place = data.find(kFirst);
    if (place == std::string_view::npos) return false;
    NumbersScanner scanner(data.substr(place + kFirst.size()));
    numbers.fresh = list_at(scanner);
    if (scanner.take(',') && scanner.text() == "older") {
        scanner.expect(':');
        numbers.older = list_at(scanner);
    }
    return !scanner.has_failed();
}

}  // namespace

std::optional<double> seconds_of_time(std::string_view text) {
    const auto whole = [&](std::size_t at, std::size_t count) {
        int number = -1;
        if (at + count <= text.size()) std::from_chars(text.data() + at, text.data() + at + count, number);
        return number;
    };
    if (text.size() < 20 || text[4] != '-' || text[7] != '-' || text[10] != 'T' || text[13] != ':' || text[16] != ':' || !text.ends_with('Z')) return std::nullopt;
    const std::chrono::year_month_day date{std::chrono::year(whole(0, 4)), std::chrono::month(static_cast<unsigned>(whole(5, 2))), std::chrono::day(static_cast<unsigned>(whole(8, 2)))};
    if (!date.ok()) return std::nullopt;
    double fraction = 0;
    if (text[19] == '.') std::from_chars(text.data() + 18, text.data() + text.size() - 1, fraction);  // with a digit of the seconds before it
    const double seconds = text[19] == '.' ? whole(17, 1) * 10 + fraction : whole(17, 2);
    return static_cast<double>(std::chrono::sys_days(date).time_since_epoch().count()) * 86400 + whole(11, 2) * 3600 + whole(14, 2) * 60 + seconds;
}

std::optional<StreamNumbers> numbers_of(const MessageView& message) {
    if (message.name != "numbers") return std::nullopt;
    const auto seconds = seconds_of_time(message.time());
    StreamNumbers numbers;
    if (!seconds || !read_lists(message.data, numbers)) return std::nullopt;
    numbers.seconds = *seconds;
    numbers.epoch = message.position("epoch").value_or(0);
    numbers.step = message.position("step").value_or(0);
    numbers.attempts = message.position("attempts").value_or(0);
    numbers.samples = message.position("samples").value_or(0);
    numbers.step_in_epoch = message.position_in_epoch("step").value_or(0);
    const std::size_t after = message.data.rfind("\"after\":\"");
    if (after != std::string_view::npos) numbers.after = message.data.substr(after + 9, message.data.find('"', after + 9) - after - 9);
    return numbers;
}

std::optional<StreamNumbers> numbers_of(std::string_view line) {
    const auto message = view_of(line);
    return message ? numbers_of(*message) : std::nullopt;
}

}  // namespace torchbus

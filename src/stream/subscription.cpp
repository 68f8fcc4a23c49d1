#include "subscription.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

#include "query.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

constexpr std::size_t kMostWords = 64;

void check(const Subscription& wanted, const std::string& where) {
    if (wanted.events.size() > kMostWords || wanted.fields.size() > kMostWords)
        throw ConfigError(fmt::format("{}: more than {} events or fields are named; choose fewer, or use a pattern, e.g. eval_*", where, kMostWords));
    if (wanted.every.amount < 0 || !std::isfinite(wanted.every.amount) || wanted.every.unit == Interval::Unit::Run || wanted.every.unit == Interval::Unit::Emission)
        throw ConfigError(fmt::format("{}: every: '{}' is no interval of a stream; give e.g. 100step, 1epoch or 5s", where, to_string(wanted.every)));
}

std::vector<std::string> texts_of(const json& value, const std::string& where) {
    if (value.is_array() && std::ranges::all_of(value, [](const json& one) { return one.is_string(); })) return value.get<std::vector<std::string>>();
    throw ConfigError(fmt::format("{} is no list of texts; give e.g. [\"train_step_end\", \"eval_*\"]", where));
}

std::vector<std::string> words_of(std::string_view text) {
    std::vector<std::string> words;
    while (!text.empty()) {
        const std::size_t comma = std::min(text.find(','), text.size());
        if (comma > 0) words.emplace_back(text.substr(0, comma));
        text.remove_prefix(std::min(comma + 1, text.size()));
    }
    return words;
}

bool from_now(const std::string& from, const std::string& where) {
    if (from == "now" || from == "start") return from == "now";
    throw ConfigError(fmt::format("{}: from: '{}' is not known; give start (with what is kept of the past) or now", where, from));
}

}  // namespace

bool Subscription::takes_all() const { return events == std::vector<std::string>{"*"} && fields.empty() && every.amount == 0; }

std::string Subscription::key() const { return fmt::format("{}\n{}\n{}", fmt::join(events, ","), fmt::join(fields, ","), to_string(every)); }

Subscription subscription_from_json(const json& wanted, const std::string& where) {
    Subscription subscription;
    if (!wanted.is_object()) throw ConfigError(fmt::format("{}: a {} was found, expected an object, e.g. {{\"events\": [\"eval_*\"], \"every\": \"100step\"}}", where, wanted.type_name()));
    for (const auto& [name, value] : wanted.items()) {
        if (name == "events") subscription.events = texts_of(value, where + ": events");
        else if (name == "fields") subscription.fields = texts_of(value, where + ": fields");
        else if (name == "every" && value.is_string()) subscription.every = parse_interval(value.get<std::string>());
        else if (name == "every" && value.is_number()) subscription.every = Interval(value.get<double>(), Interval::Unit::Natural);
        else if (name == "from" && value.is_string()) subscription.from_now = from_now(value.get<std::string>(), where);
        else throw ConfigError(fmt::format("{}: '{}' is not known or of the wrong type; give events, fields, every (a text) and from (start or now)", where, name));
    }
    check(subscription, where);
    return subscription;
}

Subscription subscription_from_query(std::string_view query) {
    Subscription subscription;
    for (const auto& [name, value] : parse_query(query)) {
        if (name == "events") subscription.events = words_of(value);
        else if (name == "fields") subscription.fields = words_of(value);
        else if (name == "every") subscription.every = parse_interval(value);
        else if (name == "from") subscription.from_now = from_now(value, "query");
        else throw ConfigError(fmt::format("query: '{}' is not known; give events, fields, every and from", name));
    }
    check(subscription, "query");
    return subscription;
}

}  // namespace torchbus

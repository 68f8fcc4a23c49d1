#include <cmath>
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/callbacks/registry.hpp>
#include <torchbus/plugin.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {
namespace {

/// "> 0", ">= 1", "0 to 1"; nothing where any value goes.
std::string in_words(const Range& range) {
    const bool low = std::isfinite(range.low), high = std::isfinite(range.high);
    if (low && high) return fmt::format("{} to {}{}", range.low, range.high_included ? "" : "below ", range.high);
    if (low) return fmt::format("{} {}", range.low_included ? ">=" : ">", range.low);
    return high ? fmt::format("<= {}", range.high) : "";
}

std::string in_words(const Value& value) {
    return value.event.empty() ? value.name : fmt::format("{} (at {}, {})", value.name, value.event, name_of(value.stage));
}

/// Those of an array's objects follow it, as groups[].names.
void print_options(const std::vector<OptionDescription>& described, const std::string& prefix = "") {
    if (described.empty()) std::printf("  no options\n");
    for (const OptionDescription& option : described) {
        std::printf("  %-18s %-10s default %-12s %-8s %s\n", (prefix + option.name).c_str(), option.type.c_str(), option.default_value.c_str(),
                    in_words(option.range).c_str(), option.about.c_str());
        if (!option.members.empty()) print_options(option.members, prefix + option.name + "[].");
    }
}

void print_row(const char* title, const std::vector<std::string>& words) {
    if (!words.empty()) std::printf("%-10s %s\n", title, fmt::format("{}", fmt::join(words, ", ")).c_str());
}

void print_row(const char* title, const std::vector<Value>& values) {
    std::vector<std::string> words;
    for (const Value& value : values) words.push_back(in_words(value));
    print_row(title, words);
}

/// What the callback with its default options declares; others may change it.
void print_declaration(const Declaration& declared) {
    std::vector<std::string> asks;
    for (const Decision decision : declared.asks) asks.emplace_back(name_of(decision));
    print_row("listens", declared.listens);
    print_row("reads", declared.reads);
    print_row("writes", declared.writes);
    print_row("needs", declared.needs);
    print_row("publishes", declared.publishes);
    print_row("views", declared.views);
    print_row("asks for", asks);
    print_row("before", declared.before);
    print_row("after", declared.after);
    const bool optional = declared.subscriber.fault == Fault::Optional;
    std::printf("%-10s %s%s%s\n", "runs", optional ? "on, when it fails" : "critical: the run fails with it", declared.on_thread ? ", on a thread of its own" : "",
                declared.collectives ? ", on all ranks or none" : "");
}

std::unique_ptr<Callback> with_defaults(const CallbackEntry& entry) {
    OptionReader reader(nlohmann::json::object(), std::string(entry.kind));
    return entry.from_json(reader);
}

/// "`a` `b`", or nothing.
template <class Words>
std::string cell(const Words& words) {
    std::vector<std::string> quoted;
    for (const auto& word : words)
        if constexpr (std::is_same_v<std::decay_t<decltype(word)>, Value>)
            quoted.push_back(fmt::format("`{}`", word.name));
        else
            quoted.push_back(fmt::format("`{}`", word));
    return fmt::format("{}", fmt::join(quoted, " "));
}

void print_markdown() {
    std::printf("| name | what it does | listens | reads | writes | publishes | options |\n| --- | --- | --- | --- | --- | --- | --- |\n");
    for (const CallbackEntry& entry : callback_registry()) {
        const Declaration declared = with_defaults(entry)->declare();
        std::vector<std::string> options;
        for (const OptionDescription& option : describe_callback(entry.kind)) options.push_back(fmt::format("`{}`{}", option.name, option.changeable ? "*" : ""));
        std::printf("| `%s` | %s | %s | %s | %s | %s | %s |\n", std::string(entry.kind).c_str(), std::string(entry.summary).c_str(), cell(declared.listens).c_str(),
                    cell(declared.reads).c_str(), cell(declared.writes).c_str(), cell(declared.publishes).c_str(), fmt::format("{}", fmt::join(options, " ")).c_str());
    }
}

}  // namespace

/// Without a name: one line a callback. With one: its options and what it declares.
int callbacks(const nlohmann::json& options) {
    load_plugins(options.value("plugins", std::vector<std::string>()), "--plugin");
    const std::string name = options.at("name");
    if (options.value("markdown", false)) return print_markdown(), 0;
    if (name.empty()) {
        for (const CallbackEntry& entry : callback_registry())
            std::printf("%-24s %s\n", std::string(entry.kind).c_str(), std::string(entry.summary).c_str());
        return 0;
    }
    const CallbackEntry& entry = find_callback(name);
    std::printf("%s: %s\n", name.c_str(), std::string(entry.summary).c_str());
    print_options(describe_callback(name));
    print_declaration(with_defaults(entry)->declare());
    return 0;
}

}  // namespace torchbus::cli

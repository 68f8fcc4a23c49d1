#include <torchbus/metrics/expression.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/error.hpp>

namespace torchbus {

/// A number, a name, or what is applied to arguments that have numbers.
struct Expression::Node {
    double constant = 0;
    std::string name = {};
    double (*apply)(const std::vector<double>& arguments) = nullptr;
    std::vector<std::shared_ptr<const Node>> arguments = {};
};

namespace {

using Node = Expression::Node;
using NodePointer = std::shared_ptr<const Node>;
using Values = std::vector<double>;

struct Function {
    std::string_view name;
    std::size_t arguments;  ///< 0: one or more
    double (*apply)(const Values& values);
};
constexpr auto kFunctions = std::to_array<Function>({
    {"sqrt", 1, [](const Values& v) { return std::sqrt(v[0]); }},
    {"exp", 1, [](const Values& v) { return std::exp(v[0]); }},
    {"log", 1, [](const Values& v) { return std::log(v[0]); }},
    {"abs", 1, [](const Values& v) { return std::abs(v[0]); }},
    {"pow", 2, [](const Values& v) { return std::pow(v[0], v[1]); }},
    {"min", 0, [](const Values& v) { return *std::ranges::min_element(v); }},
    {"max", 0, [](const Values& v) { return *std::ranges::max_element(v); }},
});

// Bounds on the recursion of parsing and of evaluating: a text from outside must not overflow the stack.
constexpr std::size_t kMaxDepth = 200, kMaxLength = 4000;

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

class Parser {
public:
    Parser(std::string_view text, std::string_view where) : text_(text), where_(where) {}

    NodePointer parse() {
        if (text_.size() > kMaxLength) throw ConfigError(fmt::format("{}: {} characters are too many; give at most {}", where_, text_.size(), kMaxLength));
        NodePointer root = sum();
        if (peek() != '\0') fail(fmt::format("expected an operator or the end, found '{}'", peek()));
        return root;
    }
    std::vector<std::string> names() && {
        std::ranges::sort(names_);
        names_.erase(std::ranges::unique(names_).begin(), names_.end());
        return std::move(names_);
    }

private:
    [[noreturn]] void fail(const std::string& what, std::optional<std::size_t> place = {}) const {
        throw ConfigError(fmt::format("{}: column {}: {}, in '{}'", where_, place.value_or(place_) + 1, what, text_));
    }
    static NodePointer applied(double (*apply)(const Values&), std::vector<NodePointer> arguments) {
        return std::make_shared<Node>(Node{.apply = apply, .arguments = std::move(arguments)});
    }
    /// The next character that is no space; '\0' at the end.
    char peek() {
        while (place_ < text_.size() && (text_[place_] == ' ' || text_[place_] == '\t' || text_[place_] == '\n')) ++place_;
        return place_ < text_.size() ? text_[place_] : '\0';
    }
    bool accept(char wanted) {
        const bool is_there = peek() == wanted && wanted != '\0';
        if (is_there) ++place_;
        return is_there;
    }

    NodePointer sum() {
        NodePointer left = product();
        while (true) {
            if (accept('+')) left = applied([](const Values& v) { return v[0] + v[1]; }, {left, product()});
            else if (accept('-')) left = applied([](const Values& v) { return v[0] - v[1]; }, {left, product()});
            else return left;
        }
    }
    NodePointer product() {
        NodePointer left = power();
        while (true) {
            if (accept('*')) left = applied([](const Values& v) { return v[0] * v[1]; }, {left, power()});
            else if (accept('/')) left = applied([](const Values& v) { return v[0] / v[1]; }, {left, power()});
            else return left;
        }
    }
    NodePointer power() {
        const Deeper deeper(*this);
        if (accept('-')) return applied([](const Values& v) { return -v[0]; }, {power()});
        NodePointer base = atom();
        if (!accept('^')) return base;
        return applied([](const Values& v) { return std::pow(v[0], v[1]); }, {base, power()});
    }
    NodePointer atom() {
        const char next = peek();
        if (is_digit(next) || next == '.') return number();
        if (is_letter(next)) return named();
        const std::size_t opened = place_;
        if (!accept('(')) fail(next == '\0' ? "expected a number, a name or '(', found the end" : fmt::format("expected a number, a name or '(', found '{}'", next));
        NodePointer inner = sum();
        close(opened);
        return inner;
    }
    void close(std::size_t opened) {
        if (accept(')')) return;
        if (peek() == '\0') fail("this '(' is not closed", opened);
        fail(fmt::format("expected an operator or ')', found '{}'", peek()));
    }
    NodePointer number() {
        const char* begin = text_.data() + place_;
        double value = 0;
        const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), value);
        if (error == std::errc::result_out_of_range) fail("this number is too large or too small");
        if (error != std::errc()) fail("this is not a number");
        place_ += static_cast<std::size_t>(end - begin);
        return std::make_shared<Node>(Node{.constant = value});
    }
    NodePointer named() {
        const std::size_t begin = place_;
        while (place_ < text_.size() && (is_letter(text_[place_]) || is_digit(text_[place_]) || text_[place_] == '.')) ++place_;
        std::string name(text_.substr(begin, place_ - begin));
        if (peek() == '(') return call(name, begin);
        if (name.ends_with('.')) fail("a name does not end with a dot", begin);
        names_.push_back(name);
        return std::make_shared<Node>(Node{.name = std::move(name)});
    }
    NodePointer call(const std::string& name, std::size_t begin) {
        const auto function = std::ranges::find(kFunctions, name, &Function::name);
        if (function == kFunctions.end()) {
            std::vector<std::string> known;
            for (const Function& one : kFunctions) known.emplace_back(one.name);
            fail(fmt::format("unknown function '{}'{} (expected one of {})", name, did_you_mean(name, known), fmt::join(known, ", ")), begin);
        }
        const std::size_t opened = place_++;
        std::vector<NodePointer> arguments = {sum()};
        while (accept(',')) arguments.push_back(sum());
        close(opened);
        if (function->arguments != 0 && arguments.size() != function->arguments)
            fail(fmt::format("{} takes {} argument{}, got {}", name, function->arguments, function->arguments == 1 ? "" : "s", arguments.size()), begin);
        return applied(function->apply, std::move(arguments));
    }

    struct Deeper {
        explicit Deeper(Parser& its_parser) : parser(its_parser) {
            if (++parser.depth_ > kMaxDepth) parser.fail(fmt::format("nested more than {} deep", kMaxDepth));
        }
        Deeper(const Deeper&) = delete;
        Deeper& operator=(const Deeper&) = delete;
        ~Deeper() { --parser.depth_; }
        Parser& parser;
    };

    std::string_view text_, where_;
    std::size_t place_ = 0, depth_ = 0;
    std::vector<std::string> names_;
};

std::optional<double> evaluate_node(const Node& node, const Expression::Lookup& number) {
    if (!node.name.empty()) return number(node.name);
    if (!node.apply) return node.constant;
    Values values;
    for (const NodePointer& argument : node.arguments) {
        const auto value = evaluate_node(*argument, number);
        if (!value) return std::nullopt;
        values.push_back(*value);
    }
    return node.apply(values);
}

}  // namespace

bool is_number_name(std::string_view text) {
    const bool has_ends = !text.empty() && is_letter(text.front()) && text.back() != '.';
    return has_ends && std::ranges::all_of(text, [](char c) { return is_letter(c) || is_digit(c) || c == '.'; });
}

Expression::Expression(std::string_view text, std::string_view where) {
    Parser parser(text, where);
    root_ = parser.parse();
    names_ = std::move(parser).names();
}

std::optional<double> Expression::evaluate(const Lookup& number) const { return evaluate_node(*root_, number); }

}  // namespace torchbus

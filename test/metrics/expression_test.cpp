#include <cmath>

#include <torchbus/error.hpp>
#include <torchbus/metrics/expression.hpp>

#include "support/catch.hpp"

using namespace torchbus;

namespace {

double value(std::string_view text) {
    return Expression(text).evaluate([](std::string_view name) { return name == "eval.a" ? std::optional(3.0) : name == "b_2" ? std::optional(4.0) : std::nullopt; }).value();
}

}  // namespace

TEST_CASE("expressions compute as written on paper", "[metrics][expression]") {
    CHECK(value("1 + 2 * 3") == 7);
    CHECK(value("(1 + 2) * 3") == 9);
    CHECK(value("8 - 4 - 2") == 2);
    CHECK(value("8 / 4 / 2") == 1);
    CHECK(value("2 ^ 3 ^ 2") == 512);
    CHECK(value("-2 ^ 2") == -4);
    CHECK(value("2 ^ -1") == 0.5);
    CHECK(value("2 * -3") == -6);
    CHECK(value("1.5e1 + .5") == 15.5);
    CHECK(value("eval.a*b_2") == 12);
    CHECK(value("2 * eval.a * b_2 / (eval.a + b_2)") == Approx(24.0 / 7));
    CHECK(value("sqrt(16) + abs(-1) + log(exp(2)) + pow(2, 3)") == Approx(15));
    CHECK(value(" max ( eval.a , 1, b_2 ) - min(2)") == 2);
}

TEST_CASE("an expression tells what it reads, and has no value where one is missing", "[metrics][expression]") {
    const Expression expression("c * eval.b + c - exp(a)");
    CHECK(expression.names() == std::vector<std::string>{"a", "c", "eval.b"});
    CHECK_FALSE(expression.evaluate([](std::string_view name) { return name == "a" ? std::nullopt : std::optional(1.0); }));
    CHECK(std::isinf(value("1 / 0")));
    CHECK(std::isnan(value("0 / 0")));
}

TEST_CASE("a wrong expression is refused with the column", "[metrics][expression]") {
    const auto error = [](std::string_view text) {
        try {
            Expression(text, "run.json: expression");
        } catch (const ConfigError& refused) {
            return std::string(refused.what());
        }
        return std::string("accepted");
    };
    CHECK(error("1 +") == "run.json: expression: column 4: expected a number, a name or '(', found the end, in '1 +'");
    CHECK(error("") == "run.json: expression: column 1: expected a number, a name or '(', found the end, in ''");
    CHECK(error("a b") == "run.json: expression: column 3: expected an operator or the end, found 'b', in 'a b'");
    CHECK(error("2 * (a + b") == "run.json: expression: column 5: this '(' is not closed, in '2 * (a + b'");
    CHECK(error("a)") == "run.json: expression: column 2: expected an operator or the end, found ')', in 'a)'");
    CHECK(error("(a $ b)") == "run.json: expression: column 4: expected an operator or ')', found '$', in '(a $ b)'");
    CHECK(error("1 + sqr(2)") == "run.json: expression: column 5: unknown function 'sqr'; did you mean 'sqrt'? (expected one of sqrt, exp, log, abs, pow, min, max), in '1 + sqr(2)'");
    CHECK(error("pow(2)") == "run.json: expression: column 1: pow takes 2 arguments, got 1, in 'pow(2)'");
    CHECK(error("min()") == "run.json: expression: column 5: expected a number, a name or '(', found ')', in 'min()'");
    CHECK(error("eval. + 1") == "run.json: expression: column 1: a name does not end with a dot, in 'eval. + 1'");
    CHECK(error("1e999") == "run.json: expression: column 1: this number is too large or too small, in '1e999'");
    CHECK(error(". + 1") == "run.json: expression: column 1: this is not a number, in '. + 1'");
    CHECK(error("2a") == "run.json: expression: column 2: expected an operator or the end, found 'a', in '2a'");
    CHECK_THAT(error(std::string(1000, '(')), containing("column 201: nested more than 200 deep"));
    CHECK_THAT(error(std::string(1000, '-')), containing("nested more than 200 deep"));
    CHECK(error(std::string(5000, '1')) == "run.json: expression: 5000 characters are too many; give at most 4000");
}

TEST_CASE("names of numbers are letters, digits, _ and dots", "[metrics][expression]") {
    for (const char* name : {"a", "eval.harmonic", "x_1.y2"}) CHECK(is_number_name(name));
    for (const char* name : {"", "1a", "eval.", "a b", "a-b", ".a"}) CHECK_FALSE(is_number_name(name));
}

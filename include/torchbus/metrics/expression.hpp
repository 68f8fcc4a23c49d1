#pragma once
/// Arithmetic on named numbers: "2 * eval.precision * eval.recall / (eval.precision + eval.recall)".
///
///     sum     = product, { ("+" | "-"), product }
///     product = power, { ("*" | "/"), power }
///     power   = ["-"], atom, ["^", power]             -a^b is -(a^b); a^b^c is a^(b^c)
///     atom    = number | name | "(", sum, ")" | function, "(", sum, { ",", sum }, ")"
///
/// Functions: sqrt, exp, log, abs of one number; pow of two; min, max of one or more. Names are letters, digits, _ and
/// dots, beginning with a letter; a name before "(" is a function.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace torchbus {

/// Whether it is a name that an expression can read.
bool is_number_name(std::string_view text);

class Expression {
public:
    using Lookup = std::function<std::optional<double>(std::string_view name)>;
    struct Node;

    /// Throws: ConfigError with the column (the first is 1), prefixed with `where`.
    explicit Expression(std::string_view text, std::string_view where = "expression");
    /// What it reads, each once, sorted.
    const std::vector<std::string>& names() const { return names_; }
    /// Nothing where a name has no number. Division by zero gives ±inf or NaN.
    std::optional<double> evaluate(const Lookup& number) const;

private:
    std::shared_ptr<const Node> root_;
    std::vector<std::string> names_;
};

}  // namespace torchbus

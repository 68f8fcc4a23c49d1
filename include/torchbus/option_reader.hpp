#pragma once
/// Reads the options of one part of a run file, each with its default and a line about it. The same reading
/// describes the options, for `torchbus callbacks NAME` and the JSON Schema.

#include <concepts>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/interval.hpp>

namespace torchbus {

/// Where a number must lie.
struct Range {
    double low = -std::numeric_limits<double>::infinity();
    double high = std::numeric_limits<double>::infinity();
    bool low_included = true, high_included = true;
    static constexpr Range positive() { return {0, std::numeric_limits<double>::infinity(), false}; }
    static constexpr Range at_least(double low) { return {low}; }
    static constexpr Range between(double low, double high) { return {low, high}; }
    static constexpr Range from_to_below(double low, double high) { return {low, high, true, false}; }
};

/// What is known of one option.
struct OptionDescription {
    std::string name;
    std::string type;           ///< number, integer, boolean, string, interval, or array of one of them
    std::string default_value;  ///< as JSON
    std::string about;          ///< meaning, unit and range
    Range range = {};           ///< of numbers, integers and arrays of them
    std::vector<std::string> allowed = {};  ///< the only values, where there is a choice
    std::vector<OptionDescription> members = {};  ///< of each object, where it is an array of objects
    bool changeable = false;    ///< while a run is under way; `about` says so, too
};

/// A key that is not read is an error of finish(), with a suggestion. All errors name the JSON path.
class OptionReader {
public:
    /// `where` is the path of `options`, e.g. "run.json: callbacks[2]". Keys in `taken` were read by someone else.
    OptionReader(const nlohmann::json& options, std::string where, std::vector<std::string> taken = {});
    ~OptionReader();
    OptionReader(const OptionReader&) = delete;
    OptionReader& operator=(const OptionReader&) = delete;

    OptionReader& number(std::string_view name, double& value, std::string_view about, Range range = {});
    OptionReader& integer(std::string_view name, std::int64_t& value, std::string_view about, Range range = {});
    OptionReader& boolean(std::string_view name, bool& value, std::string_view about);
    OptionReader& text(std::string_view name, std::string& value, std::string_view about);
    /// A number or a text such as "100step".
    OptionReader& interval(std::string_view name, Interval& value, std::string_view about);
    /// One of `allowed`.
    OptionReader& choice(std::string_view name, std::string& value, std::vector<std::string> allowed, std::string_view about);
    OptionReader& texts(std::string_view name, std::vector<std::string>& value, std::string_view about);
    OptionReader& numbers(std::string_view name, std::vector<double>& value, std::string_view about, Range range = {});
    OptionReader& integers(std::string_view name, std::vector<std::int64_t>& value, std::string_view about, Range range = {});
    /// An array of objects: `read` takes the options of one and returns what it makes of them. Of {} it must make something,
    /// or throw a ConfigError: that is how its options are learnt.
    template <class Read>
    OptionReader& objects(std::string_view name, std::vector<std::invoke_result_t<Read, OptionReader&>>& values, Read read, std::string_view about) {
        bool found = false;
        each_object(name, about, [&](OptionReader& one, bool describing) {
            auto value = read(one);
            if (describing) return;
            if (!std::exchange(found, true)) values.clear();
            values.push_back(std::move(value));
        });
        return *this;
    }
    /// Marks the option that was read last: Trainer::change_option takes it while a run is under way.
    OptionReader& changeable();
    /// Whether the option is given.
    bool has(std::string_view name) const;
    /// A part with a form of its own; the caller reads it. nullptr where it is absent.
    const nlohmann::json* part(std::string_view name, std::string_view type, std::string_view about);

    /// Throws: ConfigError for a key that nobody read.
    void finish() const;
    const std::vector<OptionDescription>& described() const;
    const std::string& where() const { return where_; }
    /// "run.json: callbacks[2].max_norm"
    std::string path_of(std::string_view name) const;

private:
    const nlohmann::json* find(std::string_view name, std::string_view type, const nlohmann::json& fallback, std::string_view about,
                               Range range = {}, std::vector<std::string> allowed = {});
    void each_object(std::string_view name, std::string_view about, const std::function<void(OptionReader&, bool describing)>& read);
    template <class T>
    void array(std::string_view name, std::vector<T>& value, const char* type, const char* entry_type, std::string_view about, Range range,
               bool (*accepts)(const nlohmann::json&));
    std::unique_ptr<nlohmann::json> options_;
    std::string where_;
    std::vector<std::string> taken_;
    std::vector<OptionDescription> described_;
};

}  // namespace torchbus

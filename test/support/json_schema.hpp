#pragma once
/// A JSON Schema validator for the words that the library's schemas use; any other word is an error.

#include <regex>
#include <set>
#include <stdexcept>
#include <string>

#include <nlohmann/json.hpp>

namespace torchbus::test {

class JsonSchema {
public:
    explicit JsonSchema(nlohmann::json schema) : root_(std::move(schema)) {}
    /// Where and why the value does not conform; empty where it does.
    std::string complaint(const nlohmann::json& value) const { return look(root_, value, ""); }

private:
    using json = nlohmann::json;

    std::string look(const json& schema, const json& value, const std::string& at) const {
        static const std::set<std::string> kWords = {"$schema", "$ref", "$defs", "title", "description", "default", "type", "enum", "const", "minimum",
                                                     "exclusiveMinimum", "maximum", "exclusiveMaximum", "pattern", "minLength", "items", "properties",
                                                     "additionalProperties", "required", "oneOf", "anyOf", "allOf", "if", "then", "$id", "format"};
        for (const auto& [word, unused] : schema.items())
            if (!kWords.contains(word)) throw std::logic_error("the schema uses '" + word + "'");
        if (schema.contains("$ref"))
            if (auto wrong = look(root_.at(json::json_pointer(schema["$ref"].get<std::string>().substr(1))), value, at); !wrong.empty()) return wrong;
        if (schema.contains("type") && !has_type(schema["type"], value)) return at + ": is no " + schema["type"].dump();
        if (schema.contains("enum") && std::ranges::find(schema["enum"], value) == schema["enum"].end()) return at + ": is none of " + schema["enum"].dump();
        if (schema.contains("const") && schema["const"] != value) return at + ": is not " + schema["const"].dump();
        if (value.is_number() && !in_range(schema, value.get<double>())) return at + ": out of range";
        if (value.is_string() && !fits(schema, value.get<std::string>())) return at + ": does not fit the text";
        if (auto wrong = look_inside(schema, value, at); !wrong.empty()) return wrong;
        if (schema.contains("oneOf") && matches(schema["oneOf"], value, at) != 1) return at + ": matches " + std::to_string(matches(schema["oneOf"], value, at)) + " of oneOf";
        if (schema.contains("allOf"))
            for (const json& one : schema["allOf"])
                if (auto wrong = look(one, value, at); !wrong.empty()) return wrong;
        if (schema.contains("if") && look(schema["if"], value, at).empty())
            if (auto wrong = look(schema["then"], value, at); !wrong.empty()) return wrong;
        if (schema.contains("anyOf") && matches(schema["anyOf"], value, at) == 0) return at + ": matches none of anyOf";
        return "";
    }
    std::string look_inside(const json& schema, const json& value, const std::string& at) const {
        if (value.is_array() && schema.contains("items"))
            for (std::size_t i = 0; i < value.size(); ++i)
                if (auto wrong = look(schema["items"], value[i], at + "/" + std::to_string(i)); !wrong.empty()) return wrong;
        if (!value.is_object()) return "";
        for (const json& name : schema.value("required", json::array()))
            if (!value.contains(name.get<std::string>())) return at + ": needs " + name.dump();
        const json properties = schema.value("properties", json::object());
        for (const auto& [key, inner] : value.items()) {
            if (properties.contains(key)) {
                if (auto wrong = look(properties[key], inner, at + "/" + key); !wrong.empty()) return wrong;
            } else if (const json others = schema.value("additionalProperties", json(true)); others.is_object()) {
                if (auto wrong = look(others, inner, at + "/" + key); !wrong.empty()) return wrong;
            } else if (others == false) {
                return at + "/" + key + ": is not known";
            }
        }
        return "";
    }
    std::size_t matches(const json& alternatives, const json& value, const std::string& at) const {
        return static_cast<std::size_t>(std::ranges::count_if(alternatives, [&](const json& one) { return look(one, value, at).empty(); }));
    }
    static bool has_type(const json& type, const json& value) {
        if (type.is_array()) return std::ranges::any_of(type, [&](const json& one) { return has_type(one, value); });
        if (type == "integer") return value.is_number_integer();
        if (type == "number") return value.is_number();
        return type == value.type_name();
    }
    static bool in_range(const json& schema, double value) {
        return value >= schema.value("minimum", value) && value <= schema.value("maximum", value) &&
               (!schema.contains("exclusiveMinimum") || value > schema["exclusiveMinimum"].get<double>()) &&
               (!schema.contains("exclusiveMaximum") || value < schema["exclusiveMaximum"].get<double>());
    }
    static bool fits(const json& schema, const std::string& value) {
        return value.size() >= schema.value("minLength", std::size_t{0}) &&
               (!schema.contains("pattern") || std::regex_search(value, std::regex(schema["pattern"].get<std::string>(), std::regex::ECMAScript)));
    }
    json root_;
};

}  // namespace torchbus::test

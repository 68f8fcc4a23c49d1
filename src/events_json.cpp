#include <torchbus/events_json.hpp>

#include <algorithm>
#include <cmath>
#include <iterator>

#include <ATen/core/Tensor.h>
#include <c10/core/DynamicCast.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "event_fields.hpp"

namespace torchbus {

using nlohmann::json;

std::string_view name_of(Mode mode) {
    switch (mode) {
        case Mode::Train: return "train";
        case Mode::Eval: return "eval";
        case Mode::Predict: return "predict";
    }
    return "";
}

std::optional<double> readable_scalar(const at::Tensor& value) {
    if (!value.defined() || !value.device().is_cpu() || value.numel() != 1) return std::nullopt;
    const bool is_plain = value.layout() == at::kStrided && !value.is_complex() && !value.is_conj() && !value.is_neg();
    if (!is_plain) return value.item<double>();
    return c10::fetch_and_cast<double>(value.scalar_type(), value.const_data_ptr());  // item() goes through the dispatcher
}

std::vector<std::int64_t> samples_of(const Window& window) {
    std::vector<std::int64_t> samples;
    for (const Batch& batch : window.batches) samples.insert(samples.end(), batch.indices.begin(), batch.indices.end());
    return samples;
}

namespace {

const char* name_of_no_number(double value) { return std::isnan(value) ? "NaN" : value > 0 ? "Infinity" : "-Infinity"; }

// ── as values ────────────────────────────────────────────────────────────────────────────────────────────────────
template <class T>
json value_of(const T& value) {
    if constexpr (HasFields<T>) {
        json object = json::object();
        std::apply([&](const auto&... field) { (object.emplace(field.name, value_of(field.get(value))), ...); }, FieldsOf<T>::kFields);
        return object;
    } else if constexpr (IsOptional<T>) {
        return value ? value_of(*value) : json();
    } else if constexpr (IsText<T>) {
        return std::string(std::string_view(value));
    } else if constexpr (IsList<T>) {
        json list = json::array();
        for (const auto& one : value) list.push_back(value_of(one));
        return list;
    } else if constexpr (std::floating_point<T>) {
        return std::isfinite(value) ? json(value) : json(name_of_no_number(value));
    } else {
        return value;
    }
}

// ── as text ──────────────────────────────────────────────────────────────────────────────────────────────────────
template <class T>
void append(std::string& out, const T& value) {
    if constexpr (HasFields<T>) {
        const std::size_t begin = out.size();
        const auto append_field = [&](const auto& field) {
            out += field.key;
            append(out, field.get(value));
        };
        std::apply([&](const auto&... field) { (append_field(field), ...); }, FieldsOf<T>::kFields);
        out[begin] = '{';  // in place of the first comma
        out += '}';
    } else if constexpr (IsOptional<T>) {
        if (value) append(out, *value);
        else out += "null";
    } else if constexpr (IsText<T>) {
        append_json_text(out, value);
    } else if constexpr (IsList<T>) {
        out += '[';
        bool is_first = true;
        for (const auto& one : value) {
            if (!std::exchange(is_first, false)) out += ',';
            append(out, one);
        }
        out += ']';
    } else if constexpr (std::same_as<T, bool>) {
        out += value ? "true" : "false";
    } else if constexpr (std::floating_point<T>) {
        append_json_number(out, value);
    } else {
        const fmt::format_int digits(value);
        out.append(digits.data(), digits.size());
    }
}

}  // namespace

void append_json_text(std::string& out, std::string_view text) {
    const auto is_plain = [](char c) { return c >= 0x20 && c < 0x7f && c != '"' && c != '\\'; };
    if (std::ranges::all_of(text, is_plain)) {
        out += '"';
        out += text;
        out += '"';
    } else {
        out += json(text).dump(-1, ' ', /*ensure_ascii=*/false, json::error_handler_t::replace);
    }
}

void append_json_number(std::string& out, double number) {
    if (std::isfinite(number)) fmt::format_to(std::back_inserter(out), "{}", number);
    else append_json_text(out, name_of_no_number(number));
}

void append_json(std::string& out, const json& value) {
    if (value.is_object()) {
        char before = '{';
        for (const auto& [key, inner] : value.items()) {
            out += std::exchange(before, ',');
            append_json_text(out, key);
            out += ':';
            append_json(out, inner);
        }
        out += value.empty() ? "{}" : "}";
    } else if (value.is_array()) {
        char before = '[';
        for (const json& inner : value) {
            out += std::exchange(before, ',');
            append_json(out, inner);
        }
        out += value.empty() ? "[]" : "]";
    } else if (value.is_string()) {
        append_json_text(out, value.get_ref<const std::string&>());
    } else if (value.is_number_float()) {
        append_json_number(out, value.get<double>());
    } else {
        out += value.dump();
    }
}

template <HasEventJson T>
void to_json(json& out, const T& event) {
    out = value_of(event);
}
template <HasEventJson T>
void append_json(std::string& out, const T& event) {
    append(out, event);
}

namespace {

/// Every form of every event, for who includes the header alone.
template <class... Ts>
constexpr auto forms_of(std::tuple<Ts...>*) {
    return std::tuple{static_cast<void (*)(json&, const Ts&)>(&to_json<Ts>)..., static_cast<void (*)(std::string&, const Ts&)>(&append_json<Ts>)...};
}
[[gnu::used]] const auto kEvents = forms_of(static_cast<TrainerEvents*>(nullptr));
[[gnu::used]] const auto kParts = forms_of(static_cast<std::tuple<Counts, Position, Scope, MicroBatch, RunPlan, RunResult, LeftOut>*>(nullptr));

}  // namespace

}  // namespace torchbus

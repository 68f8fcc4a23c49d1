#pragma once
/// The JSON form of the events, found by argument-dependent lookup. Fields that hold tensors are left out, except scalars
/// that lie on the CPU. What is no number is written as a text: "NaN", "Infinity", "-Infinity".

#include <string>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/events.hpp>

namespace torchbus {

/// An event of the library, or a part of one.
template <class T>
concept HasEventJson = detail::is_one_of<T, TrainerEvents> || detail::is_one_of<T, std::tuple<Counts, Position, Scope, MicroBatch, RunPlan, RunResult, LeftOut>>;

template <HasEventJson T>
void to_json(nlohmann::json& out, const T& event);
/// The same as text, an order of magnitude faster: for who writes every event.
template <HasEventJson T>
void append_json(std::string& out, const T& event);
/// Of any value.
void append_json(std::string& out, const nlohmann::json& value);
/// A text with its quotation marks; what is no UTF-8 in it is replaced.
void append_json_text(std::string& out, std::string_view text);
/// Shortest that reads back as the same number.
void append_json_number(std::string& out, double number);

}  // namespace torchbus

#pragma once
/// What the training thread notes down of an event, and the message that another thread writes of it.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <torchbus/blackboard.hpp>
#include <torchbus/event_type.hpp>
#include <torchbus/position.hpp>
#include <torchbus/stream/message.hpp>

#include "captured_event.hpp"

namespace torchbus {

/// Appends to `records`. Names are kept by their address.
/// `form`: of the event; null for a user's, which has JSON.
void record_event(std::string& records, const AnyEvent& event, const CapturedForm* form, std::chrono::system_clock::time_point now);
/// What is no event; `json`: its data.
void record_text(std::string& records, const std::string& name, std::string_view json, std::chrono::system_clock::time_point now);
/// All numbers of the blackboard; those published after the first `since` publications are new.
void record_numbers(std::string& records, const Position& position, const Blackboard& blackboard, std::int64_t since, const std::string& after, std::chrono::system_clock::time_point now);
/// So many messages were left out here.
void record_gap(std::string& records, std::int64_t count, std::chrono::system_clock::time_point now);

/// Writes the message of the first record behind `lines`. Returns the bytes of that record.
std::size_t write_first_record(std::string_view records, MessageWriter& writer, std::string& lines);

}  // namespace torchbus

#pragma once
/// What the training thread puts into an EventQueue, and the message that the queue's thread writes of it.

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

/// All of these append to `queued`. Names are kept by their address.
/// `form`: of the event; null for a user's, which has JSON.
void queue_event(std::string& queued, const AnyEvent& event, const CapturedForm* form, std::chrono::system_clock::time_point now);
/// What is no event; `json`: its data.
void queue_text(std::string& queued, const std::string& name, std::string_view json, std::chrono::system_clock::time_point now);
/// All numbers of the blackboard; those published after the first `since` publications are new.
void queue_numbers(std::string& queued, const Position& position, const Blackboard& blackboard, std::int64_t since, const std::string& after, std::chrono::system_clock::time_point now);
/// So many messages were left out here.
void queue_gap(std::string& queued, std::int64_t count, std::chrono::system_clock::time_point now);

/// Writes the message of the first one behind `lines`. Returns how many bytes that one has.
std::size_t write_first_queued(std::string_view queued, MessageWriter& writer, std::string& lines);

}  // namespace torchbus

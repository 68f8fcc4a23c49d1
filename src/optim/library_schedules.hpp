#pragma once
/// The library's own rows of the table of schedules.

#include <span>

#include <torchbus/optim/registry.hpp>

namespace torchbus {

std::span<const ScheduleEntry> library_schedules();

}  // namespace torchbus

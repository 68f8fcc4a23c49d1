#pragma once
/// Whether all ranks are there, each once, and expect a world of one size.

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <torchbus/distributed/world.hpp>

namespace torchbus {

/// Returns when all are there. On all ranks alike. Throws: DistributedError naming the ranks that are missing, that came twice,
/// or that expect a world of another size, on every rank that came.
void call_roll(const Ranks& ranks, const WorldOptions& options, c10d::Store& store);

[[noreturn]] void fail(const Ranks& ranks, const std::string& what);
std::string address_of(const Ranks& ranks);

}  // namespace torchbus

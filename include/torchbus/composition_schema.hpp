#pragma once
/// The JSON Schema of a run file, made from the tables that read it.

#include <nlohmann/json_fwd.hpp>

namespace torchbus {

/// Draft 2020-12. It knows the kinds of all plug-ins that are loaded. It is wider than what reads a run file in this:
/// conditions between two options are not in it. A file that is meant to be included need not be whole, and so need
/// not conform.
nlohmann::json run_file_schema();

}  // namespace torchbus

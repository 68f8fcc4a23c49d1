// What nearly every file without a torch header includes.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

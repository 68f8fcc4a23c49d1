// What nearly every file includes. Not torch/torch.h: its module classes cost each file 4 s more, precompiled or not.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

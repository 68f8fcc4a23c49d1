#pragma once
/// Names of files that were moved aside.

#include <cstdint>
#include <filesystem>

#include <fmt/format.h>

namespace torchbus {

/// events.jsonl → events.3.jsonl; the file itself for 0.
inline std::filesystem::path numbered_file(const std::filesystem::path& file, std::int64_t number) {
    std::filesystem::path other = file;
    return number == 0 ? file : other.replace_filename(fmt::format("{}.{}{}", file.stem().string(), number, file.extension().string()));
}

}  // namespace torchbus

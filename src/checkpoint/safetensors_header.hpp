#pragma once
/// The header of a safetensors file, checked: whatever a file holds, what it claims of its tensors is true afterwards.

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace torchbus {

struct TensorEntry {
    std::string name;
    std::string dtype;  ///< F32, BF16, …
    std::vector<std::int64_t> shape;
    std::size_t begin = 0, end = 0;  ///< bytes, counted from the beginning of the data
};

struct SafetensorsHeader {
    std::vector<TensorEntry> tensors;             ///< by where they lie
    std::map<std::string, std::string> metadata;
    std::size_t data_begin = 0;                   ///< bytes before the data
};

/// Of a whole file. Throws: CheckpointError that begins with `name`, and names the tensor where there is one: for a
/// header that is none, a shape that overflows or does not fit its bytes, tensors that overlap or leave gaps.
SafetensorsHeader parse_safetensors_header(std::string_view file, const std::string& name);

}  // namespace torchbus

#include "safetensors_header.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

using nlohmann::json;
constexpr std::uint64_t kLargestHeader = 100'000'000;  // as the format's own reader has it

struct Dtype {
    std::string_view name;
    std::size_t bytes;
};
constexpr auto kDtypes = std::to_array<Dtype>({
    {"F32", 4}, {"F64", 8}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4}, {"I16", 2}, {"I8", 1}, {"U8", 1}, {"BOOL", 1},
});

/// Elements times bytes, where that can be counted.
std::optional<std::size_t> size_of(const std::vector<std::int64_t>& shape, std::size_t element) {
    std::size_t bytes = element;
    for (const std::int64_t extent : shape) {
        if (extent < 0) return std::nullopt;
        if (extent > 0 && bytes > std::numeric_limits<std::size_t>::max() / 2 / static_cast<std::size_t>(extent)) return std::nullopt;
        bytes *= static_cast<std::size_t>(extent);
    }
    return bytes;
}

TensorEntry entry_from(const json& value, const std::string& tensor, std::size_t data, const std::string& file) {
    const std::string where = fmt::format("tensor '{}'", tensor);
    TensorEntry entry{tensor, {}, {}, 0, 0};
    std::array<std::uint64_t, 2> offsets{};
    try {
        entry.dtype = value.at("dtype").get<std::string>();
        for (const json& extent : value.at("shape")) {
            if (!extent.is_number_integer()) throw CheckpointError(file, fmt::format("{} is described wrongly: its shape has a {}", where, extent.type_name()));
            entry.shape.push_back(extent.get<std::int64_t>());
        }
        const json& bounds = value.at("data_offsets");
        if (!bounds.is_array() || bounds.size() != 2 || !bounds[0].is_number_unsigned() || !bounds[1].is_number_unsigned())
            throw CheckpointError(file, fmt::format("{} is described wrongly: data_offsets are no two positions", where));
        offsets = {bounds[0].get<std::uint64_t>(), bounds[1].get<std::uint64_t>()};
    } catch (const json::exception& error) {
        throw CheckpointError(file, fmt::format("{} is described wrongly: {}", where, error.what()));
    }
    const auto known = std::ranges::find(kDtypes, entry.dtype, &Dtype::name);
    if (known == kDtypes.end()) throw CheckpointError(file, fmt::format("{} has the type {}, which is not supported", where, entry.dtype));
    const auto expected = size_of(entry.shape, known->bytes);
    if (!expected) throw CheckpointError(file, fmt::format("{} has a shape that no tensor can have", where));
    if (offsets[0] > offsets[1] || offsets[1] > data || offsets[1] - offsets[0] != *expected)
        throw CheckpointError(file, fmt::format("{} lies at bytes {} to {} of {}, expected {} bytes; the file is damaged or truncated", where, offsets[0], offsets[1], data, *expected));
    entry.begin = offsets[0];
    entry.end = offsets[1];
    return entry;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view file, const std::string& name) {
    std::uint64_t length = 0;
    if (file.size() < sizeof length) throw CheckpointError(name, fmt::format("{} bytes are too few for a safetensors file", file.size()));
    std::memcpy(&length, file.data(), sizeof length);
    if (length > file.size() - sizeof length)
        throw CheckpointError(name, fmt::format("the header claims {} bytes, the file has {}; it is truncated, or no safetensors file", length, file.size()));
    if (length > kLargestHeader) throw CheckpointError(name, fmt::format("the header claims {} bytes, more than {}; it is no safetensors file", length, kLargestHeader));
    const std::string_view text = file.substr(sizeof length, length);
    const json header = json::parse(text.begin(), text.end(), nullptr, false);
    if (!header.is_object()) throw CheckpointError(name, "the header is no JSON object; the file is damaged, or no safetensors file");
    SafetensorsHeader parsed;
    parsed.data_begin = sizeof length + length;
    const std::size_t data = file.size() - parsed.data_begin;
    for (const auto& [tensor, value] : header.items()) {
        if (tensor != "__metadata__") {
            parsed.tensors.push_back(entry_from(value, tensor, data, name));
            continue;
        }
        if (!value.is_object()) throw CheckpointError(name, "the metadata are no JSON object; the file is damaged");
        for (const auto& [key, word] : value.items()) {
            if (!word.is_string()) throw CheckpointError(name, fmt::format("the metadata '{}' is no text; the file is damaged", key));
            parsed.metadata[key] = word.get<std::string>();
        }
    }
    std::ranges::sort(parsed.tensors, {}, [](const TensorEntry& entry) { return std::pair(entry.begin, entry.end); });
    std::size_t at = 0;
    for (const TensorEntry& entry : parsed.tensors) {
        if (entry.begin != at) throw CheckpointError(name, fmt::format("tensor '{}' begins at byte {}, expected {}; the file is damaged", entry.name, entry.begin, at));
        at = entry.end;
    }
    if (at != data) throw CheckpointError(name, fmt::format("{} bytes of data, expected {}; the file is {}", data, at, data < at ? "truncated" : "damaged"));
    return parsed;
}

}  // namespace torchbus

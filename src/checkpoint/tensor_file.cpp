#include "tensor_file.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/error.hpp>

#include "checksum.hpp"
#include "safetensors_header.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian");

struct TypeName {
    at::ScalarType type;
    std::string_view name;
};
constexpr auto kTypes = std::to_array<TypeName>({
    {at::kFloat, "F32"}, {at::kDouble, "F64"}, {at::kHalf, "F16"}, {at::kBFloat16, "BF16"}, {at::kLong, "I64"}, {at::kInt, "I32"},
    {at::kShort, "I16"}, {at::kChar, "I8"}, {at::kByte, "U8"}, {at::kBool, "BOOL"},
});

/// Of each tensor's bytes, in the file's metadata: other readers of the format pass over it.
constexpr std::string_view kChecksum = "xxh3:";

std::string_view bytes_of(const at::Tensor& content) { return {static_cast<const char*>(content.const_data_ptr()), content.nbytes()}; }
std::string_view bytes_of(const TensorEntry& entry, const SafetensorsHeader& header, std::string_view file) { return file.substr(header.data_begin + entry.begin, entry.end - entry.begin); }

bool is_sound(const TensorEntry& entry, const SafetensorsHeader& header, std::string_view file) {
    const auto known = header.metadata.find(std::string(kChecksum) + entry.name);
    return known == header.metadata.end() || known->second == checksum_of(bytes_of(entry, header, file));
}

}  // namespace

std::string_view scalar_type_name(at::ScalarType type, const std::string& where) {
    const auto known = std::ranges::find(kTypes, type, &TypeName::type);
    if (known == kTypes.end()) throw CheckpointError(fmt::format("{} is of type {}, which safetensors does not know", where, c10::toString(type)));
    return known->name;
}

at::ScalarType scalar_type_of(std::string_view name) { return std::ranges::find(kTypes, name, &TypeName::name)->type; }

void write_tensors(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata, const std::string& name, const ByteSink& sink) {
    json header = json::object();
    json words = metadata;
    std::vector<at::Tensor> contents;
    std::size_t offset = 0;
    for (const auto& [tensor_name, tensor] : tensors) {
        const at::Tensor& content = contents.emplace_back(tensor.detach().cpu().contiguous());
        header[tensor_name] = {{"dtype", scalar_type_name(tensor.scalar_type(), fmt::format("{}: tensor '{}'", name, tensor_name))}, {"shape", content.sizes().vec()}, {"data_offsets", {offset, offset + content.nbytes()}}};
        words[std::string(kChecksum) + tensor_name] = checksum_of(bytes_of(content));
        offset += content.nbytes();
    }
    if (!words.empty()) header["__metadata__"] = std::move(words);
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begins at a multiple of eight
    const std::uint64_t length = text.size();
    sink(&length, sizeof length);
    sink(text.data(), text.size());
    for (const at::Tensor& content : contents) sink(content.const_data_ptr(), content.nbytes());
}

std::string bytes_of_tensors(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata, const std::string& name) {
    std::string bytes;
    write_tensors(tensors, metadata, name, [&](const void* part, std::size_t count) { bytes.append(static_cast<const char*>(part), count); });
    return bytes;
}

std::vector<NamedTensor> tensors_of_file(std::string_view file, const std::string& name, Checked checked) {
    const SafetensorsHeader header = parse_safetensors_header(file, name);
    std::vector<NamedTensor> tensors;
    for (const TensorEntry& entry : header.tensors) {
        if (checked == Checked::Not && !is_sound(entry, header, file)) throw CheckpointError(fmt::format("{}: tensor '{}' is not as it was written; the file is damaged", name, entry.name));
        const at::Tensor tensor = torch::empty(entry.shape, at::TensorOptions(scalar_type_of(entry.dtype)));
        const std::string_view bytes = bytes_of(entry, header, file);
        if (!bytes.empty()) std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
        tensors.emplace_back(entry.name, tensor);
    }
    return tensors;
}

std::vector<std::string> misfits(const std::vector<NamedTensor>& saved, const std::vector<NamedTensor>& own) {
    const std::map<std::string, at::Tensor> by_name(saved.begin(), saved.end()), own_by_name(own.begin(), own.end());
    std::vector<std::string> problems;
    for (const auto& [name, tensor] : own) {
        const auto found = by_name.find(name);
        if (found == by_name.end())
            problems.push_back(fmt::format("'{}' is missing", name));
        else if (found->second.sizes() != tensor.sizes())
            problems.push_back(fmt::format("'{}' has shape [{}], the model's has [{}]", name, fmt::join(found->second.sizes(), ", "), fmt::join(tensor.sizes(), ", ")));
    }
    for (const auto& [name, tensor] : saved)
        if (!own_by_name.contains(name)) problems.push_back(fmt::format("'{}' is not in the model", name));
    return problems;
}

std::string damage_in_tensors(std::string_view file) {
    std::vector<std::string> damaged;
    try {
        const SafetensorsHeader header = parse_safetensors_header(file, "");
        for (const TensorEntry& entry : header.tensors)
            if (!is_sound(entry, header, file)) damaged.push_back("'" + entry.name + "'");
    } catch (const CheckpointError&) {
        return "its header is damaged";
    }
    if (damaged.empty()) return "its header is damaged";
    return fmt::format("the tensor{} {} {} damaged", damaged.size() == 1 ? "" : "s", fmt::join(damaged, ", "), damaged.size() == 1 ? "is" : "are");
}

}  // namespace torchbus

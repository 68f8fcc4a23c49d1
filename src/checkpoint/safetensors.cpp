#include <torchbus/checkpoint/safetensors.hpp>

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/error.hpp>

namespace torchbus {
namespace {

using nlohmann::json;
using std::filesystem::path;

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian");

struct TypeName {
    at::ScalarType type;
    std::string_view name;
};
constexpr auto kTypes = std::to_array<TypeName>({
    {at::kFloat, "F32"}, {at::kDouble, "F64"}, {at::kHalf, "F16"}, {at::kBFloat16, "BF16"}, {at::kLong, "I64"}, {at::kInt, "I32"},
    {at::kShort, "I16"}, {at::kChar, "I8"}, {at::kByte, "U8"}, {at::kBool, "BOOL"},
});

[[noreturn]] void fail(const path& file, const std::string& what) { throw CheckpointError(fmt::format("{}: {}", file.string(), what)); }
at::Tensor read_tensor(const path& file, const std::string& name, const json& entry, const std::string& bytes) {
    const auto where = fmt::format("tensor '{}'", name);
    try {
        const std::string dtype = entry.at("dtype");
        const auto known = std::ranges::find(kTypes, dtype, [](const TypeName& type) { return std::string(type.name); });
        if (known == kTypes.end()) fail(file, fmt::format("{} has the type {}, which is not supported", where, dtype));
        const auto shape = entry.at("shape").get<std::vector<std::int64_t>>();
        const auto offsets = entry.at("data_offsets").get<std::array<std::size_t, 2>>();
        at::Tensor tensor = torch::empty(shape, at::TensorOptions(known->type));
        if (offsets[0] > offsets[1] || offsets[1] > bytes.size() || offsets[1] - offsets[0] != tensor.nbytes())
            fail(file, fmt::format("{} lies at bytes {} to {} of {}, expected {} bytes; the file is damaged or truncated", where, offsets[0],
                                   offsets[1], bytes.size(), tensor.nbytes()));
        if (tensor.nbytes() > 0) std::memcpy(tensor.mutable_data_ptr(), bytes.data() + offsets[0], tensor.nbytes());
        return tensor;
    } catch (const json::exception& error) {
        fail(file, fmt::format("{} is described wrongly: {}", where, error.what()));
    }
}

}  // namespace

void save_safetensors(const path& file, const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata) {
    json header = json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::vector<at::Tensor> contents;
    std::size_t offset = 0;
    for (const auto& [name, tensor] : tensors) {
        const auto known = std::ranges::find(kTypes, tensor.scalar_type(), &TypeName::type);
        if (known == kTypes.end()) fail(file, fmt::format("tensor '{}' has a type that safetensors does not know", name));
        const at::Tensor& content = contents.emplace_back(tensor.detach().cpu().contiguous());
        header[name] = {{"dtype", known->name}, {"shape", content.sizes().vec()}, {"data_offsets", {offset, offset + content.nbytes()}}};
        offset += content.nbytes();
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begins at a multiple of eight
    const std::uint64_t length = text.size();
    AtomicFile temporary(file);
    temporary.write(&length, sizeof length);
    temporary.write(text.data(), text.size());
    for (const at::Tensor& content : contents) temporary.write(content.const_data_ptr(), content.nbytes());
    temporary.commit();
}

std::vector<NamedTensor> load_safetensors(const path& file) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) fail(file, fmt::format("cannot open the file: {}", std::strerror(errno)));
    const std::string all((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
    std::uint64_t length = 0;
    if (all.size() < sizeof length) fail(file, fmt::format("{} bytes are too few for a safetensors file", all.size()));
    std::memcpy(&length, all.data(), sizeof length);
    if (length > all.size() - sizeof length)
        fail(file, fmt::format("the header claims {} bytes, the file has {}; it is truncated, or no safetensors file", length, all.size()));
    const json header = json::parse(all.begin() + sizeof length, all.begin() + static_cast<std::ptrdiff_t>(sizeof length + length), nullptr, false);
    if (!header.is_object()) fail(file, "the header is no JSON object; the file is damaged, or no safetensors file");
    const std::string bytes = all.substr(sizeof length + length);
    std::vector<NamedTensor> tensors;
    for (const auto& [name, entry] : header.items())
        if (name != "__metadata__") tensors.emplace_back(name, read_tensor(file, name, entry, bytes));
    return tensors;
}

std::vector<NamedTensor> weights_of(const Model& model) {
    auto weights = model->named_parameters();
    const auto buffers = model->named_buffers();
    weights.insert(weights.end(), buffers.begin(), buffers.end());
    return weights;
}

void load_weights(const path& file, Model& model) {
    auto loaded = load_safetensors(file);
    auto weights = weights_of(model);
    std::vector<std::string> problems;
    for (const auto& [name, tensor] : weights) {
        const auto found = std::ranges::find(loaded, name, &NamedTensor::first);
        if (found == loaded.end())
            problems.push_back(fmt::format("'{}' is missing", name));
        else if (found->second.sizes() != tensor.sizes())
            problems.push_back(fmt::format("'{}' has shape [{}], the model's has [{}]", name, fmt::join(found->second.sizes(), ", "), fmt::join(tensor.sizes(), ", ")));
    }
    for (const auto& [name, tensor] : loaded)
        if (std::ranges::find(weights, name, &NamedTensor::first) == weights.end()) problems.push_back(fmt::format("'{}' is not in the model", name));
    if (!problems.empty()) fail(file, fmt::format("the weights do not fit the model: {}; nothing was loaded", fmt::join(problems, "; ")));
    const at::NoGradGuard no_grad;
    for (auto& [name, tensor] : weights) tensor.copy_(std::ranges::find(loaded, name, &NamedTensor::first)->second);
}

}  // namespace torchbus

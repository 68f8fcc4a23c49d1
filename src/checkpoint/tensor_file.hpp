#pragma once
/// Tensors to and from the bytes of a safetensors file, wherever these go.

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <torchbus/model.hpp>

namespace torchbus {

using ByteSink = std::function<void(const void* bytes, std::size_t count)>;

/// Throws: CheckpointError that begins with `name`, for a type that the format does not know.
void write_tensors(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata, const std::string& name, const ByteSink& sink);

/// The same, as bytes in memory.
std::string bytes_of_tensors(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata, const std::string& name);

/// Whether the bytes were compared with a checksum of all of them.
enum class Checked : std::uint8_t { Not, Already };

/// Of a whole file, in the order in which they lie there; tensors are compared with their own checksums where that was not
/// done already. Throws: CheckpointError that begins with `name`.
std::vector<NamedTensor> tensors_of_file(std::string_view bytes, const std::string& name, Checked checked = Checked::Not);

/// The format's names of types, and back. Throws: CheckpointError that begins with `where`, for a type without a name.
std::string_view scalar_type_name(at::ScalarType type, const std::string& where);
at::ScalarType scalar_type_of(std::string_view name);

/// What of saved tensors does not fit a model's: missing, of another shape, or left over. Empty where all does.
std::vector<std::string> misfits(const std::vector<NamedTensor>& saved, const std::vector<NamedTensor>& own);

/// In words, for a file that is not what it was: whether its header can be read at all, and which tensors it should hold.
std::string damage_in_tensors(std::string_view bytes);

}  // namespace torchbus

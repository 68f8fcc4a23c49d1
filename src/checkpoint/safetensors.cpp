#include <torchbus/checkpoint/safetensors.hpp>

#include <torchbus/checkpoint/atomic_file.hpp>

#include "file.hpp"
#include "safetensors_header.hpp"
#include "tensor_file.hpp"

namespace torchbus {

using std::filesystem::path;

void save_safetensors(const path& file, const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata) {
    AtomicFile temporary(file);
    write_tensors(tensors, metadata, file.string(), [&](const void* bytes, std::size_t count) { temporary.write(bytes, count); });
    temporary.commit();
}

std::vector<NamedTensor> load_safetensors(const path& file) { return tensors_of_file(read_file(file).text(), file.string()); }

std::map<std::string, std::string> metadata_of_safetensors(const path& file) { return parse_safetensors_header(read_file(file).text(), file.string()).metadata; }

}  // namespace torchbus

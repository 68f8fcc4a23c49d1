#include "python_file.hpp"

#include <exception>
#include <fstream>
#include <map>

#include <caffe2/serialize/inline_container.h>
#include <fmt/format.h>
#include <torch/csrc/jit/serialization/pickler.h>
#include <torch/types.h>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/error.hpp>

#include "pickle_reader.hpp"
#include "tensor_file.hpp"
#include "zip_archive.hpp"

namespace torchbus {
namespace {

using caffe2::serialize::PyTorchStreamWriter;
using std::filesystem::path;

constexpr std::string_view kZip = "PK\x03\x04", kPickle = "\x80\x02";  // before 1.6 a bare pickle, of protocol 2

std::string beginning_of(const path& file) {
    std::string bytes(4, '\0');
    std::ifstream stream(file, std::ios::binary);
    stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    bytes.resize(static_cast<std::size_t>(stream.gcount()));
    return bytes;
}

/// The storages of an archive; tensors may share one.
class Storages {
public:
    explicit Storages(ZipArchive& archive) : archive_(archive) {}

    at::Tensor tensor_of(const PickledTensor& pickled) {
        const auto& [storage, offset, shape, stride] = pickled.tensor;
        const at::ScalarType type = scalar_type_of(storage.dtype);
        const at::Tensor& bytes = bytes_of(storage.record);
        if (bytes.nbytes() / c10::elementSize(type) < static_cast<std::size_t>(storage.elements))
            archive_.fail(fmt::format("tensor '{}' has {} bytes, expected {} elements of {}", pickled.path, bytes.nbytes(), storage.elements, storage.dtype));
        return at::empty({0}, at::TensorOptions(type)).set_(bytes.storage(), offset, shape, stride);
    }

private:
    const at::Tensor& bytes_of(const std::string& record) {
        if (const auto known = records_.find(record); known != records_.end()) return known->second;
        const std::string name = "data/" + record;
        at::Tensor bytes = at::empty({static_cast<std::int64_t>(archive_.size_of(name))}, at::TensorOptions(at::kByte));
        archive_.read(name, bytes.mutable_data_ptr());
        return records_.emplace(record, std::move(bytes)).first->second;
    }

    ZipArchive& archive_;
    std::map<std::string, at::Tensor> records_;
};

}  // namespace

bool is_python_file(const path& file) {
    const std::string begins = beginning_of(file);
    return begins == kZip || begins.starts_with(kPickle);
}

PythonFile read_python_file(const path& file) {
    if (beginning_of(file).starts_with(kPickle))
        throw CheckpointError(fmt::format("{}: it is of the format of PyTorch before 1.6; load it in Python and save it again: torch.save(torch.load(...), ...)", file.string()));
    ZipArchive archive(file);
    if (archive.has("constants.pkl"))
        throw CheckpointError(fmt::format("{}: it is a TorchScript module, not a state_dict; it is a model by itself: {{\"kind\": \"torchscript\", \"path\": ...}}", file.string()));
    if (archive.has("byteorder") && archive.read("byteorder") != "little")
        throw CheckpointError(fmt::format("{}: its byte order is not little-endian; load it in Python on this machine and save it again", file.string()));
    PickleContent content = read_pickle(archive.read("data.pkl"), file.string());
    PythonFile read{{}, std::move(content.values)};
    Storages storages(archive);
    for (const PickledTensor& pickled : content.tensors) read.tensors.emplace_back(pickled.path, storages.tensor_of(pickled));
    return read;
}

void write_python_file(const path& file, const std::vector<NamedTensor>& tensors) {
    std::vector<char> bytes;
    // Without tags: torch.load(weights_only=True) would refuse what restores them.
    torch::jit::Pickler pickler([&](const char* from, std::size_t count) { bytes.insert(bytes.end(), from, from + count); }, nullptr, nullptr, nullptr, nullptr, /*tag_aggregates=*/false);
    c10::Dict<std::string, at::Tensor> by_name;
    for (const auto& [name, tensor] : tensors) {
        scalar_type_name(tensor.scalar_type(), fmt::format("{}: tensor '{}'", file.string(), name));
        by_name.insert(name, tensor.detach().cpu().contiguous().clone());  // a storage of its own: a view's would be written whole
    }
    pickler.protocol();
    pickler.pushIValue(by_name);
    pickler.stop();
    AtomicFile target(file);
    // The writer's destructor goes on writing, so what is thrown waits until it is done.
    std::exception_ptr failure;
    PyTorchStreamWriter archive([&](const void* from, std::size_t count) {
        try {
            if (!failure) target.write(from, count);
        } catch (const CheckpointError&) {
            failure = std::current_exception();
        }
        return count;
    });
    archive.writeRecord("data.pkl", bytes.data(), bytes.size());
    archive.writeRecord("byteorder", "little", 6);
    const auto& storages = pickler.tensorData();
    for (std::size_t i = 0; i < storages.size(); ++i) archive.writeRecord(fmt::format("data/{}", i), storages[i].const_data_ptr(), storages[i].nbytes());
    archive.writeEndOfFile();
    if (failure) std::rethrow_exception(failure);
    target.commit();
}

}  // namespace torchbus

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
#include "zip_checksums.hpp"

namespace torchbus {
namespace {

using caffe2::serialize::PyTorchStreamReader, caffe2::serialize::PyTorchStreamWriter;
using std::filesystem::path;

constexpr std::string_view kZip = "PK\x03\x04", kPickle = "\x80\x02";  // before 1.6 a bare pickle, of protocol 2

std::string beginning_of(const path& file) {
    std::string bytes(4, '\0');
    std::ifstream stream(file, std::ios::binary);
    stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    bytes.resize(static_cast<std::size_t>(stream.gcount()));
    return bytes;
}

/// Names the file in what LibTorch's reader throws.
template <class Read>
auto in_file(const path& file, Read read) {
    try {
        return read();
    } catch (const c10::Error& error) {
        const std::string_view what = error.what_without_backtrace();
        throw CheckpointError(fmt::format("{}: the archive is truncated or damaged: {}", file.string(), what.substr(0, what.find(". "))));
    }
}

/// The records of an archive, compared with its checksums. Tensors may share a storage.
class Archive {
public:
    explicit Archive(const path& file) : file_(file), reader_(file.string()), checksums_(zip_checksums(file)) {}

    bool has(const std::string& record) { return reader_.hasRecord(record); }
    std::pair<at::DataPtr, std::size_t> read(const std::string& record) {
        auto [data, size] = reader_.getRecord(record);
        const auto checksum = checksums_.find(record);
        if (checksum == checksums_.end()) fail(fmt::format("its directory does not name {}", record));
        if (checksum->second != 0 && checksum->second != crc32_of({static_cast<const char*>(data.get()), size})) fail(fmt::format("{} is not as it was written", record));
        return {std::move(data), size};
    }
    at::Tensor tensor_of(const PickledTensor& pickled) {
        const auto& [storage, offset, shape, stride] = pickled.tensor;
        const at::ScalarType type = scalar_type_of(storage.dtype);
        const c10::Storage& bytes = storage_of(storage.record);
        if (bytes.nbytes() / c10::elementSize(type) < static_cast<std::size_t>(storage.elements))
            fail(fmt::format("tensor '{}' has {} bytes, expected {} elements of {}", pickled.path, bytes.nbytes(), storage.elements, storage.dtype));
        return at::empty({0}, at::TensorOptions(type)).set_(bytes, offset, shape, stride);
    }

private:
    [[noreturn]] void fail(const std::string& what) const { throw CheckpointError(fmt::format("{}: the archive is truncated or damaged: {}", file_.string(), what)); }
    const c10::Storage& storage_of(const std::string& record) {
        if (const auto known = storages_.find(record); known != storages_.end()) return known->second;
        auto [data, size] = read("data/" + record);
        return storages_.emplace(record, c10::Storage(c10::Storage::use_byte_size_t(), static_cast<std::int64_t>(size), std::move(data), nullptr, false)).first->second;
    }

    const path& file_;
    PyTorchStreamReader reader_;
    std::map<std::string, std::uint32_t> checksums_;
    std::map<std::string, c10::Storage> storages_;
};

std::string_view text_of(const std::pair<at::DataPtr, std::size_t>& record) { return {static_cast<const char*>(record.first.get()), record.second}; }

}  // namespace

bool is_python_file(const path& file) {
    const std::string begins = beginning_of(file);
    return begins == kZip || begins.starts_with(kPickle);
}

PythonFile read_python_file(const path& file) {
    if (beginning_of(file).starts_with(kPickle))
        throw CheckpointError(fmt::format("{}: it is of the format of PyTorch before 1.6; load it in Python and save it again: torch.save(torch.load(...), ...)", file.string()));
    return in_file(file, [&] {
        Archive archive(file);
        if (archive.has("constants.pkl"))
            throw CheckpointError(fmt::format("{}: it is a TorchScript module, not a state_dict; it is a model by itself: {{\"kind\": \"torchscript\", \"path\": ...}}", file.string()));
        if (archive.has("byteorder") && text_of(archive.read("byteorder")) != "little")
            throw CheckpointError(fmt::format("{}: its byte order is not little-endian; load it in Python on this machine and save it again", file.string()));
        const auto pickle = archive.read("data.pkl");
        PickleContent content = read_pickle(text_of(pickle), file.string());
        PythonFile read{{}, std::move(content.values)};
        for (const PickledTensor& pickled : content.tensors) read.tensors.emplace_back(pickled.path, archive.tensor_of(pickled));
        return read;
    });
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

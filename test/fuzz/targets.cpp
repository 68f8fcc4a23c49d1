#include "targets.hpp"

#include <cstdio>
#include <cstdlib>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

#include "../../src/checkpoint/checksum.hpp"
#include "../../src/checkpoint/manifest.hpp"
#include "../../src/checkpoint/pickle_reader.hpp"
#include "../../src/checkpoint/safetensors_header.hpp"

namespace torchbus::fuzz {
namespace {

using nlohmann::json;

void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "fuzz: %s\n", what);
    std::abort();
}

/// Whatever is wrong is said by CheckpointError, which begins with the name that was given.
template <class Read>
void read(Read read) {
    try {
        read();
    } catch (const CheckpointError& error) {
        require(std::string_view(error.what()).starts_with("input: "), "the error does not name the file");
    }
}

void check_manifest(std::string_view bytes) {
    read([&] {
        const Manifest manifest = parse_manifest(bytes, "input");
        require(to_text(manifest) == bytes, "a manifest that was read is written otherwise");
        for (const auto& [name, file] : manifest.files) require(name.find('/') == std::string::npos && name.front() != '.', "a manifest names what is no file of its folder");
    });
}

}  // namespace

/// The bytes as a manifest, and as what its checksum covers: else no mutation would get past that.
void manifest(std::string_view bytes) {
    check_manifest(bytes);
    const json body = json::parse(bytes.begin(), bytes.end(), nullptr, false);
    if (body.is_discarded()) return;
    std::string dumped;
    try {
        dumped = body.dump();
    } catch (const json::exception&) {
        return;  // not UTF-8
    }
    check_manifest(json{{"format", "torchbus checkpoint"}, {"version", kManifestVersion}, {"checksum", checksum_of(dumped)}, {"body", body}}.dump(2) + "\n");
}

void safetensors_header(std::string_view bytes) {
    read([&] {
        const SafetensorsHeader header = parse_safetensors_header(bytes, "input");
        require(header.data_begin <= bytes.size(), "the data begins behind the end");
        std::size_t end = 0;
        for (const TensorEntry& entry : header.tensors) {
            require(entry.begin == end && entry.end >= entry.begin && entry.end <= bytes.size() - header.data_begin, "a tensor lies elsewhere");
            end = entry.end;
            std::size_t elements = 1;
            for (const std::int64_t extent : entry.shape) {
                require(extent >= 0, "an extent is negative");
                elements *= static_cast<std::size_t>(extent);
            }
            require(elements == 0 || (entry.end - entry.begin) % elements == 0, "a shape does not fit its bytes");
        }
    });
}

void pickle(std::string_view bytes) {
    read([&] {
        for (const auto& [path, tensor] : read_pickle(bytes, "input").tensors) {
            require(tensor.shape.size() == tensor.stride.size() && tensor.offset >= 0, "a tensor is described wrongly");
            std::int64_t last = tensor.offset;
            bool empty = false;
            for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
                require(tensor.shape[i] >= 0 && tensor.stride[i] >= 0, "an extent or a stride is negative");
                empty = empty || tensor.shape[i] == 0;
                if (tensor.shape[i] > 1) last += (tensor.shape[i] - 1) * tensor.stride[i];
            }
            require(empty || last < tensor.storage.elements, "a tensor lies outside of its storage");
        }
    });
}

}  // namespace torchbus::fuzz

#pragma once
/// What a checkpoint's folder holds: every file with its size and checksum. It is written last, and has a checksum of its
/// own, so that a folder with a sound manifest and the files it names is whole.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace torchbus {

inline constexpr const char* kManifestName = "manifest.json";
inline constexpr int kManifestVersion = 2;

struct ManifestFile {
    std::uint64_t size_bytes = 0;
    std::string checksum;  ///< see checksum.hpp
};

struct Manifest {
    std::map<std::string, ManifestFile> files;  ///< by name within the folder
    std::string view = "training";              ///< which weights the model part holds
    nlohmann::json about = nlohmann::json::object();  ///< position, reason, versions: for people and tools
};

std::string to_text(const Manifest& manifest);

/// Throws: CheckpointError that begins with `name`, for a text that is no manifest, damaged, of another version, or that
/// names files outside of the folder.
Manifest parse_manifest(std::string_view text, const std::string& name);

}  // namespace torchbus

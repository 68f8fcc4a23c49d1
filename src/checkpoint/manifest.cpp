#include "manifest.hpp"

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "checksum.hpp"

namespace torchbus {
namespace {

using nlohmann::json;
constexpr const char* kFormat = "torchbus checkpoint";

/// A plain name: nothing that leads out of the folder, or to a hidden file.
bool is_file_name(const std::string& name) {
    return !name.empty() && name.front() != '.' && name.find('/') == std::string::npos && name.find('\0') == std::string::npos && name != kManifestName;
}

/// A number with a point in it may be larger than any count.
std::uint64_t count_from(const json& value, const std::string& name, const std::string& what) {
    if (!value.is_number_unsigned()) throw CheckpointError(name, fmt::format("{} is {}, expected a whole number; the file is damaged", what, value.dump()));
    return value;
}

}  // namespace

std::string to_text(const Manifest& manifest) {
    json files = json::object();
    for (const auto& [name, file] : manifest.files) files[name] = {{"size_bytes", file.size_bytes}, {"checksum", file.checksum}};
    const json body = {{"files", std::move(files)}, {"view", manifest.view}, {"about", manifest.about}};
    return json{{"format", kFormat}, {"version", kManifestVersion}, {"checksum", checksum_of(body.dump())}, {"body", body}}.dump(2) + "\n";
}

Manifest parse_manifest(std::string_view text, const std::string& name) {
    const json whole = json::parse(text.begin(), text.end(), nullptr, false);
    if (!whole.is_object() || !whole.contains("format") || whole["format"] != kFormat) throw CheckpointError(name, "the file is truncated, damaged or of another kind");
    try {
        if (const std::uint64_t version = count_from(whole.at("version"), name, "its version"); version != kManifestVersion)
            throw CheckpointError(name, fmt::format("version {} is not known, expected {}; it was written by another torchbus", version, kManifestVersion));
        const json& body = whole.at("body");
        if (whole.at("checksum") != checksum_of(body.dump())) throw CheckpointError(name, "its checksum is not that of its content; the file is damaged");
        // What follows from here on was written so; still nothing of it is trusted.
        Manifest manifest{{}, body.at("view"), body.at("about")};
        for (const auto& [file, described] : body.at("files").items()) {
            if (!is_file_name(file)) throw CheckpointError(name, fmt::format("it names the file '{}', which is no name within the folder", file));
            manifest.files[file] = {count_from(described.at("size_bytes"), name, fmt::format("the size of '{}'", file)), described.at("checksum")};
        }
        // Bits that change neither meaning nor checksum, such as white space, are damage too.
        if (text != to_text(manifest)) throw CheckpointError(name, "it is not as it was written; the file is damaged");
        return manifest;
    } catch (const json::exception& error) {
        throw CheckpointError(name, fmt::format("it is described wrongly: {}; the file is damaged", error.what()));
    }
}

}  // namespace torchbus

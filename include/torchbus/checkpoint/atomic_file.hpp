#pragma once
/// A file that is whole or not there.

#include <cstddef>
#include <filesystem>
#include <string_view>

namespace torchbus {

/// Written under a temporary name beside the target; commit() syncs it, renames it and syncs the folder. Without a
/// commit it is removed again, and a former target is as it was.
/// Throws, all of it: CheckpointError naming the path and what the system said; NotDurableError from commit() once the
/// file is in its place.
class AtomicFile {
public:
    static constexpr const char* kPart = ".part";  ///< what the temporary name ends in
    explicit AtomicFile(const std::filesystem::path& target);
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;
    void write(const void* bytes, std::size_t count);
    void write(std::string_view text) { write(text.data(), text.size()); }
    void commit();

private:
    std::filesystem::path target_, name_;
    int descriptor_ = -1;
    bool committed_ = false;
};

}  // namespace torchbus

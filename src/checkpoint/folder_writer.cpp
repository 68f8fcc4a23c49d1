#include "folder_writer.hpp"

#include <cerrno>
#include <cstring>
#include <regex>
#include <utility>

#include <fmt/format.h>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/checkpoint/disk.hpp>
#include <torchbus/checkpoint/training_state.hpp>
#include <torchbus/error.hpp>

#include "disk_calls.hpp"

namespace torchbus {
namespace {

namespace fs = std::filesystem;
constexpr const char* kUnchanged = "nothing was changed";
constexpr std::string_view kPart = AtomicFile::kPart, kOld = ".old";

[[noreturn]] void fail(const fs::path& where, const char* action, const char* outcome = kUnchanged) {
    throw CheckpointError(fmt::format("{}: cannot {}: {}; {}", where.string(), action, std::strerror(errno), outcome));
}

fs::path hidden(const fs::path& target, std::string_view ending) { return target.parent_path() / fmt::format(".{}{}", target.filename().string(), ending); }

/// What they were to become, step_<n>.
std::vector<fs::path> interrupted_saves_in(const fs::path& folder) {
    std::error_code status;
    std::vector<fs::path> targets;
    static const std::regex interrupted(R"(\.(step_[0-9]+)\.(part|old))");
    std::smatch match;
    for (const auto& entry : fs::directory_iterator(folder, status))
        if (const std::string name = entry.path().filename().string(); std::regex_match(name, match, interrupted)) targets.push_back(folder / match[1].str());
    return targets;
}

}  // namespace

bool remove_folder(const fs::path& folder) {
    std::error_code status;
    for (const auto& entry : fs::directory_iterator(folder, status)) {
        const bool is_folder = entry.is_directory(status) && !entry.is_symlink(status);
        is_folder ? (void)remove_folder(entry.path()) : (void)disk().unlink(entry.path().c_str());
    }
    return disk().rmdir(folder.c_str()) == 0 || errno == ENOENT;
}

void remove_training_state(const fs::path& path) {
    const fs::path going = hidden(path, kPart);
    std::error_code status;
    if (!fs::exists(path, status)) return;
    if (disk().rename(path.c_str(), going.c_str()) != 0 || !remove_folder(going)) fail(path, "delete", "some of it may be left");
}

void bring_back_training_states(const fs::path& folder) {
    std::error_code status;
    for (const fs::path& target : interrupted_saves_in(folder))
        if (!fs::exists(target, status)) disk().rename(hidden(target, kOld).c_str(), target.c_str());
}

void clean_up_training_states(const fs::path& folder) {
    bring_back_training_states(folder);
    for (const fs::path& target : interrupted_saves_in(folder))
        for (const std::string_view ending : {kPart, kOld}) remove_folder(hidden(target, ending));
    for (const char* link : {"latest", "best"}) disk().unlink(hidden(folder / link, kPart).c_str());
}

void point_link_to(const fs::path& checkpoint, const std::string& name) {
    const fs::path folder = checkpoint.has_parent_path() ? checkpoint.parent_path() : fs::path("."), link = folder / name, made = hidden(link, kPart);
    std::error_code status;
    if (const auto there = fs::symlink_status(link, status); fs::exists(there) && !fs::is_symlink(there))
        throw CheckpointError(fmt::format("{}: it is not a link, as the name of the {} checkpoint is to be; move it away, or save into another folder", link.string(), name));
    disk().unlink(made.c_str());
    if (disk().symlink(checkpoint.filename().c_str(), made.c_str()) != 0) fail(made, "make the link");
    if (disk().rename(made.c_str(), link.c_str()) != 0) fail(link, "rename to it");
    if (!sync_folder(folder)) throw NotDurableError(fmt::format("{}: cannot sync the folder: {}; {} points to {}, but may not after a power failure", folder.string(), std::strerror(errno), name, checkpoint.filename().string()));
}

FolderWriter::FolderWriter(const fs::path& target)
    : target_(target), parent_(target.has_parent_path() ? target.parent_path() : fs::path(".")), made_(hidden(target, kPart)) {
    make_durable_folder(parent_);
    if (!remove_folder(made_)) fail(made_, "remove what an interrupted save has left");
    if (disk().mkdir(made_.c_str(), 0777) != 0) fail(made_, "make the folder");
}

FolderWriter::~FolderWriter() {
    if (descriptor_ >= 0) disk().close(descriptor_);
    if (!made_.empty()) remove_folder(made_);
}

void FolderWriter::begin_file(const std::string& name) {
    name_ = name;
    checksum_ = std::make_unique<Checksum>();
    size_ = 0;
    descriptor_ = create_file(made_ / name);
    if (descriptor_ < 0) fail(made_ / name, "create the file");
}

void FolderWriter::write(const void* bytes, std::size_t count) {
    checksum_->update(bytes, count);
    size_ += count;
    if (!write_all(descriptor_, bytes, count)) fail(made_ / name_, "write");
}

void FolderWriter::end_file() {
    if (!sync_file(descriptor_)) fail(made_ / name_, "sync");
    if (disk().close(std::exchange(descriptor_, -1)) != 0 && errno != EINTR) fail(made_ / name_, "close");
    files_[name_] = {size_, checksum_->hex()};
}

/// One step where the name is free or the file system can exchange two names; where it cannot, the old folder is moved
/// aside first, and clean_up_training_states() knows of it.
void FolderWriter::put_in_place() {
    std::error_code status;
    if (!fs::exists(target_, status)) {
        if (disk().rename(made_.c_str(), target_.c_str()) != 0) fail(target_, "rename to it");
        return;
    }
    if (disk().exchange(made_.c_str(), target_.c_str()) == 0) return;
    if (errno != EINVAL && errno != ENOSYS) fail(target_, "exchange it for the new one");
    const fs::path aside = hidden(target_, kOld);
    if (!remove_folder(aside)) fail(aside, "remove what an interrupted save has left");
    if (disk().rename(target_.c_str(), aside.c_str()) != 0) fail(target_, "move the old folder aside");
    if (disk().rename(made_.c_str(), target_.c_str()) != 0) {
        const int error = errno;
        disk().rename(aside.c_str(), target_.c_str());
        errno = error;
        fail(target_, "rename to it");
    }
    disk().rename(aside.c_str(), made_.c_str());
}

void FolderWriter::commit(Manifest manifest) {
    manifest.files = files_;
    begin_file(kManifestName);
    write(to_text(manifest));
    end_file();
    if (!sync_folder(made_)) fail(made_, "sync the folder");
    put_in_place();
    if (sync_folder(parent_)) return;
    made_.clear();  // the replaced folder stays: it may be the one that outlasts
    throw NotDurableError(fmt::format("{}: cannot sync the folder: {}; {} was written, but may not outlast a power failure", parent_.string(), std::strerror(errno),
                                      target_.filename().string()));
}

}  // namespace torchbus

#include <torchbus/stream/spool.hpp>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include <boost/crc.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

constexpr std::size_t kChecksumDigits = 8;
constexpr std::int64_t kWorthDeleting = 64 << 10;  // a smaller file goes on to be written when all of it is removed

std::string checksum_text(std::string_view record) {
    boost::crc_32_type checksum;
    checksum.process_bytes(record.data(), record.size());
    return fmt::format("{:08x}", checksum.checksum());
}

/// Of "CHECKSUM RECORD"; nothing where they do not fit.
std::optional<std::string> record_of(std::string_view line) {
    if (line.size() <= kChecksumDigits || line[kChecksumDigits] != ' ') return std::nullopt;
    const std::string_view record = line.substr(kChecksumDigits + 1);
    return checksum_text(record) == line.substr(0, kChecksumDigits) ? std::optional(std::string(record)) : std::nullopt;
}

[[noreturn]] void fail_at(const std::filesystem::path& path, const char* doing) {
    throw DataError(fmt::format("{}: cannot {} it: {}", path.string(), doing, std::strerror(errno)));
}

/// So that it outlasts a power failure.
void write_durably(const std::filesystem::path& path, std::string_view text) {
    const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor < 0) fail_at(path, "open");
    bool is_written = true;
    while (is_written && !text.empty()) {
        const ssize_t count = ::write(descriptor, text.data(), text.size());
        if (count > 0) text.remove_prefix(static_cast<std::size_t>(count));
        is_written = count > 0 || (count < 0 && errno == EINTR);
    }
    is_written = is_written && ::fsync(descriptor) == 0;
    const int why = errno;
    if (::close(descriptor) == 0 && is_written) return;
    if (!is_written) errno = why;
    fail_at(path, "write");
}

void let_go(int* descriptor) {
    ::close(*descriptor);
    delete descriptor;  // NOLINT
}

std::unique_ptr<int, void (*)(int*)> locked(const std::filesystem::path& folder) {
    std::error_code told_when_it_is_opened;
    std::filesystem::create_directories(folder, told_when_it_is_opened);
    const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) fail_at(folder, "open");
    std::unique_ptr<int, void (*)(int*)> lock(new int(descriptor), let_go);
    if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        throw DataError(fmt::format("{}: another run sends what is in this folder; give each run that is under way a folder of its own", folder.string()));
    return lock;
}

}  // namespace

Spool::Spool(SpoolOptions options) : options_(std::move(options)), lock_(locked(options_.folder)) {
    options_.file_bytes = std::clamp<std::int64_t>(options_.file_bytes, 1, std::max<std::int64_t>(1, options_.max_bytes / 4));
    find_files();
    read_place();
}

Spool::~Spool() {
    writing_.reset();
    std::error_code they_stay;
    if (waiting_bytes() == 0)
        for (const auto& [number, size] : files_) std::filesystem::remove(path_of(number), they_stay);
}

std::filesystem::path Spool::path_of(std::int64_t file) const { return options_.folder / fmt::format("{:012}.records", file); }

void Spool::find_files() {
    for (const auto& entry : std::filesystem::directory_iterator(options_.folder)) {
        const std::string name = entry.path().stem().string();
        std::int64_t number = 0;
        const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
        if (entry.path().extension() == ".records" && error == std::errc() && end == name.data() + name.size()) files_[number] = static_cast<std::int64_t>(entry.file_size());
    }
}

void Spool::read_place() {
    std::ifstream stream(options_.folder / "place.json");
    const auto written = nlohmann::json::parse(stream, nullptr, /*allow_exceptions=*/false);
    if (written.is_object()) {
        read_ = {written.value("file", std::int64_t{0}), written.value("offset", std::int64_t{0})};
        note_ = written.value("note", std::string());
    }
    // What is written goes into a file of a new number, so that a place is never one of an older file of that name.
    last_ = std::max(read_.file, files_.empty() ? 0 : files_.rbegin()->first);
    delete_read_files();
}

void Spool::write_place() const {
    const auto path = options_.folder / "place.json", part = options_.folder / "place.json.part";
    write_durably(part, nlohmann::json{{"file", read_.file}, {"offset", read_.offset}, {"note", note_}}.dump() + '\n');
    if (std::rename(part.c_str(), path.c_str()) != 0) fail_at(path, "replace");
    if (::fsync(*lock_) != 0 && errno != EINVAL) fail_at(options_.folder, "sync");  // EINVAL: a file system that knows no such thing
}

std::int64_t Spool::total_bytes() const {
    return std::accumulate(files_.begin(), files_.end(), std::int64_t{0}, [](std::int64_t sum, const auto& file) { return sum + file.second; });
}

bool Spool::append(std::string_view record) {
    const std::lock_guard lock(mutex_);
    const std::string line = fmt::format("{} {}\n", checksum_text(record), record);
    const auto size = static_cast<std::int64_t>(line.size());
    if (total_bytes() + size > options_.max_bytes) return false;
    if (writing_ && files_[last_] > 0 && files_[last_] + size > options_.file_bytes) writing_.reset();
    if (!writing_) {
        auto file = std::make_unique<LineFile>(LineFileOptions{.path = path_of(last_ + 1), .max_bytes = std::numeric_limits<std::int64_t>::max(), .keep = 0});
        file->open(/*to_add=*/true);
        writing_ = std::move(file);
        files_[++last_] = 0;
    }
    writing_->write(line);
    files_[last_] += size;
    return true;
}

std::vector<std::string> Spool::oldest(std::size_t most, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> records;
    ends_.clear();
    std::int64_t damaged = 0;
    for (auto file = files_.lower_bound(read_.file); file != files_.end(); ++file) {
        Place place{file->first, file->first == read_.file ? read_.offset : 0, damaged};
        if (read_file(place, records, most, bytes)) return records;
        damaged = place.damaged;
        if (!records.empty()) continue;
        pass(place);
        damaged = 0;
    }
    if (records.empty()) delete_read_files();
    return records;
}

bool Spool::read_file(Place& place, std::vector<std::string>& records, std::size_t most, std::size_t bytes) {
    std::ifstream stream(path_of(place.file), std::ios::binary);
    if (!stream && errno != ENOENT) fail_at(path_of(place.file), "read");  // it may be read later, so nothing of it is passed over
    stream.seekg(place.offset);
    std::size_t taken = 0;
    for (const std::string& record : records) taken += record.size();
    for (std::string line; std::getline(stream, line);) {
        if (stream.eof()) {  // a line that was torn
            ++place.damaged;
            break;
        }
        place.offset += static_cast<std::int64_t>(line.size() + 1);
        auto record = record_of(line);
        if (!record) {
            ++place.damaged;
            continue;
        }
        taken += record->size();
        records.push_back(std::move(*record));
        ends_.push_back(place);
        if (records.size() >= most || taken >= bytes) return true;
    }
    place.offset = std::max(place.offset, files_[place.file]);
    return false;
}

void Spool::pass(const Place& place) {
    read_ = place;
    damaged_ += std::exchange(read_.damaged, 0);
}

void Spool::remove(std::size_t count, std::string_view note) {
    const std::lock_guard lock(mutex_);
    if (count > 0) pass(ends_.at(count - 1));
    ends_.clear();
    note_ = note;
    write_place();
    delete_read_files();
}

void Spool::delete_read_files() {
    std::error_code it_stays;
    while (!files_.empty()) {
        const auto [number, size] = *files_.begin();
        const bool is_read = number < read_.file || (number == read_.file && read_.offset >= size), is_written = writing_ && number == last_;
        if (!is_read || (is_written && size < kWorthDeleting)) return;
        if (is_written) writing_.reset();
        std::filesystem::remove(path_of(number), it_stays);
        files_.erase(number);
    }
}

std::string Spool::note() const {
    const std::lock_guard lock(mutex_);
    return note_;
}

std::int64_t Spool::waiting_bytes() const {
    const std::lock_guard lock(mutex_);
    std::int64_t bytes = 0;
    for (const auto& [number, size] : files_)
        if (number >= read_.file) bytes += number == read_.file ? std::max<std::int64_t>(0, size - read_.offset) : size;
    return bytes;
}

std::int64_t Spool::damaged() const {
    const std::lock_guard lock(mutex_);
    return damaged_;
}

}  // namespace torchbus

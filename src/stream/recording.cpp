#include "recording.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <fstream>
#include <functional>
#include <map>
#include <thread>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/error.hpp>
#include <torchbus/stream/format.hpp>

#include "../json_text.hpp"
#include "numbered_file.hpp"

namespace torchbus {
namespace {

using nlohmann::json;
using Path = std::filesystem::path;

constexpr std::int64_t kMostFiles = 100'000;
// How long is looked for what is moved aside meanwhile: the first file, and a name that is free until the next file is begun.
constexpr std::chrono::milliseconds kUntilFound{10'000}, kUntilThere{100};

/// What makes a line none that a writer has written; empty where nothing does. To parse each would take several times as long.
class LineCheck {
public:
    explicit LineCheck(std::string_view line) : line_(line) {}
    std::string fault() {
        if (!is_one_object()) return twice_.empty() ? "it is not one JSON object from its beginning to its end" : fmt::format("the key '{}' stands twice in one object", twice_);
        if (!is_plain_ && !is_parsed()) return "it is no JSON, or a key stands twice in one object";
        return {};
    }

private:
    /// Whether its brackets close at its end and nowhere before, and no key is in one of them twice.
    bool is_one_object() {
        if (line_.front() != '{') return false;
        for (std::size_t at = 0; at < line_.size(); ++at) {
            const char c = line_[at];
            if (static_cast<unsigned char>(c) < 0x20) return false;
            if (c == '"') at = end_of_text(at);
            else if (c == '{' || c == '[') begins_.push_back(keys_.size());
            else if (c == '}' || c == ']') {
                if (!close()) return false;
                if (begins_.empty()) return at + 1 == line_.size();
            }
        }
        return false;
    }
    bool close() {
        const auto first = keys_.begin() + static_cast<std::ptrdiff_t>(begins_.back());
        std::sort(first, keys_.end());
        const auto twice = std::adjacent_find(first, keys_.end());
        if (twice != keys_.end()) twice_ = *twice;
        keys_.erase(first, keys_.end());
        begins_.pop_back();
        return twice_.empty();
    }
    /// Where the text that begins there has its other quote. Of a key, the text is kept.
    std::size_t end_of_text(std::size_t begin) {
        std::size_t end = begin + 1;
        bool is_escaped = false;
        for (; end < line_.size() && line_[end] != '"' && static_cast<unsigned char>(line_[end]) >= 0x20; ++end) {
            if (line_[end] == '\\') is_escaped = true, ++end;
            else if (static_cast<unsigned char>(line_[end]) >= 0x80) is_plain_ = false;
        }
        if (end >= line_.size() || line_[end] != '"') return end - 1;  // what is no end of a text is looked at by whoever asks
        const std::size_t next = line_.find_first_not_of(' ', end + 1);
        if (next == std::string_view::npos || line_[next] != ':') return end;
        keys_.push_back(line_.substr(begin + 1, end - begin - 1));
        if (is_escaped) is_plain_ = false;
        return end;
    }
    bool is_parsed() const {
        try {
            json_of_text(std::string(line_), "");
            return true;
        } catch (const ConfigError&) {
            return false;
        }
    }

    std::string_view line_, twice_ = {};
    std::vector<std::string_view> keys_ = {};  ///< of the objects that are open
    std::vector<std::size_t> begins_ = {};     ///< of each bracket that is open, in keys_
    bool is_plain_ = true;                     ///< nothing but ASCII, and no key with an escape
};

/// The text of a member of the envelope, before the data; nothing where it is not there, or has escapes.
std::string_view envelope_member(std::string_view line, std::string_view key) {
    const std::string_view head = line.substr(0, line.find(R"("data":)"));
    const std::size_t found = head.find(key);
    if (found == std::string_view::npos) return {};
    const std::string_view text = head.substr(found + key.size());
    const std::size_t end = text.find('"');
    return end == std::string_view::npos || text.substr(0, end).find('\\') != std::string_view::npos ? std::string_view() : text.substr(0, end);
}

/// What follows the last point of a name: events.3 → 3, events.rank1 → 1 for "rank". Nothing where it is no number.
std::optional<std::int64_t> number_at_end(const std::string& name, std::string_view word) {
    const std::size_t point = name.rfind('.');
    if (point == std::string::npos || !std::string_view(name).substr(point + 1).starts_with(word)) return std::nullopt;
    std::int64_t number = 0;
    const char* begin = name.data() + point + 1 + word.size();
    const auto [end, error] = std::from_chars(begin, name.data() + name.size(), number);
    return error == std::errc() && end == name.data() + name.size() && number > 0 ? std::optional(number) : std::nullopt;
}

/// The file without its number, and the number, of one that was moved aside: events.3.jsonl where events.jsonl is there, too.
std::optional<std::pair<Path, std::int64_t>> moved_aside(const Path& file) {
    const std::string stem = file.stem().string();
    const auto number = number_at_end(stem, "");
    Path base = file;
    if (!number || !std::filesystem::is_regular_file(base.replace_filename(stem.substr(0, stem.rfind('.')) + file.extension().string()))) return std::nullopt;
    return std::pair(base, *number);
}

/// Its beginning, where it is long; nothing where it is not whole (yet).
std::optional<std::string> first_line_of(const Path& file) {
    std::string line(64U << 10, '\0');
    std::ifstream stream(file, std::ios::binary);
    stream.read(line.data(), static_cast<std::streamsize>(line.size()));
    const bool is_all = stream.gcount() < static_cast<std::streamsize>(line.size());
    line.resize(static_cast<std::size_t>(stream.gcount()));
    const std::size_t end = line.find('\n');
    return end == std::string::npos && is_all ? std::nullopt : std::optional(line.substr(0, end));
}

/// The run that a file ends with; nothing where no whole line is in its last 64 MiB.
std::string last_run_of(const Path& file) {
    constexpr std::int64_t kMostBytes = 64 << 20;
    std::ifstream stream(file, std::ios::binary | std::ios::ate);
    const std::int64_t size = std::max<std::int64_t>(stream.tellg(), 0), most = std::min(size, kMostBytes);
    for (std::int64_t length = 64 << 10;; length *= 16) {
        length = std::min(length, most);
        std::string text(static_cast<std::size_t>(length), '\0');
        stream.seekg(size - length).read(text.data(), static_cast<std::streamsize>(text.size()));
        const std::size_t end = text.rfind('\n'), before = end == std::string::npos || end == 0 ? std::string::npos : text.rfind('\n', end - 1);
        if (before != std::string::npos) return std::string(envelope_member(std::string_view(text).substr(before + 1), R"("run":")"));
        if (length >= most) return end == std::string::npos || length < size ? std::string() : std::string(envelope_member(text, R"("run":")"));
    }
}

bool begins(std::string_view line, std::string_view how) { return line.find(R"("type":"torchbus.stream_start")") != std::string_view::npos && line.find(how) != std::string_view::npos; }
bool begins_anew(std::string_view line) { return begins(line, R"("resumed":false)"); }

/// The number of the file that the recording begins with, which ends with the file `last`.
std::int64_t first_number(const Path& base, std::int64_t last) {
    std::int64_t number = last;
    for (std::string first = first_line_of(numbered_file(base, number)).value_or(""); number < kMostFiles; ++number) {
        const Path older = numbered_file(base, number + 1);
        const std::string_view run = envelope_member(first, R"("run":")");
        if (begins_anew(first) || !std::filesystem::is_regular_file(older)) break;
        if (const std::string before = last_run_of(older); !first.empty() && (before.empty() || (before != run && !begins(first, R"("resumed":true)")))) break;
        first = first_line_of(older).value_or("");
    }
    return number;
}

/// Whether it holds, or comes to hold in that time.
bool holds_within(std::chrono::milliseconds patience, const std::function<bool()>& condition) {
    const auto end = std::chrono::steady_clock::now() + patience;
    while (!condition()) {
        if (std::chrono::steady_clock::now() >= end) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
}
bool is_there_soon(const Path& path) { return holds_within(kUntilThere, [&] { return std::filesystem::exists(path); }); }

Path recording_in(const Path& folder) {
    if (is_there_soon(folder / "events.jsonl")) return folder / "events.jsonl";
    std::vector<Path> found;
    std::error_code unreadable;
    for (const auto& entry : std::filesystem::directory_iterator(folder, unreadable)) {
        if (!entry.is_regular_file() || entry.path().extension() != ".jsonl" || moved_aside(entry.path()) || number_at_end(entry.path().stem().string(), "rank")) continue;
        if (view_of(first_line_of(entry.path()).value_or("") + "\n")) found.push_back(entry.path());
    }
    std::ranges::sort(found);
    if (found.size() == 1) return found.front();
    if (found.empty()) throw ConfigError(fmt::format("{}: there is no recorded run in this folder; give the file that event_file wrote, e.g. events.jsonl", folder.string()));
    std::vector<std::string> names;
    for (const Path& file : found) names.push_back(file.string());
    throw ConfigError(fmt::format("{}: there are {} recorded runs in this folder; give one of {}", folder.string(), found.size(), fmt::join(names, ", ")));
}

}  // namespace

RecordedMessage::RecordedMessage(std::string_view line, std::string file, std::int64_t number) : file_(std::move(file)), number_(number) {
    if (line.ends_with('\r')) line.remove_suffix(1);
    view_.line = line;
    if (!is_shallow(line, kDeepestMessage)) refuse(fmt::format("the line is nested deeper than {} levels", kDeepestMessage));
    if (line.empty()) refuse("the line is empty");
    if (const std::string fault = LineCheck(line).fault(); !fault.empty()) refuse("the line is damaged: " + fault);
    const auto view = view_of(line);
    run_ = envelope_member(line, R"("run":")");
    if (!view || !view->data.starts_with('{') || run_.empty()) refuse("this is no message as event_file writes them; give the file as it was written");
    view_ = *view;
}

void RecordedMessage::refuse(std::string_view why) const {
    throw DataError(fmt::format("{}: {} ({} bytes); delete the line to read the others", where(), why, view_.line.size()));
}

std::string RecordedMessage::where() const { return fmt::format("{}:{}", file_, number_); }

const json& RecordedMessage::data() const {
    if (!data_.is_null()) return data_;
    json parsed = json::parse(view_.data, nullptr, false);
    if (!parsed.is_object()) refuse("the line is damaged: its data is no JSON");
    return data_ = std::move(parsed);
}

std::optional<StreamNumbers> RecordedMessage::numbers() const {
    if (view_.name != "numbers") return std::nullopt;
    auto read = numbers_of(view_);
    if (!read) refuse("the line is damaged: its numbers cannot be read");
    return read;
}

Recording::Recording(const Path& given) : base_(given) {
    if (!is_there_soon(given)) throw ConfigError(fmt::format("{}: there is no such file or folder; give the file that event_file wrote, e.g. events.jsonl", given.string()));
    if (std::filesystem::is_directory(given)) base_ = recording_in(given);
    path_ = base_;
    if (auto found = moved_aside(path_)) std::tie(base_, last_number_) = std::move(*found);
    // Files may be moved on while they are looked for: it is begun with one that is still the first once it is open.
    const auto first = [&] { return std::filesystem::is_regular_file(path_) ? first_number(base_, last_number_) : last_number_; };
    const bool is_begun = holds_within(kUntilFound, [&] {
        const std::int64_t number = first();
        auto lines = LineSource::if_there(numbered_file(base_, number));
        if (!lines || number != first() || !lines->is_file(numbered_file(base_, number))) return false;
        begin_with(std::move(*lines));
        return true;
    });
    if (!is_begun) throw DataError(fmt::format("{}: its files are moved aside faster than they can be found; give event_file a larger max_mib", path_.string()));
}

void Recording::begin_with(LineSource lines) {
    lines_ = std::move(lines);
    ++files_;
    was_left_ = false;
}

const RecordedMessage* Recording::next() {
    message_.reset();
    while (!is_over_) {
        const auto line = lines_->next();
        if (!line) {
            if (!is_at_end()) continue;
            return nullptr;
        }
        if (!damage_.empty()) throw DataError(std::exchange(damage_, {}));
        const auto length = static_cast<std::int64_t>(line->size());
        try {
            return &message_.emplace(*line, lines_->path().string(), lines_->number());
        } catch (const DataError& error) {
            if (!lines_->is_at_end()) throw;
            damage_ = error.what();
            damaged_bytes_ = length;
        }
    }
    return nullptr;
}

/// Whether there is nothing more; else it is read on, in a newer file, or in this one, of which the last lines may have been written
/// before it was moved aside and after it had been read.
bool Recording::is_at_end() {
    torn_bytes_ = damage_.empty() ? lines_->rest_bytes() : damaged_bytes_;
    if (lines_->is_file(path_)) return true;
    return std::exchange(was_left_, true) && !go_on();
}

/// Files are found by what they are, not by their names: another may be moved aside at any time, so that for a moment a name is free.
/// Where this one has been deleted meanwhile, the oldest that is there follows.
bool Recording::go_on() {
    const auto is_there = [&](std::int64_t number) { return std::filesystem::exists(numbered_file(base_, number)); };
    std::int64_t number = 1;
    while (number < kMostFiles && !lines_->is_file(numbered_file(base_, number)) && (is_there(number) || is_there(number + 1))) ++number;
    const Path newer = numbered_file(base_, std::max(number - 1, last_number_));
    const auto first = std::filesystem::is_regular_file(newer) ? first_line_of(newer) : std::nullopt;
    if (!first) {  // it is being moved or begun at this moment
        std::error_code gone;
        if (const auto bytes = std::filesystem::file_size(newer, gone); !gone && torn_bytes_ == 0) torn_bytes_ = static_cast<std::int64_t>(bytes);
        return false;
    }
    auto following = LineSource::if_there(newer);
    // All are moved on from the oldest to the newest: where this one is still where it was found, so was the one before it.
    if (!following || (is_there(number) && !lines_->is_file(numbered_file(base_, number)))) return false;
    is_over_ = begins_anew(*first);
    if (is_over_) return false;
    if (!damage_.empty()) throw DataError(damage_);
    if (torn_bytes_ > 0) throw DataError(fmt::format("{}:{}: the file ends in the middle of a line, and another one follows; delete the line to read on", lines_->path().string(), lines_->number() + 1));
    begin_with(std::move(*following));
    return true;
}

std::set<Path> files_moved_with(const Path& path) {
    const auto moved = moved_aside(path);
    const Path base = std::filesystem::weakly_canonical(std::filesystem::absolute(moved ? moved->first : path));
    const std::string stem = base.stem().string();
    std::set<Path> files{base};
    std::error_code unreadable;
    for (const auto& entry : std::filesystem::directory_iterator(base.parent_path(), unreadable)) {
        const std::string its = entry.path().stem().string();
        if (number_at_end(its, "") && entry.path().extension() == base.extension() && its.substr(0, its.rfind('.')) == stem) files.insert(entry.path());
    }
    return files;
}

std::vector<Path> ranks_beside(const Path& file) {
    std::map<std::int64_t, Path> found;
    const std::string stem = file.stem().string();
    const Path folder = file.has_parent_path() ? file.parent_path() : Path(".");
    std::error_code unreadable;
    for (const auto& entry : std::filesystem::directory_iterator(folder, unreadable)) {
        const std::string its = entry.path().stem().string();
        const auto rank = number_at_end(its, "rank");
        if (rank && entry.path().extension() == file.extension() && its.substr(0, its.rfind('.')) == stem) found[*rank] = Path(file).replace_filename(entry.path().filename());
    }
    std::vector<Path> files;
    for (auto& [rank, its] : found) files.push_back(std::move(its));
    return files;
}

}  // namespace torchbus

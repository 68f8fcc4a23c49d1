#include <langinfo.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <clocale>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "../stream/json_member.hpp"
#include "recorded_commands.hpp"
#include "run_view.hpp"
#include "shown_text.hpp"
#include "stream_client.hpp"

namespace torchbus::cli {
namespace {

using namespace std::chrono_literals;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

volatile std::sig_atomic_t ended_by = 0;   // the signal
volatile std::sig_atomic_t has_new_size = 0;

void on_signal(int signal) {
    if (signal == SIGWINCH) has_new_size = 1;
    else ended_by = signal;
}

void listen_to_signals() {
    struct sigaction action = {};
    action.sa_handler = on_signal;  // without SA_RESTART: what waits wakes up
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGWINCH}) ::sigaction(signal, &action, nullptr);
}

double seconds_now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

ViewSize size_of_terminal() {
    ViewSize size{.is_utf8 = std::string_view(::nl_langinfo(CODESET)) == "UTF-8"};
    winsize found = {};
    if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &found) == 0 && found.ws_col > 0 && found.ws_row > 0) size.columns = found.ws_col, size.rows = found.ws_row;
    size.rows = size.rows > 1 ? size.rows - 1 : 1;  // the cursor stands in the last one
    size.columns = size.columns > 1 ? size.columns - 1 : 1;
    return size;
}

std::string token_of(const WatchOptions& options) {
    std::string token;
    if (!options.token_file.empty()) {
        std::ifstream file(options.token_file);
        if (!std::getline(file, token)) throw ConfigError(fmt::format("{}: there is no token to read; give the file that event_server reads its token from", options.token_file.string()));
    } else if (const char* given = std::getenv("TORCHBUS_TOKEN")) {
        token = given;
    }
    if (token.ends_with('\r')) token.pop_back();
    return token;
}

/// Where messages come from. `next` waits no longer than it is told.
class MessageSource {
public:
    virtual ~MessageSource() = default;
    /// Calls `take` with all that is there. Returns whether there was something.
    virtual bool read(milliseconds at_most, const std::function<void(const RecordedMessage&)>& take) = 0;
    /// What there is to say of the source itself; empty: nothing.
    virtual std::string trouble() const { return {}; }
};

constexpr int kMostAtOnce = 20'000;  // then what was read is drawn

class FileSource final : public MessageSource {
public:
    explicit FileSource(const std::string& path) : path_(path), recording_(std::make_unique<Recording>(path)) {}
    bool read(milliseconds at_most, const std::function<void(const RecordedMessage&)>& take) override {
        for (int count = 0; count < kMostAtOnce; ++count) {
            const RecordedMessage* message = recording_->next();
            if (!message && recording_->is_over()) {
                recording_ = std::make_unique<Recording>(path_);
                continue;
            }
            if (!message && count == 0) ::poll(nullptr, 0, static_cast<int>(at_most.count()));
            if (!message) return count > 0;
            take(*message);
        }
        return true;
    }

private:
    std::string path_;
    std::unique_ptr<Recording> recording_;
};

class ServerSource final : public MessageSource {
public:
    ServerSource(const std::string& address, const std::string& token) : address_(address), client_(address, request(token)) {}
    bool read(milliseconds at_most, const std::function<void(const RecordedMessage&)>& take) override {
        for (int count = 0; count < kMostAtOnce; ++count) {
            const auto line = client_.next(count == 0 ? at_most : 0ms);
            if (!line) return count > 0;
            if (line->starts_with(R"({"error")")) throw ConfigError(fmt::format("{}: {}", address_, refusal_of(*line)));
            take(RecordedMessage(*line, address_, ++lines_));
        }
        return true;
    }
    std::string trouble() const override { return client_.trouble().empty() ? "" : fmt::format("no connection to {}: {}; trying again", address_, client_.trouble()); }

private:
    static std::string request(const std::string& token) {
        nlohmann::json wanted = {{"every", "1s"}, {"events", {"stream_start", "run_configured", "*_run_start", "*_run_end", "run_closed", "run_failed", "numbers", "accounting", "train_step_end", "train_epoch_*", "eval_epoch_*", "decision_taken",
                                                              "checkpoint_saved", "rolled_back", "subscriber_failed", "option_changed", "optimizer_step_skipped"}}};
        if (!token.empty()) wanted["token"] = token;
        return wanted.dump();
    }
    static std::string refusal_of(const std::string& line) {
        const auto said = nlohmann::json::parse(line, nullptr, false);
        return !text_member(said, "error").empty() ? terminal_text(text_member(said, "error")) + (line.find("token") == std::string::npos ? "" : " (--token-file, or TORCHBUS_TOKEN)") : "it refuses";
    }
    std::string address_;
    StreamClient client_;
    std::int64_t lines_ = 0;
};

/// Draws in place, and leaves the terminal as it was.
class Screen {
public:
    Screen() { write("\x1b[?25l\x1b[?7l"); }  // no cursor, and what is too wide is cut, not wrapped
    ~Screen() { write("\x1b[?7h\x1b[?25h"); }
    void draw(const std::vector<std::string>& lines, bool anew) {
        std::string text = anew ? "\x1b[H\x1b[2J" : drawn_ > 0 ? fmt::format("\x1b[{}A\r", drawn_) : "\r";
        for (const std::string& line : lines) text += line + "\x1b[K\n";
        drawn_ = lines.size();
        write(text + "\x1b[J");
    }

private:
    static void write(std::string_view text) {
        while (!text.empty()) {
            const ssize_t count = ::write(STDOUT_FILENO, text.data(), text.size());
            if (count < 0 && errno == EINTR) continue;
            if (count <= 0) return;
            text.remove_prefix(static_cast<std::size_t>(count));
        }
    }
    std::size_t drawn_ = 0;
};

std::vector<std::string> lines_to_draw(const RunView& view, const MessageSource& source, bool is_live) {
    ViewSize size = size_of_terminal();
    const std::string trouble = view.is_over() ? "" : source.trouble();
    if (!trouble.empty() && size.rows > 1) --size.rows;
    auto lines = view.lines(size, is_live ? std::optional(seconds_now()) : std::nullopt);
    if (!trouble.empty()) lines.push_back(shortened(terminal_text(trouble), size.columns));
    return lines;
}

void watch_on_terminal(MessageSource& source) {
    constexpr milliseconds kPace = 250ms;
    RunView view;
    Screen screen;
    auto next_draw = steady_clock::now();
    for (bool has_more = true; ended_by == 0;) {
        has_more = source.read(100ms, [&](const RecordedMessage& message) { view.add(message); });
        const bool is_last = view.is_over() && !has_more;
        if (steady_clock::now() < next_draw && !is_last) continue;
        const bool anew = has_new_size != 0;
        has_new_size = 0;
        screen.draw(lines_to_draw(view, source, true), anew);
        next_draw = steady_clock::now() + kPace;
        if (is_last) return;
    }
}

/// A line for what happens seldom.
void watch_without_terminal(MessageSource& source) {
    RunView view;
    std::string trouble;
    for (bool has_more = true; ended_by == 0 && std::cout && !(view.is_over() && !has_more);) {
        has_more = source.read(200ms, [&](const RecordedMessage& message) {
            if (!view.add(message)) return;
            if (const std::string line = view.line_of(message); !line.empty()) std::cout << line << '\n';
        });
        std::cout.flush();
        if (const std::string now = source.trouble(); now != trouble && !view.is_over()) {
            if (!now.empty()) std::cerr << "torchbus: " << now << '\n';
            trouble = now;
        }
    }
}

/// What was there when it was asked for: until messages are younger than that, or none comes.
void print_once(MessageSource& source) {
    RunView view;
    const double asked = seconds_now();
    for (auto quiet_since = steady_clock::now(); steady_clock::now() - quiet_since < 300ms && view.newest() < asked && ended_by == 0;)
        if (source.read(100ms, [&](const RecordedMessage& message) { view.add(message); })) quiet_since = steady_clock::now();
    ViewSize size = size_of_terminal();
    if (::isatty(STDOUT_FILENO) == 0) size.rows = 200;
    for (const std::string& line : view.lines(size, view.is_over() ? std::nullopt : std::optional(seconds_now()))) std::cout << line << '\n';
}

}  // namespace

int watch_run(const WatchOptions& options) {
    std::setlocale(LC_CTYPE, "");
    std::unique_ptr<MessageSource> source;
    if (is_stream_address(options.run)) source = std::make_unique<ServerSource>(options.run, token_of(options));
    else source = std::make_unique<FileSource>(options.run);
    listen_to_signals();
    if (options.once) print_once(*source);
    else if (::isatty(STDOUT_FILENO) != 0) watch_on_terminal(*source);
    else watch_without_terminal(*source);
    return ended_by == 0 || ended_by == SIGINT ? 0 : 128 + ended_by;
}

}  // namespace torchbus::cli

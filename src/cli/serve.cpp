// The dashboard of recorded runs, and of those that are being recorded.
#include <csignal>
#include <cstdio>
#include <filesystem>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/stream/followed_recordings.hpp>
#include <torchbus/stream/stream_server.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {
namespace {

/// Blocks the signals that end the program in all threads begun from here on, and waits for one of them.
class Interruption {
public:
    Interruption() {
        sigemptyset(&signals_);
        sigaddset(&signals_, SIGINT);
        sigaddset(&signals_, SIGTERM);
        pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    }
    /// From then on the next one ends the program at once.
    void wait() const {
        int which = 0;
        sigwait(&signals_, &which);
        pthread_sigmask(SIG_UNBLOCK, &signals_, nullptr);
    }

private:
    sigset_t signals_ = {};
};

}  // namespace

int serve(const nlohmann::json& options) {
    const Interruption interruption;
    StreamServer server({.owner = "serve", .address = options.at("address").get<std::string>(), .port = static_cast<std::uint16_t>(options.at("port").get<int>()), .token = token_from_file(options.at("token_file").get<std::string>(), "serve: --token-file"),
                         .hosts = options.at("hosts").get<std::vector<std::string>>()},
                        [](const StreamCommand&) { throw ConfigError("a recorded run takes no commands"); });
    const auto paths = options.at("paths").get<std::vector<std::string>>();
    std::string shown;  // the run of the first recording that is served as a stream
    const FollowedRecordings followed({paths.begin(), paths.end()}, [&](const std::filesystem::path& path, const std::string& run, int rank, std::string lines) {
        if (path != paths.front()) return server.show(path.string(), run, rank, std::move(lines));
        if (run != shown) server.begin(run, rank);
        shown = run;
        server.publish(std::move(lines));
    });
    fmt::print(stderr, "torchbus: {} recordings at {}\n", paths.size(), server.url());
    interruption.wait();
    return 0;
}

}  // namespace torchbus::cli

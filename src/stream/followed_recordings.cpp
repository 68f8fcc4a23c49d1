#include <torchbus/stream/followed_recordings.hpp>

#include <atomic>
#include <condition_variable>
#include <list>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "recording.hpp"

namespace torchbus {
namespace {

using namespace std::chrono_literals;

constexpr auto kPace = 500ms;
constexpr std::size_t kBatchBytes = 1U << 20;

}  // namespace

struct FollowedRecordings::State {
    struct Followed {
        std::filesystem::path path;
        std::optional<Recording> recording;  ///< nothing once it was found damaged
    };
    std::list<Followed> all;
    Take take;
    std::mutex mutex;
    std::condition_variable changed;
    std::atomic<bool> is_closing = false;
    std::thread thread;

    void run() {
        for (std::unique_lock lock(mutex); !is_closing; changed.wait_for(lock, kPace, [this] { return is_closing.load(); })) {
            lock.unlock();
            for (Followed& followed : all) read(followed);
            lock.lock();
        }
    }
    void read(Followed& followed) {
        if (!followed.recording) return;
        try {
            read_whole(followed);
        } catch (const std::exception& error) {
            warn(fmt::format("{}; it is shown up to there", error.what()));
            followed.recording.reset();
        }
    }
    void read_whole(Followed& followed) {
        std::string lines, run;
        int rank = 0;
        const auto give = [&] {
            if (!lines.empty()) take(followed.path, run, rank, std::exchange(lines, {}));
        };
        try {
            while (const RecordedMessage* message = is_closing ? nullptr : followed.recording->next()) {
                message->data();  // what is no JSON is said here, and goes no further
                if (message->run() != run || lines.size() >= kBatchBytes) give();
                run = message->run();
                rank = message->view().rank();
                lines += message->view().line;
                lines += '\n';
            }
        } catch (...) {
            give();  // what comes before the damage is good
            throw;
        }
        give();
        if (!is_closing && followed.recording->is_over()) followed.recording.emplace(followed.path);
    }
};

FollowedRecordings::FollowedRecordings(const std::vector<std::filesystem::path>& paths, Take take) : state_(std::make_unique<State>()) {
    state_->take = std::move(take);
    for (const auto& path : paths) state_->all.push_back({path, std::optional<Recording>(std::in_place, path)});
    state_->thread = std::thread([this] { state_->run(); });
}

FollowedRecordings::~FollowedRecordings() {
    {
        const std::lock_guard lock(state_->mutex);
        state_->is_closing = true;
    }
    state_->changed.notify_all();
    state_->thread.join();
}

}  // namespace torchbus

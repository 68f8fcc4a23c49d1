#pragma once
/// What each rank says of itself while it trains, and what follows from that when a collective does not come to its end.

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <torchbus/distributed/world.hpp>

#include "rank_status.hpp"

namespace torchbus {

/// How long a process that hosts the store stays to be asked, when it has failed.
inline constexpr std::chrono::seconds kLastWords{2};

/// One rank's. A thread of its own puts down a status several times a timeout.
class RankWatch {
public:
    /// `store` is used by this object alone, from several threads.
    RankWatch(const Ranks& ranks, const WorldOptions& options, const c10d::Store& store);
    ~RankWatch();
    RankWatch(const RankWatch&) = delete;
    RankWatch& operator=(const RankWatch&) = delete;

    /// The event that is emitted. Thread: any, as all of these.
    void at(std::string_view event, std::int64_t epoch, std::int64_t step);
    void begin(std::string_view collective);
    /// Puts down why this rank leaves the others; the first of all ranks counts.
    void leave(std::string_view why);
    /// Calls `end`, once, when another rank has left: what waits for a device is not told by a connection that closes.
    /// `flight_record`: of that device's collectives, for the record.
    void end_on_loss(std::function<void()> end, std::string (*flight_record)());
    /// Puts down what it does, for a process that ends at once.
    void last_words();
    /// What is known of why a collective did not come to its end: the first rank that has left and why, or who is to blame.
    /// Takes a few beats, and no more than some seconds even where the store does not answer.
    std::string diagnosis();
    /// Writes what this rank has done last, c10d's flight record included, into WorldOptions::record_folder, if there is one.
    void write_record(std::string_view why) const;

private:
    void beat();
    std::string next_status();
    void put_down();
    void warn_of_wait();
    void look_for_loss();
    std::chrono::milliseconds patience() const;

    Ranks ranks_;
    WorldOptions options_;
    std::chrono::milliseconds interval_;
    struct Beats;
    struct Questions;
    std::shared_ptr<Beats> beats_;          ///< each over a connection of its own, and by threads of their own: a store that has stopped keeps who asks, and
    std::shared_ptr<Questions> questions_;  ///< who writes once its socket is full
    mutable std::mutex mutex_;
    std::condition_variable wakes_;
    bool is_over_ = false;
    RankStatus status_;
    std::chrono::steady_clock::time_point event_time_ = std::chrono::steady_clock::now(), begun_time_ = event_time_;
    bool has_warned_ = false;
    std::function<void()> end_;                  ///< what is to end when another rank has left
    std::string (*flight_record_)() = nullptr;
    std::thread thread_;
    std::thread writer_;
};

}  // namespace torchbus

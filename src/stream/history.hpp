#pragma once
/// The newest messages of a stream, kept once for all who read them.

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>

#include "subscription.hpp"

namespace torchbus {

/// Some messages that came one after the other.
struct Chunk {
    std::int64_t number = 0;           ///< of the chunk, from 0
    std::int64_t first = 0, last = 0;  ///< sequence numbers of its first and last message
    std::string run;                   ///< that they are of
    std::string lines;
    /// As Server-Sent Events. Made when it is first asked for.
    const std::string& server_sent() const;

private:
    mutable std::string server_sent_;
};
using ChunkPointer = std::shared_ptr<const Chunk>;

/// One message as a Server-Sent Event.
void append_server_sent(std::string& out, std::string_view run, const MessageView& message);

/// Thread: one.
class History {
public:
    /// A chunk is closed at this size: what a client that has stopped to read keeps alive.
    static constexpr std::size_t kChunkBytes = 32 << 10;

    History(Subscription wanted, std::size_t limit_bytes) : filter_(wanted), takes_all_(wanted.takes_all()), limit_(limit_bytes) {}
    /// Adds what is wanted of some lines of one run, and forgets the oldest above the limit.
    void add(std::string_view run, std::string_view lines);
    /// Adds all that another one keeps.
    void add(const History& other);
    /// The chunk of this number, or the oldest one that is kept behind it; none where it is not there yet.
    ChunkPointer at(std::int64_t number) const;
    std::int64_t next_number() const { return next_number_; }
    std::int64_t oldest_number() const { return chunks_.empty() ? next_number_ : chunks_.front()->number; }
    /// The chunk that holds the message after this one, or where that would come.
    std::int64_t number_behind(std::string_view run, std::int64_t sequence) const;
    std::size_t size_bytes() const { return bytes_; }

private:
    void put(std::string_view run, const MessageView& message, std::string_view line);
    void close(std::shared_ptr<Chunk>&& chunk);

    LineFilter filter_;
    bool takes_all_;
    std::size_t limit_, bytes_ = 0;
    std::deque<ChunkPointer> chunks_;
    std::shared_ptr<Chunk> open_;
    std::int64_t next_number_ = 0;
};

}  // namespace torchbus

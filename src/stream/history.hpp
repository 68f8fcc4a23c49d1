#pragma once
/// The newest messages of a stream, kept once for all who read them.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
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
    std::size_t size_bytes() const { return sizeof(Chunk) + run.size() + lines.size(); }
    /// As Server-Sent Events. Made once for all who are sent it at the same time, and gone when they have it.
    std::shared_ptr<const std::string> server_sent() const;

private:
    mutable std::weak_ptr<const std::string> server_sent_;
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
    /// Adds what is wanted of the newest that another one keeps: whole chunks, of so many bytes together or the last one.
    void add_newest(const History& other, std::size_t at_most_bytes);
    /// Forgets the oldest above another limit.
    void set_limit(std::size_t limit_bytes);
    /// The chunk of this number, or the oldest one that is kept behind it; none where it is not there yet.
    ChunkPointer at(std::int64_t number) const;
    std::int64_t next_number() const { return next_number_; }
    std::int64_t oldest_number() const { return chunks_.empty() ? next_number_ : chunks_.front()->number; }
    /// The chunk that holds the message after this one, or where that would come.
    std::int64_t number_behind(std::string_view run, std::int64_t sequence) const;
    std::size_t size_bytes() const { return bytes_; }
    bool has_messages_of(std::string_view run) const;
    /// The last message that is not kept any more, or was not read when the history began; sequence 0 where there is none.
    struct Message {
        std::string run;
        std::int64_t sequence = 0;
    };
    const Message& last_gone() const { return last_gone_; }

private:
    void put(std::string_view run, const MessageView& message, std::string_view line);
    void close(std::shared_ptr<Chunk>&& chunk);
    void forget();

    LineFilter filter_;
    bool takes_all_;
    std::size_t limit_, bytes_ = 0;
    std::deque<ChunkPointer> chunks_;
    std::shared_ptr<Chunk> open_;
    std::int64_t next_number_ = 0;
    Message last_gone_;
};

/// The history of all messages, and one for every choice that somebody reads. What is chosen is kept in as many bytes
/// together as all messages are, in equal shares.
/// Thread: one.
class Histories {
public:
    /// The least share that there is: with less, who reads in good time would miss messages.
    static constexpr std::size_t kLeastShare = 4 * History::kChunkBytes;
    /// Of the past is read when a choice is new: it takes the time of the thread that serves all others.
    static constexpr std::size_t kReadOfPast = 4U << 20;

    explicit Histories(std::size_t limit_bytes) : all_(std::make_shared<History>(Subscription{}, limit_bytes)), limit_(limit_bytes) {}
    /// Adds some lines of one run to each.
    void add(std::string_view run, std::string_view lines);
    /// The one that a subscription is served from, kept while somebody holds it; none where so many others are read that no share is left.
    std::shared_ptr<History> of(const Subscription& wanted);
    std::size_t most_chosen() const { return std::max<std::size_t>(8, limit_ / kLeastShare); }
    /// Of what is chosen.
    std::size_t chosen_bytes() const;

private:
    std::size_t share() const { return std::max(kLeastShare, limit_ / std::max<std::size_t>(1, chosen_.size())); }

    std::shared_ptr<History> all_;
    std::map<std::string, std::weak_ptr<History>> chosen_;  ///< by the key of their subscription
    std::size_t limit_;
};

}  // namespace torchbus

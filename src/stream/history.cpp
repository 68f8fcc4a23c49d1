#include "history.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace torchbus {

void append_server_sent(std::string& out, std::string_view run, const MessageView& message) {
    fmt::format_to(std::back_inserter(out), "id: {}:{}\ndata: ", run, message.sequence);
    out += message.line;  // with its line break
    out += '\n';
}

const std::string& Chunk::server_sent() const {
    if (server_sent_.empty()) {
        server_sent_.reserve(lines.size() + lines.size() / 8);
        for_each_line(lines, [&](std::string_view line) {
            if (const auto message = view_of(line)) append_server_sent(server_sent_, run, *message);
        });
    }
    return server_sent_;
}

void History::put(std::string_view run, const MessageView& message, std::string_view line) {
    if (open_ && open_->lines.size() + line.size() > kChunkBytes) close(std::move(open_));
    if (!open_) {
        open_ = std::make_shared<Chunk>();
        open_->first = message.sequence;
        open_->run = run;
    }
    open_->last = message.sequence;
    open_->lines += line;
}

void History::close(std::shared_ptr<Chunk>&& chunk) {
    if (!chunk) return;
    chunk->number = next_number_++;
    bytes_ += chunk->lines.size();
    chunks_.push_back(std::exchange(chunk, nullptr));
    while (bytes_ > limit_ && chunks_.size() > 1) {
        bytes_ -= chunks_.front()->lines.size();
        chunks_.pop_front();
    }
}

void History::add(std::string_view run, std::string_view lines) {
    for_each_line(lines, [&](std::string_view line) {
        const auto message = view_of(line);
        if (!message) return;
        if (takes_all_) put(run, *message, line);
        else if (const auto taken = filter_.take(*message)) put(run, *message, *taken);
    });
    close(std::move(open_));
}

void History::add(const History& other) {
    for (const ChunkPointer& chunk : other.chunks_) add(chunk->run, chunk->lines);
}

ChunkPointer History::at(std::int64_t number) const {
    if (number >= next_number_) return nullptr;
    return chunks_[static_cast<std::size_t>(std::max(number, oldest_number()) - oldest_number())];
}

std::int64_t History::number_behind(std::string_view run, std::int64_t sequence) const {
    const auto found = std::ranges::find_if(chunks_, [&](const ChunkPointer& chunk) { return chunk->run == run && chunk->last > sequence; });
    return found == chunks_.end() ? (std::ranges::any_of(chunks_, [&](const ChunkPointer& chunk) { return chunk->run == run; }) ? next_number_ : oldest_number()) : (*found)->number;
}

}  // namespace torchbus

#include "history.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include <fmt/format.h>

namespace torchbus {

void append_server_sent(std::string& out, std::string_view run, const MessageView& message) {
    fmt::format_to(std::back_inserter(out), "id: {}:{}\ndata: ", run, message.sequence);
    out += message.line;  // with its line break
    out += '\n';
}

std::shared_ptr<const std::string> Chunk::server_sent() const {
    if (auto known = server_sent_.lock()) return known;
    auto made = std::make_shared<std::string>();
    made->reserve(lines.size() + lines.size() / 8);
    for_each_line(lines, [&](std::string_view line) {
        if (const auto message = view_of(line)) append_server_sent(*made, run, *message);
    });
    server_sent_ = made;
    return made;
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
    chunk->lines.shrink_to_fit();
    bytes_ += chunk->size_bytes();
    chunks_.push_back(std::exchange(chunk, nullptr));
    forget();
}

void History::forget() {
    while (bytes_ > limit_ && chunks_.size() > 1) {
        bytes_ -= chunks_.front()->size_bytes();
        last_gone_ = {chunks_.front()->run, chunks_.front()->last};
        chunks_.pop_front();
    }
}

void History::set_limit(std::size_t limit_bytes) {
    limit_ = limit_bytes;
    forget();
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

void History::add_newest(const History& other, std::size_t at_most_bytes) {
    auto first = other.chunks_.end();
    for (std::size_t bytes = 0; first != other.chunks_.begin(); --first) {
        bytes += (*std::prev(first))->size_bytes();
        if (bytes > at_most_bytes && first != other.chunks_.end()) break;
    }
    last_gone_ = first == other.chunks_.begin() ? other.last_gone_ : Message{(*std::prev(first))->run, (*std::prev(first))->last};
    for (; first != other.chunks_.end(); ++first) add((*first)->run, (*first)->lines);
}

ChunkPointer History::at(std::int64_t number) const {
    if (chunks_.empty() || number >= next_number_) return nullptr;
    return chunks_[static_cast<std::size_t>(std::max(number, oldest_number()) - oldest_number())];
}

bool History::has_messages_of(std::string_view run) const {
    return std::ranges::any_of(chunks_, [&](const ChunkPointer& chunk) { return chunk->run == run; });
}

std::int64_t History::number_behind(std::string_view run, std::int64_t sequence) const {
    const auto found = std::ranges::find_if(chunks_, [&](const ChunkPointer& chunk) { return chunk->run == run && chunk->last > sequence; });
    return found == chunks_.end() ? (has_messages_of(run) ? next_number_ : oldest_number()) : (*found)->number;
}

void Histories::add(std::string_view run, std::string_view lines) {
    all_->add(run, lines);
    std::erase_if(chosen_, [](const auto& chosen) { return chosen.second.expired(); });
    for (const auto& [key, history] : chosen_) {
        const auto live = history.lock();
        live->set_limit(share());
        live->add(run, lines);
    }
}

std::shared_ptr<History> Histories::of(const Subscription& wanted) {
    if (wanted.takes_all()) return all_;
    const std::string key = wanted.key();
    std::erase_if(chosen_, [](const auto& chosen) { return chosen.second.expired(); });
    if (const auto known = chosen_.find(key); known != chosen_.end()) return known->second.lock();
    if (chosen_.size() >= most_chosen()) return nullptr;
    auto& place = chosen_[key];
    for (const auto& [other, history] : chosen_)
        if (const auto live = history.lock()) live->set_limit(share());
    const auto made = std::make_shared<History>(wanted, share());
    made->add_newest(*all_, std::min(share(), kReadOfPast));
    place = made;
    return made;
}

std::size_t Histories::chosen_bytes() const {
    std::size_t bytes = 0;
    for (const auto& [key, history] : chosen_)
        if (const auto live = history.lock()) bytes += live->size_bytes();
    return bytes;
}

}  // namespace torchbus

#include "checksum.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <fmt/format.h>

namespace torchbus {

struct Checksum::State {
    XXH3_state_t xxh;
};

Checksum::Checksum() : state_(std::make_unique<State>()) { XXH3_128bits_reset(&state_->xxh); }
Checksum::~Checksum() = default;
void Checksum::update(const void* bytes, std::size_t count) { XXH3_128bits_update(&state_->xxh, bytes, count); }
std::string Checksum::hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(&state_->xxh);
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string checksum_of(std::string_view bytes) {
    Checksum checksum;
    checksum.update(bytes.data(), bytes.size());
    return checksum.hex();
}

}  // namespace torchbus

#pragma once
/// XXH3 with 128 bits, as 32 hexadecimal digits: finds every flipped bit and torn block, and is no protection against
/// who wants to deceive.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace torchbus {

class Checksum {
public:
    Checksum();
    ~Checksum();
    Checksum(const Checksum&) = delete;
    Checksum& operator=(const Checksum&) = delete;
    void update(const void* bytes, std::size_t count);
    std::string hex() const;

private:
    struct State;
    std::unique_ptr<State> state_;
};

std::string checksum_of(std::string_view bytes);

}  // namespace torchbus

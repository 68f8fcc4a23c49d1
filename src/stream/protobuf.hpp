#pragma once
/// The wire format of protobuf, as far as it is written here.

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace torchbus {

class ProtobufMessage {
public:
    void varint(int field, std::uint64_t value) {
        key(field, 0);
        raw_varint(value);
    }
    void fixed64(int field, double value) {
        key(field, 1);
        raw(std::bit_cast<std::uint64_t>(value));
    }
    void fixed32(int field, float value) {
        key(field, 5);
        raw(std::bit_cast<std::uint32_t>(value));
    }
    /// A text, bytes or another message.
    void bytes(int field, std::string_view value) {
        key(field, 2);
        raw_varint(value.size());
        text_ += value;
    }
    template <class Doubles>
    void packed(int field, const Doubles& values) {
        key(field, 2);
        raw_varint(8 * values.size());
        for (const double value : values) raw(std::bit_cast<std::uint64_t>(value));
    }
    const std::string& text() const { return text_; }

private:
    void key(int field, unsigned type) { raw_varint(static_cast<std::uint64_t>(field) << 3 | type); }
    void raw_varint(std::uint64_t value) {
        for (; value >= 0x80; value >>= 7) text_ += static_cast<char>(value | 0x80);
        text_ += static_cast<char>(value);
    }
    template <class T>
    void raw(T value) {
        static_assert(std::endian::native == std::endian::little);
        char bytes[sizeof value];
        std::memcpy(bytes, &value, sizeof value);
        text_.append(bytes, sizeof value);
    }
    std::string text_;
};

}  // namespace torchbus

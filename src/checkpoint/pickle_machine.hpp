#pragma once
/// The stack machine of Python's pickle format, as far as a state_dict needs it. What a pickle asks to be called is
/// imitated where it is on a short list, and refused otherwise: nothing of it is ever executed.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace torchbus {

struct PickleValue;
using PickleValuePtr = std::shared_ptr<PickleValue>;

struct PickleNone {};
struct PickleMark {};
struct PickleGlobal { std::string name; };  ///< "module.name", from the list
struct PickleList { std::vector<PickleValuePtr> items; };
struct PickleTuple { std::vector<PickleValuePtr> items; };
struct PickleDict { std::vector<std::pair<PickleValuePtr, PickleValuePtr>> items; };
struct PickleStorage {
    std::string dtype;   ///< as in safetensors: F32, BF16, …
    std::string record;  ///< its key within the archive
    std::int64_t elements = 0;
};
struct PickleTensor {
    PickleStorage storage;
    std::int64_t offset = 0;  ///< in elements
    std::vector<std::int64_t> shape, stride;
};
/// A text may be bytes. A value may stand in several places, and even within itself.
struct PickleValue {
    std::variant<PickleNone, bool, std::int64_t, double, std::string, PickleList, PickleTuple, PickleDict, PickleGlobal, PickleStorage, PickleTensor, PickleMark> content;
};

inline constexpr std::size_t kMostPickleValues = 1'000'000;

class PickleMachine {
public:
    /// `name` begins what is thrown.
    PickleMachine(std::string_view bytes, std::string name) : bytes_(bytes), name_(std::move(name)) {}
    ~PickleMachine();
    PickleMachine(const PickleMachine&) = delete;
    PickleMachine& operator=(const PickleMachine&) = delete;

    /// The value of the whole; it lives as long as the machine. Every tensor lies within its storage.
    /// Throws: CheckpointError for an opcode or a name that is not on the list (it says which), and for what is malformed.
    PickleValuePtr run();
    [[noreturn]] void fail(const std::string& what) const;

private:
    void step(unsigned char opcode);

    // What comes next in the bytes.
    std::string_view take(std::size_t count);
    template <class Number>
    Number number();
    std::string text(std::size_t size) { return std::string(take(size)); }
    std::string line();
    std::int64_t long_integer(std::size_t bytes);
    double big_endian_double();

    // The stack and the memo.
    void push(PickleValue value);
    PickleValuePtr pop();
    PickleValuePtr& top();
    std::vector<PickleValuePtr> pop_many(std::size_t count);
    std::vector<PickleValuePtr> pop_to_mark();
    PickleValuePtr remembered(std::uint64_t place) const;
    template <class Content>
    Content& as(const PickleValuePtr& value, const char* what) const;

    // What changes a value, or imitates a call.
    void append(const std::vector<PickleValuePtr>& items);
    void set_items(const std::vector<PickleValuePtr>& items);
    void push_global(const std::string& module, const std::string& object);
    void push_storage(const PickleValuePtr& id);
    void push_tensor(const std::vector<PickleValuePtr>& arguments);
    void call();
    void set_state();
    std::vector<std::int64_t> integers(const PickleValuePtr& value) const;

    std::string_view bytes_;
    std::string name_;
    std::size_t at_ = 0;
    std::vector<PickleValuePtr> stack_, all_;
    std::map<std::uint64_t, PickleValuePtr> memo_;
};

}  // namespace torchbus

#include "pickle_machine.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

struct StorageType {
    std::string_view name, dtype;
};
constexpr auto kStorageTypes = std::to_array<StorageType>({
    {"torch.FloatStorage", "F32"}, {"torch.DoubleStorage", "F64"}, {"torch.HalfStorage", "F16"}, {"torch.BFloat16Storage", "BF16"}, {"torch.LongStorage", "I64"},
    {"torch.IntStorage", "I32"}, {"torch.ShortStorage", "I16"}, {"torch.CharStorage", "I8"}, {"torch.ByteStorage", "U8"}, {"torch.BoolStorage", "BOOL"},
});
constexpr auto kCallables = std::to_array<std::string_view>({
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.Size",
});
constexpr std::size_t kMostDimensions = 64;  // LibTorch's limit

bool lies_within_its_storage(const PickleTensor& tensor) {
    constexpr std::int64_t kLimit = std::int64_t{1} << 50;
    const std::int64_t elements = tensor.storage.elements;
    if (tensor.shape.size() != tensor.stride.size() || tensor.offset < 0 || tensor.offset > kLimit || elements < 0 || elements > kLimit) return false;
    std::int64_t last = tensor.offset;
    bool empty = false;
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
        const std::int64_t extent = tensor.shape[i], stride = tensor.stride[i];
        if (extent < 0 || stride < 0 || extent > kLimit || stride > kLimit) return false;
        empty = empty || extent == 0;
        if (extent <= 1 || stride == 0) continue;
        if (extent - 1 > (kLimit - last) / stride) return false;
        last += (extent - 1) * stride;
    }
    return empty || last < elements;
}

}  // namespace

/// One by one: values may contain themselves, and chains of them be longer than the call stack is deep.
PickleMachine::~PickleMachine() {
    for (const PickleValuePtr& value : all_) value->content = PickleNone{};
}

void PickleMachine::fail(const std::string& what) const { throw CheckpointError(fmt::format("{}: byte {} of the pickle: {}", name_, at_, what)); }

PickleValuePtr PickleMachine::run() {
    for (std::size_t steps = 0; steps < 4 * kMostPickleValues; ++steps) {
        const auto opcode = static_cast<unsigned char>(take(1)[0]);
        if (opcode == '.') return pop();
        step(opcode);
    }
    fail("it goes on for longer than a state_dict does");
}

/// Named as in Python's pickletools.
void PickleMachine::step(unsigned char opcode) {
    switch (opcode) {
        case 0x80: number<std::uint8_t>(); break;                                             // PROTO
        case 0x95: number<std::uint64_t>(); break;                                            // FRAME
        case '(': push({PickleMark{}}); break;                                                // MARK
        case 'N': push({PickleNone{}}); break;                                                // NONE
        case 0x88: push({true}); break;                                                       // NEWTRUE
        case 0x89: push({false}); break;                                                      // NEWFALSE
        case 'K': push({static_cast<std::int64_t>(number<std::uint8_t>())}); break;           // BININT1
        case 'M': push({static_cast<std::int64_t>(number<std::uint16_t>())}); break;          // BININT2
        case 'J': push({static_cast<std::int64_t>(number<std::int32_t>())}); break;           // BININT
        case 0x8a: push({long_integer(number<std::uint8_t>())}); break;                       // LONG1
        case 'G': push({big_endian_double()}); break;                                         // BINFLOAT
        case 'X': push({text(number<std::uint32_t>())}); break;                               // BINUNICODE
        case 0x8c: push({text(number<std::uint8_t>())}); break;                               // SHORT_BINUNICODE
        case 'B': push({text(number<std::uint32_t>())}); break;                               // BINBYTES
        case 'C': push({text(number<std::uint8_t>())}); break;                                // SHORT_BINBYTES
        case '}': push({PickleDict{}}); break;                                                // EMPTY_DICT
        case ']': push({PickleList{}}); break;                                                // EMPTY_LIST
        case ')': push({PickleTuple{}}); break;                                               // EMPTY_TUPLE
        case 't': push({PickleTuple{pop_to_mark()}}); break;                                  // TUPLE
        case 0x85: push({PickleTuple{pop_many(1)}}); break;                                   // TUPLE1
        case 0x86: push({PickleTuple{pop_many(2)}}); break;                                   // TUPLE2
        case 0x87: push({PickleTuple{pop_many(3)}}); break;                                   // TUPLE3
        case 'q': memo_[number<std::uint8_t>()] = top(); break;                               // BINPUT
        case 'r': memo_[number<std::uint32_t>()] = top(); break;                              // LONG_BINPUT
        case 0x94: memo_[memo_.size()] = top(); break;                                        // MEMOIZE
        case 'h': stack_.push_back(remembered(number<std::uint8_t>())); break;                // BINGET
        case 'j': stack_.push_back(remembered(number<std::uint32_t>())); break;               // LONG_BINGET
        case 'a': append(pop_many(1)); break;                                                 // APPEND
        case 'e': append(pop_to_mark()); break;                                               // APPENDS
        case 's': set_items(pop_many(2)); break;                                              // SETITEM
        case 'u': set_items(pop_to_mark()); break;                                            // SETITEMS
        case 'c': {                                                                           // GLOBAL
            const std::string module = line();
            push_global(module, line());
            break;
        }
        case 0x93: {                                                                          // STACK_GLOBAL
            const auto names = pop_many(2);
            push_global(as<std::string>(names[0], "the name of a module"), as<std::string>(names[1], "a name"));
            break;
        }
        case 'Q': push_storage(pop()); break;                                                 // BINPERSID
        case 'R': call(); break;                                                              // REDUCE
        case 'b': set_state(); break;                                                         // BUILD
        default: fail(fmt::format("the instruction {:#04x} is none that a state_dict needs; it was not carried out", opcode));
    }
}

std::string_view PickleMachine::take(std::size_t count) {
    if (count > bytes_.size() - at_) fail("it ends within an instruction; the file is truncated or damaged");
    const std::string_view taken = bytes_.substr(at_, count);
    at_ += count;
    return taken;
}

template <class Number>
Number PickleMachine::number() {
    Number value{};
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
}

std::string PickleMachine::line() {
    const auto end = bytes_.find('\n', at_);
    if (end == std::string_view::npos) fail("a name does not end; the file is truncated or damaged");
    std::string line(bytes_.substr(at_, end - at_));
    at_ = end + 1;
    return line;
}

std::int64_t PickleMachine::long_integer(std::size_t bytes) {
    if (bytes > 8) fail("it has an integer of more than 64 bits");
    const std::string_view digits = take(bytes);
    std::uint64_t value = !digits.empty() && (digits.back() & 0x80) ? ~std::uint64_t{0} : 0;
    for (std::size_t i = bytes; i-- > 0;) value = value << 8 | static_cast<unsigned char>(digits[i]);
    return static_cast<std::int64_t>(value);
}

double PickleMachine::big_endian_double() {
    std::array<char, 8> bytes{};
    std::memcpy(bytes.data(), take(8).data(), 8);
    std::ranges::reverse(bytes);
    return std::bit_cast<double>(bytes);
}

void PickleMachine::push(PickleValue value) {
    if (all_.size() == kMostPickleValues) fail("it has more values than a state_dict has");
    all_.push_back(std::make_shared<PickleValue>(std::move(value)));
    stack_.push_back(all_.back());
}

PickleValuePtr& PickleMachine::top() {
    if (stack_.empty() || std::holds_alternative<PickleMark>(stack_.back()->content)) fail("it takes a value that is not there; the file is damaged");
    return stack_.back();
}

PickleValuePtr PickleMachine::pop() {
    PickleValuePtr value = top();
    stack_.pop_back();
    return value;
}

std::vector<PickleValuePtr> PickleMachine::pop_many(std::size_t count) {
    std::vector<PickleValuePtr> values(count);
    for (std::size_t i = count; i-- > 0;) values[i] = pop();
    return values;
}

std::vector<PickleValuePtr> PickleMachine::pop_to_mark() {
    const auto mark = std::find_if(stack_.rbegin(), stack_.rend(), [](const PickleValuePtr& value) { return std::holds_alternative<PickleMark>(value->content); });
    if (mark == stack_.rend()) fail("it takes values up to a mark that is not there; the file is damaged");
    std::vector<PickleValuePtr> values(mark.base(), stack_.end());
    stack_.erase(mark.base() - 1, stack_.end());
    return values;
}

PickleValuePtr PickleMachine::remembered(std::uint64_t place) const {
    const auto found = memo_.find(place);
    if (found == memo_.end()) fail("it remembers what it has not seen; the file is damaged");
    return found->second;
}

template <class Content>
Content& PickleMachine::as(const PickleValuePtr& value, const char* what) const {
    if (auto* content = std::get_if<Content>(&value->content)) return *content;
    fail(fmt::format("expected {}; the file is damaged, or holds no state_dict", what));
}

void PickleMachine::append(const std::vector<PickleValuePtr>& items) {
    auto& list = as<PickleList>(top(), "a list").items;
    list.insert(list.end(), items.begin(), items.end());
}

void PickleMachine::set_items(const std::vector<PickleValuePtr>& items) {
    if (items.size() % 2) fail("a key has no value; the file is damaged");
    auto& dict = as<PickleDict>(top(), "a dictionary").items;
    for (std::size_t i = 0; i < items.size(); i += 2) dict.emplace_back(items[i], items[i + 1]);
}

void PickleMachine::push_global(const std::string& module, const std::string& object) {
    const std::string name = module + "." + object;
    if (std::ranges::find(kCallables, name) == kCallables.end() && std::ranges::find(kStorageTypes, name, &StorageType::name) == kStorageTypes.end())
        fail(fmt::format("it names {}, which is not on the list of what a state_dict needs; it was not called. Save the state_dict alone in Python: torch.save(model.state_dict(), ...)", name));
    push({PickleGlobal{name}});
}

/// ('storage', type, key, device, elements)
void PickleMachine::push_storage(const PickleValuePtr& id) {
    const auto& parts = as<PickleTuple>(id, "the description of a storage").items;
    if (parts.size() != 5 || as<std::string>(parts[0], "a word") != "storage") fail("a storage is described wrongly; the file is damaged");
    const std::string& type = as<PickleGlobal>(parts[1], "the type of a storage").name;
    const auto known = std::ranges::find(kStorageTypes, type, &StorageType::name);
    if (known == kStorageTypes.end()) fail(fmt::format("{} is no type of a storage", type));
    push({PickleStorage{std::string(known->dtype), as<std::string>(parts[2], "the key of a storage"), as<std::int64_t>(parts[4], "a number of elements")}});
}

std::vector<std::int64_t> PickleMachine::integers(const PickleValuePtr& value) const {
    const auto& items = as<PickleTuple>(value, "a shape or strides").items;
    if (items.size() > kMostDimensions) fail(fmt::format("a tensor has {} dimensions; the file is damaged", items.size()));
    std::vector<std::int64_t> numbers;
    for (const PickleValuePtr& item : items) numbers.push_back(as<std::int64_t>(item, "an integer"));
    return numbers;
}

/// (storage, offset, shape, stride, requires_grad, hooks, …)
void PickleMachine::push_tensor(const std::vector<PickleValuePtr>& arguments) {
    if (arguments.size() < 4) fail("a tensor is described wrongly; the file is damaged");
    PickleTensor tensor{as<PickleStorage>(arguments[0], "a storage"), as<std::int64_t>(arguments[1], "an offset"), integers(arguments[2]), integers(arguments[3])};
    if (!lies_within_its_storage(tensor)) fail("a tensor does not lie within its storage; the file is damaged");
    push({std::move(tensor)});
}

void PickleMachine::call() {
    const auto both = pop_many(2);
    const std::string& callable = as<PickleGlobal>(both[0], "what is called").name;
    const auto& arguments = as<PickleTuple>(both[1], "arguments").items;
    if (callable == "torch._utils._rebuild_tensor_v2") return push_tensor(arguments);
    if (callable == "collections.OrderedDict" && arguments.empty()) return push({PickleDict{}});
    if (callable == "torch.Size" && arguments.size() == 1) {
        as<PickleTuple>(arguments[0], "a shape");
        stack_.push_back(arguments[0]);
    } else if (callable == "torch._utils._rebuild_parameter" && !arguments.empty()) {
        as<PickleTensor>(arguments[0], "a tensor");
        stack_.push_back(arguments[0]);
    } else {
        fail(fmt::format("it calls {} with {} arguments, which no state_dict does; it was not called", callable, arguments.size()));
    }
}

/// A module's state_dict has versions of its layers beside it (_metadata), of no use here.
void PickleMachine::set_state() {
    pop();
    as<PickleDict>(top(), "a dictionary that has a state");
}

}  // namespace torchbus

#include "pickle_reader.hpp"

#include <fmt/format.h>

namespace torchbus {
namespace {

using nlohmann::json;

constexpr std::size_t kDeepest = 100, kMostCharacters = std::size_t{1} << 28;

/// Values that stand in many places are copied there, so a small pickle could become a large tree: all is counted.
class Harvest {
public:
    Harvest(const PickleMachine& machine, PickleContent& into) : machine_(machine), into_(into) {}

    json of(const PickleValue& value, const std::string& path, std::size_t depth) {
        count(path.size());
        if (depth > kDeepest) machine_.fail("its values are nested without end; the file is damaged");
        if (const auto* tensor = std::get_if<PickleTensor>(&value.content)) into_.tensors.push_back({path, *tensor});
        if (const auto* flag = std::get_if<bool>(&value.content)) return *flag;
        if (const auto* integer = std::get_if<std::int64_t>(&value.content)) return *integer;
        if (const auto* real = std::get_if<double>(&value.content)) return *real;
        if (const auto* text = std::get_if<std::string>(&value.content)) return count(text->size()), *text;
        if (const auto* list = std::get_if<PickleList>(&value.content)) return array_of(list->items, path, depth);
        if (const auto* tuple = std::get_if<PickleTuple>(&value.content)) return array_of(tuple->items, path, depth);
        if (const auto* dict = std::get_if<PickleDict>(&value.content)) return object_of(*dict, path, depth);
        return nullptr;
    }

private:
    void count(std::size_t characters) {
        characters_ += characters;
        if (++values_ > kMostPickleValues || characters_ > kMostCharacters) machine_.fail("it unfolds to more than a state_dict holds; the file is damaged");
    }
    json array_of(const std::vector<PickleValuePtr>& items, const std::string& path, std::size_t depth) {
        json values = json::array();
        for (std::size_t i = 0; i < items.size(); ++i) values.push_back(of(*items[i], path_within(path, fmt::format("{}", i)), depth + 1));
        return values;
    }
    json object_of(const PickleDict& dict, const std::string& path, std::size_t depth) {
        json values = json::object();
        for (const auto& [key, value] : dict.items) {
            const std::string name = key_of(*key);
            values[name] = of(*value, path_within(path, name), depth + 1);
        }
        return values;
    }
    std::string key_of(const PickleValue& key) const {
        if (const auto* text = std::get_if<std::string>(&key.content)) return *text;
        if (const auto* integer = std::get_if<std::int64_t>(&key.content)) return fmt::format("{}", *integer);
        machine_.fail("a key of a dictionary is neither a text nor an integer");
    }
    static std::string path_within(const std::string& path, const std::string& key) { return path.empty() ? key : path + "." + key; }

    const PickleMachine& machine_;
    PickleContent& into_;
    std::size_t values_ = 0, characters_ = 0;
};

}  // namespace

PickleContent read_pickle(std::string_view bytes, const std::string& name) {
    PickleMachine machine(bytes, name);
    const PickleValuePtr whole = machine.run();
    PickleContent content;
    content.values = Harvest(machine, content).of(*whole, "", 0);
    return content;
}

}  // namespace torchbus

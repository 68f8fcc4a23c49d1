#include "event_trace.hpp"

#include <cstdlib>
#include <fstream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "source_root.hpp"

namespace torchbus::test {
namespace {

using nlohmann::json;

/// Losses differ between processors, in bf16 visibly so: a golden file says that there is one, tests of numbers say which.
void hide_losses(json& data) {
    if (const auto loss = data.find("loss"); loss != data.end() && loss->is_number()) *loss = "a number";
}

std::string line_of(const AnyEvent& event) {
    json data = json::object();
    if (event.has_json()) event.write_json(data);
    std::string where;
    if (const auto found = data.find("position"); found != data.end()) {
        const json& at = *found;
        where = fmt::format("epoch {} step {}/{} micro_batch {} samples {}", at["epoch"].get<int>(), at["step"].get<int>(),
                            at["attempts"].get<int>(), at["micro_batch"].get<int>(), at["samples"].get<int>());
        data.erase("position");
    }
    hide_losses(data);
    return fmt::format("{:<22} {} | {}", event.name(), where, data.dump());
}

}  // namespace

void EventTrace::attach(Attachment& run) {
    connections_ += run.bus.observe_all(Stage::Persist, [this](const AnyEvent& event) { lines_.push_back(line_of(event)); });
}

std::vector<std::string> EventTrace::names() const {
    std::vector<std::string> names;
    for (const std::string& line : lines_) names.push_back(line.substr(0, line.find(' ')));
    return names;
}

std::string compare_with_golden(const std::string& name, const std::vector<std::string>& lines) {
    const std::string path = source_root() + "/test/golden/" + name + ".txt";
    const char* update = std::getenv("TORCHBUS_UPDATE_GOLDEN");
    if (update && *update == '1') {
        std::ofstream file(path);
        for (const std::string& line : lines) file << line << '\n';
        return {};
    }
    std::ifstream file(path);
    if (!file) return fmt::format("{} is missing; write it with TORCHBUS_UPDATE_GOLDEN=1", path);
    std::size_t number = 0;
    for (std::string expected; std::getline(file, expected); ++number) {
        const std::string found = number < lines.size() ? lines[number] : "(nothing)";
        if (found != expected) return fmt::format("{}:{}:\nexpected {}\nfound    {}", path, number + 1, expected, found);
    }
    if (number < lines.size()) return fmt::format("{} ends at line {}, but there follows: {}", path, number, lines[number]);
    return {};
}

}  // namespace torchbus::test

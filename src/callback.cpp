#include <torchbus/callback.hpp>

#include <nlohmann/json.hpp>

namespace torchbus {

nlohmann::json Callback::state() const { return nlohmann::json::object(); }
void Callback::load_state(const nlohmann::json&) {}

}  // namespace torchbus

// A plug-in that is refused when it registers; TORCHBUS_TEST_PLUGIN says why. What it registers first must leave no trace.
#include <cstdlib>
#include <stdexcept>
#include <string_view>

#include <torchbus/error.hpp>
#include <torchbus/plugin.hpp>

using namespace torchbus;

namespace {

class Fresh final : public Callback {
public:
    explicit Fresh(std::string kind) : kind_(std::move(kind)) {}
    std::string kind() const override { return kind_; }
    Declaration declare() const override { return {}; }
    void attach(Attachment&) override {}
    void detach() override {}

private:
    std::string kind_;
};

template <int>
std::unique_ptr<Callback> fresh(OptionReader&) { return std::make_unique<Fresh>("fresh"); }
std::unique_ptr<Callback> other_name(OptionReader&) { return std::make_unique<Fresh>("another"); }
std::unique_ptr<Callback> nothing(OptionReader&) { return nullptr; }
std::unique_ptr<Callback> needs_an_option(OptionReader&) { throw ConfigError("fresh: path is missing"); }
std::unique_ptr<Callback> throws_odd(OptionReader&) { throw 7; }
ModelMaker no_model(OptionReader&) { return [] { return Model(); }; }
Schedule no_schedule(OptionReader&) { return [](const Moment&) { return 1.0; }; }

void register_all(PluginRegistry& registry) {
    const char* set = std::getenv("TORCHBUS_TEST_PLUGIN");
    const std::string_view why = set ? set : "";
    if (why == "nothing") return;
    registry.model("fresh_model", "A model.", no_model);
    if (why == "other_name") registry.callback("fresh", "Calls itself another.", other_name);
    else if (why == "no_callback") registry.callback("fresh", "Makes none.", nothing);
    else if (why == "no_default") registry.callback("fresh", "Needs an option.", needs_an_option);
    else if (why == "odd_default") registry.callback("fresh", "Throws 7.", throws_odd);
    else registry.callback("fresh", "A callback.", fresh<0>);
    if (why == "throws") throw std::runtime_error("the licence server is asleep");
    if (why == "throws_odd") throw 7;
    if (why == "taken_by_torchbus") registry.schedule("cosine", "Another cosine.", no_schedule);
    if (why == "taken_by_plugin") registry.model("line", "Another line.", no_model);
    if (why == "twice") registry.callback("fresh", "Again.", fresh<1>);
    if (why == "bad_name") registry.callback("Fresh-Callback", "A callback.", fresh<0>);
    if (why == "no_summary") registry.schedule("fresh_schedule", "", no_schedule);
    if (why == "no_function") registry.schedule("fresh_schedule", "A schedule.", nullptr);
}

}  // namespace

TORCHBUS_PLUGIN("refused", register_all)

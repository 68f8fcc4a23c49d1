#include <filesystem>
#include <fstream>

#include <torchbus/state_machine.hpp>

#include "support/catch.hpp"
#include "support/source_root.hpp"

using namespace torchbus;

TEST_CASE("the README's picture of the state machine is that of `torchbus graph`", "[state-machine]") {
    std::ifstream readme(std::filesystem::path(test::source_root()) / "README.md");
    const std::string text((std::istreambuf_iterator<char>(readme)), std::istreambuf_iterator<char>());
    CHECK(text.find("```mermaid\n" + state_graph_mermaid() + "```") != std::string::npos);
}

TEST_CASE("a trigger that a state does not know leads nowhere", "[state-machine]") {
    CHECK(next_state(State::Ready, Trigger::StartTraining).state == State::StartingEpoch);
    CHECK_FALSE(next_state(State::Closed, Trigger::StartTraining).valid);
    CHECK_FALSE(next_state(State::Deciding, Trigger::WindowReady).valid);
}

TEST_CASE("whatever throws leads to Failing, and from there the run is closed", "[state-machine]") {
    for (std::size_t i = 0; i < kStateCount; ++i) {
        const auto state = static_cast<State>(i);
        const bool tells = state == State::Failing || state == State::Closing || state == State::Closed;
        INFO(name_of(state));
        CHECK(next_state(state, Trigger::Failed).valid != tells);
    }
    CHECK(next_state(State::Failing, Trigger::FailureTold).state == State::Closing);
    CHECK(next_state(State::Closing, Trigger::RunClosed).state == State::Closed);
}

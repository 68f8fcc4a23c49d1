// A server of messages without a run, for the tests of clients in test/scripts (served.py). It does what it is told by lines on standard input:
//   publish N [BYTES]   N messages `told`, each with its number, and padding
//   numbers N           N messages `numbers`, each of a step more: a loss that falls and swings, a peak of 50 at step 777
//   begin RUN           messages of another run follow
//   drain MS            answers once all clients have all, or take nothing any more
// and prints its address first, then a line for each command that a client has sent, and one when it has done as it was told.
#include <fcntl.h>
#include <sys/resource.h>

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <mutex>
#include <sstream>

#include <fmt/format.h>

#include <torchbus/error.hpp>
#include <torchbus/stream/message.hpp>
#include <torchbus/stream/stream_server.hpp>

using namespace torchbus;

namespace {

std::mutex printing;
void print(const std::string& line) {
    const std::lock_guard lock(printing);
    std::cout << line << std::endl;
}

std::string variable(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value ? value : otherwise;
}

std::string numbers_of_step(std::int64_t step) {
    const std::string counts = fmt::format(R"("step":{0},"attempts":{0},"micro_batch":{0},"samples":{1},"tokens":0)", step, 8 * step);
    const double loss = step == 777 ? 50 : 2 / (1 + 0.001 * static_cast<double>(step)) + 0.1 * std::sin(0.37 * static_cast<double>(step));
    return fmt::format(R"({{"position":{{"epoch":0,{0},"in_epoch":{{{0}}}}},"numbers":{{"learning_rate":0.01,"train.loss":{1}}},"older":{{}},"after":"train_step_end"}})", counts, loss);
}

}  // namespace

int main() {
    try {
        StreamServerOptions options;
        options.token = variable("SERVED_TOKEN", "");
        options.address = variable("SERVED_ADDRESS", "127.0.0.1");
        options.unix_socket = variable("SERVED_UNIX", "");
        options.allows_control = !options.token.empty();
        options.origins = {"https://pages.example"};
        options.history_bytes = std::stoul(variable("SERVED_HISTORY", "16777216"));
        options.max_clients = std::stoul(variable("SERVED_CLIENTS", "4096"));
        options.stall = std::chrono::milliseconds(std::stol(variable("SERVED_STALL_MS", "30000")));
        options.patience = std::chrono::milliseconds(std::stol(variable("SERVED_PATIENCE_MS", "10000")));
        options.idle = std::chrono::milliseconds(std::stol(variable("SERVED_IDLE_MS", "75000")));
        StreamServer server(options, [](const StreamCommand& command) {
            if (command.reason == "refuse") throw ConfigError("it was refused");
            print(fmt::format("command {} by {} because {} {}.{}={}", command.command, command.requester, command.reason, command.subscriber, command.option, command.value.dump()));
        });
        std::string run = "run-1";
        server.begin(run, 0);
        auto writer = std::make_unique<MessageWriter>(StreamSource{run, 0});
        print(server.url());
        std::int64_t number = 0, step = 0;
        for (std::string line; std::getline(std::cin, line);) {
            std::istringstream words(line);
            std::string verb;
            words >> verb;
            if (verb == "publish") {
                std::int64_t count = 0;
                std::size_t padding = 0;
                words >> count >> padding;
                std::string lines;
                for (std::int64_t i = 0; i < count; ++i) {
                    writer->append(lines, "told", fmt::format(R"({{"number":{},"padding":"{}"}})", ++number, std::string(padding, 'x')), std::chrono::system_clock::now());
                    if (lines.size() > (1U << 20)) server.publish(std::exchange(lines, {}));
                }
                server.publish(std::move(lines));
            } else if (verb == "numbers") {
                std::int64_t count = 0;
                words >> count;
                std::string lines;
                for (std::int64_t i = 0; i < count; ++i) {
                    writer->append(lines, "numbers", numbers_of_step(++step), std::chrono::system_clock::now());
                    if (lines.size() > (1U << 20)) server.publish(std::exchange(lines, {}));
                }
                server.publish(std::move(lines));
            } else if (verb == "begin") {
                step = 0;
                words >> run;
                server.begin(run, 0);
                writer = std::make_unique<MessageWriter>(StreamSource{run, 0});
            } else if (verb == "drain") {
                std::int64_t ms = 0;
                words >> ms;
                server.drain(std::chrono::milliseconds(ms));
            }
            print("done " + line);
        }
    } catch (const std::exception& error) {
        print(std::string("error ") + error.what());
        return 2;
    }
}

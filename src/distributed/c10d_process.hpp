#pragma once
/// c10d in a process that is not Python's: what it expects of one, how much it logs, and what it throws.

#include <chrono>
#include <exception>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace torchbus {

/// While it lives nothing is logged, as it is in the error; unless the user has set how much is.
class QuietC10d {
public:
    QuietC10d();
    ~QuietC10d();
    QuietC10d(const QuietC10d&) = delete;
    QuietC10d& operator=(const QuietC10d&) = delete;
};

/// Of what c10d says; the rest is where in c10d.
std::string first_line(const std::exception& error);
/// As a store keeps values.
inline std::vector<std::uint8_t> bytes_of(const std::string& text) { return {text.begin(), text.end()}; }
inline std::string text_of(const std::vector<std::uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }
std::string seconds_text(std::chrono::milliseconds time);

/// Shuts down all connections of this process over the internet protocols but those of the store at `port`, for a process that
/// is about to end and is still to be asked: who waits for it notices at once.
void shut_down_connections_but(int port);

/// Why the name of a host leads to no address; empty where it does.
std::string why_unknown(const std::string& host);

/// Where ranks meet. From here on SIGPIPE is ignored, unless somebody handles it. Throws: what c10d throws.
c10::intrusive_ptr<c10d::TCPStore> open_store(const std::string& address, int port, bool is_server, std::chrono::milliseconds timeout);

}  // namespace torchbus

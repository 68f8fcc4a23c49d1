#pragma once
/// Ports of the loopback interface for the tests of what meets there.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <stdexcept>

namespace torchbus::test {

/// One that is held while this lives, and listens.
class HeldPort {
public:
    HeldPort() : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof address;
        auto* generic = reinterpret_cast<sockaddr*>(&address);
        if (::bind(socket_, generic, size) != 0 || ::listen(socket_, 1) != 0 || ::getsockname(socket_, generic, &size) != 0) throw std::runtime_error("no port of the loopback interface is free");
        number = ntohs(address.sin_port);
    }
    HeldPort(const HeldPort&) = delete;
    HeldPort& operator=(const HeldPort&) = delete;
    ~HeldPort() { ::close(socket_); }
    int number = 0;

private:
    int socket_;
};

/// One that was free a moment ago.
inline int free_port() { return HeldPort().number; }

}  // namespace torchbus::test

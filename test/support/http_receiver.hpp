#pragma once
/// A server of HTTP on the loopback interface that answers as a test wants it, or does not.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>

namespace torchbus::test {

struct HttpReceived {
    std::string method, target, body;
    std::map<std::string, std::string> headers;  ///< names in lower case
};
struct HttpReply {
    int status = 200;
    std::string body = "{}";
    std::string headers = {};  ///< lines that end in "\r\n"
    enum class Way { Answer, CloseInstead, CloseWithin, NoAnswer } way = Way::Answer;  ///< CloseWithin: in the middle of the body
    std::string behind = {};   ///< bytes that nobody asked for, at once with the answer
};

/// A thread for each connection.
class HttpReceiver {
public:
    explicit HttpReceiver(std::function<HttpReply(const HttpReceived&)> answer, int at_port = 0) : answer_(std::move(answer)), listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<std::uint16_t>(at_port));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof address;
        auto* generic = reinterpret_cast<sockaddr*>(&address);
        const int yes = 1;
        ::setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        if (::bind(listener_, generic, size) != 0 || ::listen(listener_, 8) != 0 || ::getsockname(listener_, generic, &size) != 0) throw std::runtime_error("the port cannot be had");
        port_ = ntohs(address.sin_port);
        accepting_ = std::thread([this] { accept_all(); });
    }
    HttpReceiver(const HttpReceiver&) = delete;
    HttpReceiver& operator=(const HttpReceiver&) = delete;
    ~HttpReceiver() {
        is_closing_ = true;
        accepting_.join();
        for (std::thread& serving : serving_) serving.join();
        ::close(listener_);
    }
    int port() const { return port_; }
    std::string url(const std::string& target = "") const { return fmt::format("http://127.0.0.1:{}{}", port_, target); }
    std::vector<HttpReceived> received() const {
        const std::lock_guard lock(mutex_);
        return received_;
    }
    int connections() const { return connections_; }

private:
    bool has_input(int socket) const {
        pollfd waited{socket, POLLIN, 0};
        while (!is_closing_)
            if (::poll(&waited, 1, 10) > 0) return true;
        return false;
    }
    void accept_all() {
        while (has_input(listener_)) {
            const int socket = ::accept(listener_, nullptr, nullptr);
            if (socket < 0) continue;
            ++connections_;
            serving_.emplace_back([this, socket] {
                serve(socket);
                ::close(socket);
            });
        }
    }
    bool read_more(int socket, std::string& text) const {
        char bytes[65536];
        const ssize_t count = has_input(socket) ? ::recv(socket, bytes, sizeof bytes, 0) : 0;
        if (count > 0) text.append(bytes, static_cast<std::size_t>(count));
        return count > 0;
    }
    void serve(int socket) {
        std::string text;
        for (;;) {
            std::size_t head = 0;
            while ((head = text.find("\r\n\r\n")) == std::string::npos)
                if (!read_more(socket, text)) return;
            HttpReceived request = parsed(text.substr(0, head + 2));
            const std::size_t length = request.headers.contains("content-length") ? std::stoul(request.headers["content-length"]) : 0;
            while (text.size() < head + 4 + length)
                if (!read_more(socket, text)) return;
            request.body = text.substr(head + 4, length);
            text.erase(0, head + 4 + length);
            HttpReply reply;
            {
                const std::lock_guard lock(mutex_);
                reply = answer_(request);
                received_.push_back(std::move(request));
            }
            if (reply.way == HttpReply::Way::CloseInstead) return;
            if (reply.way == HttpReply::Way::NoAnswer) {
                while (read_more(socket, text)) {}
                return;
            }
            const std::string answer = fmt::format("HTTP/1.1 {} Told\r\nContent-Length: {}\r\n{}\r\n{}{}", reply.status, reply.body.size(), reply.headers, reply.body, reply.behind);
            const bool is_cut = reply.way == HttpReply::Way::CloseWithin;
            if (::send(socket, answer.data(), answer.size() - (is_cut ? (reply.body.size() + 1) / 2 : 0), MSG_NOSIGNAL) < 0 || is_cut) return;
        }
    }
    static HttpReceived parsed(const std::string& head) {
        HttpReceived request;
        std::size_t begin = head.find("\r\n");
        const std::string first = head.substr(0, begin);
        request.method = first.substr(0, first.find(' '));
        request.target = first.substr(first.find(' ') + 1, first.rfind(' ') - first.find(' ') - 1);
        for (begin += 2; begin < head.size();) {
            const std::size_t end = head.find("\r\n", begin), colon = head.find(": ", begin);
            std::string name = head.substr(begin, colon - begin);
            std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
            request.headers[name] = head.substr(colon + 2, end - colon - 2);
            begin = end + 2;
        }
        return request;
    }

    std::function<HttpReply(const HttpReceived&)> answer_;  // called by one thread at a time
    int listener_, port_ = 0;
    std::atomic<bool> is_closing_ = false;
    std::atomic<int> connections_ = 0;
    mutable std::mutex mutex_;
    std::vector<HttpReceived> received_;  // guarded by mutex_
    std::list<std::thread> serving_;      // of the accepting thread, until it has ended
    std::thread accepting_;
};

}  // namespace torchbus::test

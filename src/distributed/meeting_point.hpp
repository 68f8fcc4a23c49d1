#pragma once
/// Where the launchers of all nodes meet: a store that the one of node 0 hosts, for its ranks, too.

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <torchbus/distributed/launch.hpp>

namespace torchbus {

/// Once it is there nobody waits long for it: a store whose process is stopped keeps who asks for ever, so a thread asks that may
/// be left alone.
class MeetingPoint {
public:
    /// Opens it on node 0, waits for it on others.
    /// Throws: DistributedError for an address that is unknown, a port that is taken, and where nobody answers.
    explicit MeetingPoint(const LaunchOptions& options);
    ~MeetingPoint();
    MeetingPoint(const MeetingPoint&) = delete;
    MeetingPoint& operator=(const MeetingPoint&) = delete;

    int port() const { return port_; }
    const std::string& address() const { return address_; }
    /// Tells all launchers, as soon as it answers.
    void say(const std::string& key);
    /// Whether all of these were said, as far as it has answered.
    bool is_said(const std::vector<std::string>& keys);
    /// Whether it has not answered for some seconds.
    bool is_silent() const;
    /// Why it is gone, where it is.
    std::optional<std::string> lost() const;

private:
    struct Exchange;
    std::string address_;
    int port_ = 0;
    std::shared_ptr<Exchange> exchange_;
    std::thread thread_;
};

}  // namespace torchbus

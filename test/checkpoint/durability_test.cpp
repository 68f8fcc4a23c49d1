// What a save survives: errors of every call, the death of the process at every call and at any moment, a power failure
// after every call, and damage of every bit.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <set>

#include <torch/torch.h>

#include <torchbus/checkpoint/atomic_file.hpp>
#include <torchbus/checkpoint/disk.hpp>
#include <torchbus/checkpoint/training_state.hpp>

#include "support/catch.hpp"
#include "support/temporary_folder.hpp"

using namespace torchbus;
using namespace torchbus::test;
namespace fs = std::filesystem;

namespace {

/// A state whose every part tells `value`.
TrainingState state_of(double value) {
    TrainingState state;
    state.parts["model"] = {{}, {{"weight", torch::full({2, 3}, value)}, {"bias", torch::full({2}, value)}}};
    state.parts["update"] = {{{"step", value}}, {{"weight/exp_avg", torch::full({2, 3}, value)}}};
    state.parts["callback.stop"] = {{{"best", value}}, {}};
    return state;
}

/// What a folder tells; throws where it is not whole, fails where its parts tell different things.
double value_in(const fs::path& path) {
    const TrainingState state = read_training_state(path);
    REQUIRE(state.parts.size() == 3);
    const double value = state.parts.at("callback.stop").values.at("best");
    CHECK(state.parts.at("model").tensors.at("weight").eq(value).all().item<bool>());
    CHECK(state.parts.at("model").tensors.at("bias").eq(value).all().item<bool>());
    CHECK(state.parts.at("update").tensors.at("weight/exp_avg").eq(value).all().item<bool>());
    CHECK(state.parts.at("update").values.at("step") == value);
    return value;
}

void write_bytes(const fs::path& file, const std::string& bytes) { std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes; }

int number_from_environment(const char* name, int otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atoi(text) : otherwise;
}

/// Asks at every call what is to happen.
class WatchedDisk : public Disk {
public:
    enum class Call { Open, Write, Sync, Close, Rename, Exchange, Mkdir, Unlink, Rmdir, Symlink };
    int open(const char* path, int flags, unsigned mode) override { return around(Call::Open, [&] { return Disk::open(path, flags, mode); }); }
    ssize_t write(int descriptor, const void* bytes, std::size_t count) override {
        return around(Call::Write, [&]() -> ssize_t { return Disk::write(descriptor, bytes, short_write ? (count + 1) / 2 : count); });
    }
    int fsync(int descriptor) override { return around(Call::Sync, [&] { return Disk::fsync(descriptor); }); }
    int close(int descriptor) override { return around(Call::Close, [&] { return Disk::close(descriptor); }); }
    int rename(const char* from, const char* to) override { return around(Call::Rename, [&] { return Disk::rename(from, to); }); }
    int exchange(const char* one, const char* other) override { return around(Call::Exchange, [&] { return Disk::exchange(one, other); }); }
    int mkdir(const char* path, unsigned mode) override { return around(Call::Mkdir, [&] { return Disk::mkdir(path, mode); }); }
    int unlink(const char* path) override { return around(Call::Unlink, [&] { return Disk::unlink(path); }); }
    int rmdir(const char* path) override { return around(Call::Rmdir, [&] { return Disk::rmdir(path); }); }
    int symlink(const char* target, const char* path) override { return around(Call::Symlink, [&] { return Disk::symlink(target, path); }); }

    int calls = 0;
    bool short_write = false;

protected:
    virtual int error_before(Call, int /*number*/) { return 0; }
    virtual void after(Call, int /*number*/) {}

private:
    template <class Do>
    auto around(Call call, Do&& make) -> decltype(make()) {
        const int number = ++calls;
        if (const int error = error_before(call, number)) return errno = error, -1;
        const auto result = make();
        const int kept = errno;
        after(call, number);
        errno = kept;
        return result;
    }
};

class FailingDisk final : public WatchedDisk {
public:
    FailingDisk(int which, int error, bool exchanges = true) : which_(which), error_(error), exchanges_(exchanges) {}
    bool failed = false;

private:
    int error_before(Call call, int number) override {
        if (call == Call::Exchange && !exchanges_) return ENOSYS;
        if (number != which_) return 0;
        failed = true;
        // An interrupted close has closed, and unlink, mkdir and rename are not interrupted.
        if (error_ == EINTR && call != Call::Open && call != Call::Write && call != Call::Sync) return 0;
        return error_;
    }
    int which_, error_;
    bool exchanges_;
};

/// Of all writes the one that is the `which`-th call takes only a part.
class OnceShortDisk final : public WatchedDisk {
public:
    explicit OnceShortDisk(int which) : which_(which) {}

private:
    int error_before(Call, int number) override {
        short_write = number == which_;
        return 0;
    }
    int which_;
};

class DyingDisk final : public WatchedDisk {
public:
    DyingDisk(int which, bool before, bool exchanges = true) : which_(which), before_(before), exchanges_(exchanges) {}

private:
    int error_before(Call call, int number) override {
        if (before_ && number == which_) ::kill(::getpid(), SIGKILL);
        return call == Call::Exchange && !exchanges_ ? EINVAL : 0;
    }
    void after(Call, int number) override {
        if (!before_ && number == which_) ::kill(::getpid(), SIGKILL);
    }
    int which_;
    bool before_, exchanges_;
};

/// All that a saver does when a newer state takes the place of an older one.
void replace_state(const fs::path& folder) {
    write_training_state(folder / "step_6", state_of(2));
    point_link_to(folder / "step_6", "latest");
    point_link_to(folder / "step_6", "best");
    remove_training_state(folder / "step_5");
}
void first_state(const fs::path& folder) {
    write_training_state(folder / "step_5", state_of(1));
    point_link_to(folder / "step_5", "latest");
    point_link_to(folder / "step_5", "best");
}
/// Whatever has happened to replace_state(): the next process finds one of the two whole, both links at whole ones, and nothing else.
void check_what_is_left(const fs::path& folder) {
    for (const char* link : {"latest", "best"}) CHECK(value_in(folder / link) == (fs::read_symlink(folder / link) == "step_5" ? 1 : 2));
    clean_up_training_states(folder);
    const FoundState found = newest_whole_training_state({folder});
    REQUIRE(found.state);
    CHECK(found.passed_over.empty());
    for (const char* link : {"latest", "best"}) CHECK(value_in(folder / link) == (fs::read_symlink(folder / link) == "step_5" ? 1 : 2));
    for (const std::string& name : names_in(folder)) CHECK((name == "step_5" || name == "step_6" || name == "latest" || name == "best"));
}

/// Runs `work` in a child. Returns whether it was killed.
template <class Work>
bool dies_in(Work&& work) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        work();
        ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFSIGNALED(status);
}

}  // namespace

TEST_CASE("an error of any call leaves the old checkpoint or a whole new one, says which, and leaves nothing over", "[checkpoint][durability]") {
    for (const bool exchanges : {true, false})
        for (const int error : {ENOSPC, EIO, EINTR})
            for (int which = 1;; ++which) {
                const TemporaryFolder folder("faults");
                write_training_state(folder / "step_5", state_of(1));
                FailingDisk failing(which, error, exchanges);
                std::string said;
                bool durable = true;
                {
                    const DiskInPlace in_place(failing);
                    try {
                        write_training_state(folder / "step_5", state_of(2));
                    } catch (const NotDurableError& refusal) {
                        durable = false;
                        said = refusal.what();
                    } catch (const CheckpointError& refusal) {
                        said = refusal.what();
                    }
                }
                INFO("call " << which << ", errno " << error << ", exchange " << exchanges << ": " << said);
                clean_up_training_states(folder.path());  // as the next run does
                const bool old_stays = !said.empty() && durable;
                CHECK(value_in(folder / "step_5") == (old_stays ? 1 : 2));
                CHECK(names_in(folder.path()) == std::vector<std::string>{"step_5"});
                if (old_stays) CHECK_THAT(said, Catch::Matchers::EndsWith("; nothing was changed"));
                if (!durable) CHECK_THAT(said, Catch::Matchers::EndsWith("step_5 was written, but may not outlast a power failure"));
                if (error == EINTR) CHECK(said == "");
                if (!failing.failed) break;
            }
}

TEST_CASE("an error of any call of a whole save leaves links that point to whole states, and deletes nothing too early", "[checkpoint][durability]") {
    for (const int error : {ENOSPC, EIO, EINTR})
        for (int which = 1;; ++which) {
            const TemporaryFolder folder("whole-save");
            first_state(folder.path());
            FailingDisk failing(which, error);
            {
                const DiskInPlace in_place(failing);
                try {
                    replace_state(folder.path());
                } catch (const CheckpointError& refusal) {
                    INFO(refusal.what());
                    if (fs::read_symlink(folder / "latest") == "step_5") CHECK(value_in(folder / "step_5") == 1);
                }
            }
            INFO("call " << which << ", errno " << error);
            check_what_is_left(folder.path());
            if (!failing.failed) break;
        }
}

TEST_CASE("the death of the process at any call of a whole save leaves links that point to whole states", "[checkpoint][durability]") {
    for (const bool before : {true, false})
        for (int which = 1;; ++which) {
            const TemporaryFolder folder("whole-save");
            first_state(folder.path());
            DyingDisk dying(which, before);
            const bool died = dies_in([&] {
                const DiskInPlace in_place(dying);
                replace_state(folder.path());
            });
            INFO("call " << which << (before ? ", before" : ", after"));
            check_what_is_left(folder.path());
            if (!died) break;
        }
}

TEST_CASE("where two names cannot be exchanged the death of the process leaves what the next one brings back", "[checkpoint][durability]") {
    for (const bool before : {true, false})
        for (int which = 1;; ++which) {
            const TemporaryFolder folder("death");
            write_training_state(folder / "step_5", state_of(1));
            DyingDisk dying(which, before, false);
            const bool died = dies_in([&] {
                const DiskInPlace in_place(dying);
                write_training_state(folder / "step_5", state_of(2));
            });
            INFO("call " << which << (before ? ", before" : ", after"));
            clean_up_training_states(folder.path());
            const double value = value_in(folder / "step_5");
            CHECK((value == 1 || value == 2));
            CHECK(names_in(folder.path()) == std::vector<std::string>{"step_5"});
            if (!died) break;
        }
}

TEST_CASE("a write that takes only a part is gone on with", "[checkpoint][durability]") {
    const TemporaryFolder folder("short");
    WatchedDisk disk;
    disk.short_write = true;
    const DiskInPlace in_place(disk);
    write_training_state(folder / "step_5", state_of(3));
    CHECK(value_in(folder / "step_5") == 3);
    for (int which = 1;; ++which) {
        OnceShortDisk once(which);
        {
            const DiskInPlace once_in_place(once);
            write_training_state(folder / "step_5", state_of(which));
        }
        INFO("call " << which);
        CHECK(value_in(folder / "step_5") == which);
        if (once.calls < which) break;
    }
}

TEST_CASE("a single file survives an error of any call and the death of the process at any, like a folder", "[checkpoint][durability]") {
    const auto replace = [](const fs::path& file) {
        AtomicFile written(file);
        written.write("new");
        written.commit();
    };
    for (const int error : {ENOSPC, EIO, EINTR})
        for (int which = 1;; ++which) {
            const TemporaryFolder folder("file");
            write_bytes(folder / "file", "old");
            FailingDisk failing(which, error);
            std::string said;
            bool durable = true;
            {
                const DiskInPlace in_place(failing);
                try {
                    replace(folder / "file");
                } catch (const NotDurableError& refusal) {
                    durable = false;
                    said = refusal.what();
                } catch (const CheckpointError& refusal) {
                    said = refusal.what();
                }
            }
            INFO("call " << which << ", errno " << error << ": " << said);
            CHECK(bytes_of(folder / "file") == (!said.empty() && durable ? "old" : "new"));
            CHECK(names_in(folder.path()) == std::vector<std::string>{"file"});
            if (error == EINTR) CHECK(said == "");
            if (!failing.failed) break;
        }
    for (const bool before : {true, false})
        for (int which = 1;; ++which) {
            const TemporaryFolder folder("file");
            write_bytes(folder / "file", "old");
            DyingDisk dying(which, before);
            const bool died = dies_in([&] {
                const DiskInPlace in_place(dying);
                replace(folder / "file");
            });
            const std::string left = bytes_of(folder / "file");
            CHECK((left == "old" || left == "new"));
            replace(folder / "file");  // what was left half written is in nobody's way
            CHECK(names_in(folder.path()) == std::vector<std::string>{"file"});
            if (!died) break;
        }
}

TEST_CASE("the death of the process before or after any call leaves the old checkpoint or the new one", "[checkpoint][durability]") {
    for (const bool before : {true, false})
        for (int which = 1;; ++which) {
            const TemporaryFolder folder("death");
            write_training_state(folder / "step_5", state_of(1));
            DyingDisk dying(which, before);
            const bool died = dies_in([&] {
                const DiskInPlace in_place(dying);
                write_training_state(folder / "step_5", state_of(2));
            });
            INFO("call " << which << (before ? ", before" : ", after"));
            const double value = value_in(folder / "step_5");
            CHECK((value == 1 || value == 2));
            clean_up_training_states(folder.path());
            CHECK(value_in(folder / "step_5") == value);
            CHECK(names_in(folder.path()) == std::vector<std::string>{"step_5"});
            if (!died) break;
        }
}

TEST_CASE("a process killed at any moment of its saves has lost none that it announced", "[checkpoint][durability][slow]") {
    const int kills = number_from_environment("TORCHBUS_KILLS", 100);
    std::mt19937 random(7);
    const TemporaryFolder folder("kills");
    // However slow this build is: in the time before a kill some saves are finished.
    const auto began = std::chrono::steady_clock::now();
    for (int save = 0; save < 4; ++save) write_training_state(folder / "step_5", state_of(0));
    const auto longest = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - began).count() + 2'000;
    double floor = 0;
    for (int attempt = 0; attempt < kills; ++attempt) {
        int announced[2];
        REQUIRE(::pipe(announced) == 0);
        const pid_t child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            ::close(announced[0]);
            for (double value = floor + 1;; ++value) {
                write_training_state(folder / "step_5", state_of(value));
                if (::write(announced[1], &value, sizeof value) != sizeof value) ::_exit(1);
            }
        }
        ::close(announced[1]);
        ::usleep(static_cast<useconds_t>(random() % static_cast<std::uint64_t>(longest)));
        ::kill(child, SIGKILL);
        ::waitpid(child, nullptr, 0);
        for (double value = 0; ::read(announced[0], &value, sizeof value) == sizeof value;) floor = value;
        ::close(announced[0]);
        if (floor == 0) continue;  // it did not come so far
        const double found = value_in(folder / "step_5");
        CHECK(found >= floor);
        CHECK(found <= floor + 1);  // written whole, and not yet announced
        floor = found;
    }
    CHECK(floor > 0);
}

// ── power failure ────────────────────────────────────────────────────────────────────────────────────────────────
namespace {

/// Records what is done to one folder, and does it.
class RecordingDisk final : public Disk {
public:
    struct Operation {
        enum class Kind { Create, Write, SyncFile, SyncFolder, Rename, Exchange, Mkdir, Unlink, Rmdir, Symlink } kind;
        std::string path, other = {}, bytes = {};
    };
    explicit RecordingDisk(fs::path root, bool exchanges = true) : root_(std::move(root)), exchanges_(exchanges) {}
    int open(const char* path, int flags, unsigned mode) override {
        const int descriptor = Disk::open(path, flags, mode);
        if (descriptor >= 0) open_[descriptor] = relative(path);
        if (descriptor >= 0 && (flags & O_CREAT)) operations.push_back({Operation::Kind::Create, relative(path)});
        return descriptor;
    }
    ssize_t write(int descriptor, const void* bytes, std::size_t count) override {
        const ssize_t written = Disk::write(descriptor, bytes, count);
        if (written > 0) operations.push_back({Operation::Kind::Write, open_.at(descriptor), {}, {static_cast<const char*>(bytes), static_cast<std::size_t>(written)}});
        return written;
    }
    int fsync(int descriptor) override {
        const std::string& path = open_.at(descriptor);
        operations.push_back({fs::is_directory(root_ / path) ? Operation::Kind::SyncFolder : Operation::Kind::SyncFile, path});
        return Disk::fsync(descriptor);
    }
    int rename(const char* from, const char* to) override { return note(Operation::Kind::Rename, from, to, Disk::rename(from, to)); }
    int exchange(const char* one, const char* other) override {
        if (!exchanges_) return errno = ENOSYS, -1;
        return note(Operation::Kind::Exchange, one, other, Disk::exchange(one, other));
    }
    int mkdir(const char* path, unsigned mode) override { return note(Operation::Kind::Mkdir, path, "", Disk::mkdir(path, mode)); }
    int unlink(const char* path) override { return note(Operation::Kind::Unlink, path, "", Disk::unlink(path)); }
    int rmdir(const char* path) override { return note(Operation::Kind::Rmdir, path, "", Disk::rmdir(path)); }
    int symlink(const char* target, const char* path) override {
        const int result = Disk::symlink(target, path);
        if (result == 0) operations.push_back({Operation::Kind::Symlink, relative(path), target});
        return result;
    }
    std::vector<Operation> operations;

private:
    std::string relative(const fs::path& path) const { return path.lexically_relative(root_).string(); }
    int note(Operation::Kind kind, const char* path, const char* other, int result) {
        if (result == 0) operations.push_back({kind, relative(path), *other ? relative(other) : ""});
        return result;
    }
    fs::path root_;
    bool exchanges_;
    std::map<int, std::string> open_;
};
using Operation = RecordingDisk::Operation;

/// A file system that loses what was not synced.
class LosingDisk {
public:
    enum class Unsynced { Dropped, Zeroed };
    struct Node {
        bool is_folder = false;
        std::map<std::string, std::shared_ptr<Node>> children = {};
        std::string written = {}, synced = {};
        std::string link_to = {};  ///< not empty for a link
    };

    /// The tree after `count` operations. Of the names that no sync of their folder has followed those are there that the
    /// first `persisting` operations made: a journal keeps their order.
    LosingDisk(const fs::path& start, const std::vector<Operation>& operations, std::size_t count, std::size_t persisting) : root_(node_of(start)) {
        for (std::size_t i = 0; i < count; ++i) {
            const Operation& operation = operations[i];
            const bool durable = i < persisting || is_synced_later(operations, i, count);
            switch (operation.kind) {
                case Operation::Kind::Create:
                    files_[operation.path] = std::make_shared<Node>();
                    if (durable) place(operation.path) = files_[operation.path];
                    break;
                case Operation::Kind::Write: files_.at(operation.path)->written += operation.bytes; break;
                case Operation::Kind::SyncFile: files_.at(operation.path)->synced = files_.at(operation.path)->written; break;
                case Operation::Kind::SyncFolder: break;
                case Operation::Kind::Mkdir:
                    if (durable) place(operation.path) = std::make_shared<Node>(Node{true});
                    break;
                case Operation::Kind::Rename:
                    if (durable) place(operation.other) = std::move(place(operation.path)), erase(operation.path);
                    break;
                case Operation::Kind::Exchange:
                    if (durable) std::swap(place(operation.path), place(operation.other));
                    break;
                case Operation::Kind::Symlink:
                    if (durable) place(operation.path) = std::make_shared<Node>(Node{.link_to = operation.other});
                    break;
                case Operation::Kind::Unlink:
                case Operation::Kind::Rmdir:
                    if (durable) erase(operation.path);
                    break;
            }
        }
    }
    void write_to(const fs::path& target, Unsynced unsynced) const { write(*root_, target, unsynced); }

    /// After how many of the first `count` operations the journal may have been written last: after each that made a name
    /// which no sync has followed, or before all of them.
    static std::vector<std::size_t> last_in_journal(const std::vector<Operation>& operations, std::size_t count) {
        std::vector<std::size_t> found{0};
        for (std::size_t i = 0; i < count; ++i) {
            const bool makes_no_name = operations[i].kind == Operation::Kind::Write || operations[i].kind == Operation::Kind::SyncFile || operations[i].kind == Operation::Kind::SyncFolder;
            if (!makes_no_name && !is_synced_later(operations, i, count)) found.push_back(i + 1);
        }
        return found;
    }

private:
    static std::shared_ptr<Node> node_of(const fs::path& path) {
        if (fs::is_symlink(path)) return std::make_shared<Node>(Node{.link_to = fs::read_symlink(path).string()});
        auto node = std::make_shared<Node>();
        node->is_folder = fs::is_directory(path);
        if (!node->is_folder) node->written = node->synced = bytes_of(path);
        if (node->is_folder)
            for (const auto& entry : fs::directory_iterator(path)) node->children[entry.path().filename().string()] = node_of(entry.path());
        return node;
    }
    /// Of the folder that holds the name; a file's are synced with their folder before it is renamed.
    static bool is_synced_later(const std::vector<Operation>& operations, std::size_t i, std::size_t count) {
        const std::string folder = fs::path(operations[i].path).parent_path().string();
        for (std::size_t later = i + 1; later < count; ++later) {
            const Operation& one = operations[later];
            if (one.kind == Operation::Kind::SyncFolder && (one.path == folder || (folder.empty() && one.path == "."))) return true;
        }
        return false;
    }
    std::shared_ptr<Node>& place(const std::string& path) {
        std::shared_ptr<Node>* node = &root_;
        for (const fs::path& part : fs::path(path)) {
            if (!*node) *node = std::make_shared<Node>(Node{true});  // its folder's own name was lost
            node = &(*node)->children[part.string()];
        }
        return *node;
    }
    void erase(const std::string& path) {
        std::shared_ptr<Node> node = root_;
        const fs::path whole(path);
        for (const fs::path& part : whole.parent_path()) node = node ? node->children[part.string()] : nullptr;
        if (node) node->children.erase(whole.filename().string());
    }
    static void write(const Node& node, const fs::path& target, Unsynced unsynced) {
        if (!node.link_to.empty()) return fs::create_symlink(node.link_to, target);
        if (!node.is_folder) {
            std::string content = node.synced;
            if (unsynced == Unsynced::Zeroed) content.resize(node.written.size(), '\0');
            return write_bytes(target, content);
        }
        fs::create_directories(target);
        for (const auto& [name, child] : node.children)
            if (child) write(*child, target / name, unsynced);
    }
    std::shared_ptr<Node> root_;
    std::map<std::string, std::shared_ptr<Node>> files_;  ///< by the path that they were created under
};

}  // namespace

namespace {

/// Does `work` in a copy of `start`, and hands to `check` the folder that each power failure would leave, and whether all was done.
void after_each_power_failure(const fs::path& start, bool exchanges, const std::function<void(const fs::path&)>& work, const std::function<void(const fs::path&, bool)>& check) {
    const TemporaryFolder live("power-live");
    fs::copy(start, live.path(), fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    RecordingDisk recording(live.path(), exchanges);
    {
        const DiskInPlace in_place(recording);
        work(live.path());
    }
    const std::size_t all = recording.operations.size();
    REQUIRE(all > 12);
    for (std::size_t count = 0; count <= all; ++count)
        for (const std::size_t persisting : LosingDisk::last_in_journal(recording.operations, count))
            for (const auto unsynced : {LosingDisk::Unsynced::Dropped, LosingDisk::Unsynced::Zeroed}) {
                const TemporaryFolder after("power-after");
                LosingDisk(start, recording.operations, count, persisting).write_to(after.path(), unsynced);
                INFO(count << " of " << all << " operations, names of the first " << persisting << ", exchange: " << exchanges);
                check(after.path(), count == all);
            }
}

}  // namespace

TEST_CASE("a power failure after any call leaves the old checkpoint or the new one", "[checkpoint][durability]") {
    const TemporaryFolder start("power-start");
    write_training_state(start / "step_5", state_of(1));
    for (const bool exchanges : {true, false}) {
        std::set<double> seen;
        after_each_power_failure(start.path(), exchanges, [](const fs::path& folder) { write_training_state(folder / "step_5", state_of(2)); }, [&](const fs::path& after, bool is_announced) {
            if (!exchanges) clean_up_training_states(after);  // as the next run does
            const double value = value_in(after / "step_5");
            if (is_announced) CHECK(value == 2);
            seen.insert(value);
        });
        CHECK(seen == std::set<double>{1, 2});
    }
}

TEST_CASE("a power failure after any call of a first save leaves it whole or not there, and what was announced is there", "[checkpoint][durability]") {
    const TemporaryFolder start("power-start");
    after_each_power_failure(start.path(), true, [](const fs::path& folder) { write_training_state(folder / "deep/states/step_5", state_of(1)); }, [](const fs::path& after, bool is_announced) {
        if (is_announced || fs::exists(after / "deep/states/step_5/manifest.json")) CHECK(value_in(after / "deep/states/step_5") == 1);
    });
}

TEST_CASE("a power failure after any call of a whole save leaves links that point to whole states, and deletes nothing too early", "[checkpoint][durability]") {
    const TemporaryFolder start("power-start");
    first_state(start.path());
    std::set<std::string> seen;
    after_each_power_failure(start.path(), true, replace_state, [&](const fs::path& after, bool is_announced) {
        if (is_announced) CHECK(fs::read_symlink(after / "latest") == "step_6");
        for (const char* link : {"latest", "best"}) seen.insert(link + (" " + fs::read_symlink(after / link).string()));
        check_what_is_left(after);
    });
    CHECK(seen == std::set<std::string>{"best step_5", "best step_6", "latest step_5", "latest step_6"});
}

// ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────
namespace {

std::string complaint(const fs::path& folder) {
    try {
        read_training_state(folder);
    } catch (const CheckpointError& error) {
        return error.what();
    }
    return "";
}

}  // namespace

namespace {

/// Where in a safetensors file the tensors begin.
std::size_t data_of(const std::string& file) {
    std::uint64_t header = 0;
    std::memcpy(&header, file.data(), sizeof header);
    return sizeof header + static_cast<std::size_t>(header);
}

}  // namespace

TEST_CASE("a flipped bit anywhere in a checkpoint is found, and the file is named", "[checkpoint][durability]") {
    const TemporaryFolder folder("bits");
    write_training_state(folder / "step_4", state_of(1));
    write_training_state(folder / "step_5", state_of(2));
    for (const std::string& name : names_in(folder / "step_5")) {
        const fs::path file = folder / "step_5" / name;
        const std::string whole = bytes_of(file);
        for (std::size_t bit = 0; bit < whole.size() * 8; ++bit) {
            std::string damaged = whole;
            damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
            write_bytes(file, damaged);
            const std::string said = complaint(folder / "step_5");
            const bool in_tensor = name.ends_with(".safetensors") && bit / 8 >= data_of(whole);
            const bool names_tensor = said.find("the tensor '") != std::string::npos || !in_tensor;
            if (bit % 64 == 5) CHECK(newest_whole_training_state({folder.path()}).state.value().path == folder / "step_4");
            if (said.starts_with(file.string() + ": ") && said.ends_with("; resume from " + (folder / "step_4").string()) && names_tensor) continue;
            FAIL("bit " << bit << " of " << name << ": " << said);
        }
        write_bytes(file, whole);
    }
    const fs::path model = folder / "step_5/model.safetensors";
    std::string damaged = bytes_of(model);
    damaged.back() = static_cast<char>(damaged.back() ^ 1);  // in the last tensor's data
    write_bytes(model, damaged);
    CHECK_THAT(complaint(folder / "step_5"), containing("the tensor 'weight' is damaged"));
    const FoundState found = newest_whole_training_state({folder.path()});
    REQUIRE(found.state.has_value());
    CHECK(found.state->path == folder / "step_4");
    REQUIRE(found.passed_over.size() == 1);
    CHECK_THAT(found.passed_over[0], Catch::Matchers::StartsWith(model.string() + ": its checksum is not that of the manifest; the tensor 'weight' is damaged"));
}

TEST_CASE("a file that is cut off anywhere is found, and so are random bytes", "[checkpoint][durability]") {
    const TemporaryFolder folder("cuts");
    write_training_state(folder / "step_5", state_of(2));
    const auto names = names_in(folder / "step_5");
    for (const std::string& name : names) {
        const fs::path file = folder / "step_5" / name;
        const std::string whole = bytes_of(file);
        for (std::size_t length = 0; length < whole.size(); ++length) {
            write_bytes(file, whole.substr(0, length));
            if (!complaint(folder / "step_5").starts_with(file.string() + ": ")) FAIL(name << " cut off at " << length << ": " << complaint(folder / "step_5"));
        }
        write_bytes(file, whole);
    }
    std::mt19937 random(3);
    for (int i = 0; i < 10'000; ++i) {
        const fs::path file = folder / "step_5" / names[random() % names.size()];
        const std::string whole = bytes_of(file);
        std::string damaged = whole;
        const std::size_t at = random() % whole.size();
        damaged[at] = static_cast<char>(random());
        if (damaged == whole) continue;
        write_bytes(file, damaged);
        if (!complaint(folder / "step_5").starts_with(file.string() + ": ")) FAIL(file << " at " << at << ": " << complaint(folder / "step_5"));
        write_bytes(file, whole);
    }
    CHECK(value_in(folder / "step_5") == 2);
}

#include <torchbus/checkpoint/disk.hpp>

#include <fcntl.h>
#include <stdio.h>  // renameat2
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>

namespace torchbus {
namespace {

Disk& system_disk() {
    static Disk kSystem;
    return kSystem;
}
std::atomic<Disk*> in_place{nullptr};

}  // namespace

int Disk::open(const char* path, int flags, unsigned mode) { return ::open(path, flags, static_cast<mode_t>(mode)); }
ssize_t Disk::write(int descriptor, const void* bytes, std::size_t count) { return ::write(descriptor, bytes, count); }
int Disk::fsync(int descriptor) { return ::fsync(descriptor); }
int Disk::close(int descriptor) { return ::close(descriptor); }
int Disk::rename(const char* from, const char* to) { return ::rename(from, to); }
int Disk::exchange(const char* one, const char* other) { return ::renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE); }
int Disk::mkdir(const char* path, unsigned mode) { return ::mkdir(path, static_cast<mode_t>(mode)); }
int Disk::unlink(const char* path) { return ::unlink(path); }
int Disk::rmdir(const char* path) { return ::rmdir(path); }
int Disk::symlink(const char* target, const char* path) { return ::symlink(target, path); }

Disk& disk() {
    Disk* const other = in_place.load(std::memory_order_acquire);
    return other ? *other : system_disk();
}

DiskInPlace::DiskInPlace(Disk& other) : former_(in_place.exchange(&other, std::memory_order_acq_rel)) {}
DiskInPlace::~DiskInPlace() { in_place.store(former_, std::memory_order_release); }

}  // namespace torchbus

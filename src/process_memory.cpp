#include <torchbus/process_memory.hpp>

#include <fstream>
#include <string>

namespace torchbus {

// VmHWM and not getrusage's ru_maxrss, which a process inherits from the one that started it.
ProcessMemory memory_of_process() {
    ProcessMemory memory;
    std::ifstream status("/proc/self/status");
    for (std::string key, line; status >> key && std::getline(status, line);) {
        if (key == "VmRSS:") memory.resident_bytes = std::stod(line) * 1024;  // "  123456 kB"
        if (key == "VmHWM:") memory.peak_bytes = std::stod(line) * 1024;
    }
    return memory;
}

}  // namespace torchbus

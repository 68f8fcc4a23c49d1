#pragma once

namespace torchbus {

/// Of this process in main memory, in bytes; 0 where the system does not tell.
struct ProcessMemory {
    double resident_bytes = 0, peak_bytes = 0;
};
ProcessMemory memory_of_process();

}  // namespace torchbus

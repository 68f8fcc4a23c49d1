#pragma once
/// What is written to standard error while it lives: warnings.

#include <unistd.h>

#include <cstdio>
#include <string>

namespace torchbus::test {

class CapturedStderr {
public:
    CapturedStderr() : file_(std::tmpfile()), kept_(::dup(STDERR_FILENO)) {
        std::fflush(stderr);
        ::dup2(::fileno(file_), STDERR_FILENO);
    }
    CapturedStderr(const CapturedStderr&) = delete;
    CapturedStderr& operator=(const CapturedStderr&) = delete;
    ~CapturedStderr() {
        std::fflush(stderr);
        ::dup2(kept_, STDERR_FILENO);
        ::close(kept_);
        std::fclose(file_);
    }
    std::string text() const {
        std::fflush(stderr);
        std::string text;
        std::rewind(file_);
        for (int c; (c = std::fgetc(file_)) != EOF;) text += static_cast<char>(c);
        std::fseek(file_, 0, SEEK_END);
        return text;
    }

private:
    std::FILE* file_;
    int kept_;
};

}  // namespace torchbus::test

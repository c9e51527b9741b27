// The exceptions that the core throws, and errno turned into a sentence.
//
// A message tells the verb, the object, the cause, what came and what was expected:
// "cannot attach 'apex': /dev/shm/mpbuffer-0-apex has mode 0644, expected 0600".
// Only SystemFailure carries a number (an errno); no function of the core returns a status code.
#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

namespace mpbuffer {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct SegmentNotFound : Error {
    using Error::Error;
};
struct SegmentExists : Error {
    using Error::Error;
};
struct SegmentMismatch : Error {  // foreign, damaged, of another format or schema
    using Error::Error;
};
struct NotEnoughMemory : Error {
    using Error::Error;
};
struct ProcessTableFull : Error {
    using Error::Error;
};
struct RoleBusy : Error {  // another handle has the role
    using Error::Error;
};
struct LearnerBusy : RoleBusy {
    using RoleBusy::RoleBusy;
};
struct PublisherBusy : RoleBusy {
    using RoleBusy::RoleBusy;
};
struct RoleReleased : Error {  // by this handle, while a thread of its own was sampling
    using Error::Error;
};
struct SlotsHeld : Error {
    using Error::Error;
};
struct EmptyBuffer : Error {
    using Error::Error;
};
struct BufferClosed : Error {
    using Error::Error;
};
struct InvalidArgument : Error {  // a value that the call cannot take
    using Error::Error;
};
struct IndexOutOfRange : Error {
    using Error::Error;
};

struct SystemFailure : Error {
    SystemFailure(const std::string& message, int errno_code) : Error(message), code(errno_code) {}
    int code;
};

// "permission denied (EACCES)"; an errno without a name here gives "... (errno 95)".
inline std::string errno_sentence(int code) {
    const char* name = nullptr;
    switch (code) {
            // clang-format off
        case EACCES: name = "EACCES"; break;
        case EAGAIN: name = "EAGAIN"; break;
        case EBADF: name = "EBADF"; break;
        case EEXIST: name = "EEXIST"; break;
        case EFBIG: name = "EFBIG"; break;
        case EINTR: name = "EINTR"; break;
        case EINVAL: name = "EINVAL"; break;
        case EIO: name = "EIO"; break;
        case EISDIR: name = "EISDIR"; break;
        case ELOOP: name = "ELOOP"; break;
        case EMFILE: name = "EMFILE"; break;
        case ENAMETOOLONG: name = "ENAMETOOLONG"; break;
        case ENFILE: name = "ENFILE"; break;
        case ENODEV: name = "ENODEV"; break;
        case ENOENT: name = "ENOENT"; break;
        case ENOLCK: name = "ENOLCK"; break;
        case ENOMEM: name = "ENOMEM"; break;
        case ENOSPC: name = "ENOSPC"; break;
        case ENOSYS: name = "ENOSYS"; break;
        case ENOTDIR: name = "ENOTDIR"; break;
        case EOPNOTSUPP: name = "EOPNOTSUPP"; break;
        case EOVERFLOW: name = "EOVERFLOW"; break;
        case EPERM: name = "EPERM"; break;
        case EROFS: name = "EROFS"; break;
        default: break;
            // clang-format on
    }
    std::string text = std::generic_category().message(code);
    if (text.size() > 1 && text[0] >= 'A' && text[0] <= 'Z' && text[1] >= 'a' && text[1] <= 'z') {
        text[0] = static_cast<char>(text[0] - 'A' + 'a');
    }
    return text + (name != nullptr ? " (" + std::string(name) + ")"
                                   : " (errno " + std::to_string(code) + ")");
}

// what: verb and object, such as "cannot open /dev/shm/mpbuffer-0-apex".
[[noreturn]] inline void throw_system_failure(const std::string& what, int code) {
    throw SystemFailure(what + ": " + errno_sentence(code), code);
}

}  // namespace mpbuffer

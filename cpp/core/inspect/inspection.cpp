#include "inspect/inspection.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "base/error.hpp"
#include "inspect/file.hpp"
#include "inspect/ring.hpp"
#include "inspect/weights.hpp"
#include "os/file_locks.hpp"
#include "segment/names.hpp"
#include "segment/sweep.hpp"

namespace mpbuffer {

Inspection inspect_segment(const std::string& name, Scrutiny scrutiny, const std::string& directory,
                           std::chrono::microseconds pause) {
    require_valid_name(name);
    Inspection report;
    report.name = name;
    report.path = segment_path(name, directory);
    if (access(report.path.c_str(), F_OK) != 0) {
        if (std::string path = nameless_path(name); !path.empty()) {
            report.path = std::move(path);
            report.nameless = true;
        }
    }
    const ReadOnlyFile file(report.path, report.nameless, "cannot inspect '" + name + "'");
    report.bytes = file.size();
    report.mode = file.mode();
    report.live = held_elsewhere(file.descriptor(), lock_byte::presence);
    if ((report.mode & (S_IRWXG | S_IRWXO)) != 0) {
        tell_damage(report, "the file has mode " + mode_in_words(report.mode) +
                                ", expected 0600: nobody can attach");
    }
    try {
        report.header =
            read_header(file.data(), file.size(), name, report.description, SegmentKind::none);
    } catch (const SegmentMismatch& mismatch) {
        report.refusal = mismatch.what();
        tell_damage(report, report.refusal);
        return report;
    }
    if (report.header.kind == SegmentKind::weights) {
        inspect_weights(file, pause, report);
    } else {
        inspect_ring(file, scrutiny, pause, report);
    }
    return report;
}

}  // namespace mpbuffer

// mpbuffer_stops: processes that die or stop at every step of the protocol, and what they leave.
//
//   mpbuffer_stops [--hits N] [--jobs N] [--only TEXT] [--seed N] [--slack SECONDS] [--short]
//       every step x {SIGKILL, SIGSTOP, SIGSTOP then SIGCONT a lap later}, N times each
//   mpbuffer_stops --chaos [--kills N] [--stops N] [--jobs N] [--seed N] [--slack SECONDS]
//   [--short]
//       SIGKILL, SIGSTOP and SIGCONT at random moments
//   mpbuffer_stops --forks [--hits N]
//       forks while other threads are inside add
//   mpbuffer_stops --namespaces [--kills N] | --execs [--kills N]
//       explorers in pid namespaces of their own; explorers that become other programs
//
//   With --nameless every segment is without a name; else about half of them are.
//
// Ends with status 0 if there was no violation and every step was reached as often as asked for;
// with 77 if what it needs is not allowed here.
#include <sys/mman.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "chaos.hpp"
#include "children.hpp"
#include "outsiders.hpp"
#include "steps.hpp"

using namespace stops;
using mpbuffer::stop_point_count;
using mpbuffer::stop_point_names;

namespace {

enum class Mode { steps, chaos, forks, namespaces, execs };
constexpr int exit_skipped = 77;

struct Arguments {
    std::uint64_t hits = 1000;
    std::uint64_t kills = 10'000;
    std::uint64_t stops = 3000;
    std::uint64_t jobs = 2;
    std::uint64_t seed = 0;
    double slack = 1;
    std::string only;
    bool is_short = false;
    Mode mode = Mode::steps;
};

struct Report {
    std::atomic<std::uint64_t> over;
    CellResult cell;
    ChaosResult chaos;
    std::uint64_t violations;
    double slowest;
    char slowest_call[40];
    char first[5][400];
};

void fill(Report& report, const Findings& findings) {
    report.violations = findings.violations;
    report.slowest = findings.slowest;
    std::snprintf(report.slowest_call, sizeof report.slowest_call, "%s",
                  findings.slowest_call.c_str());
    for (std::size_t i = 0; i < findings.first.size(); ++i) {
        std::snprintf(report.first[i], sizeof report.first[i], "%s", findings.first[i].c_str());
    }
    report.over = 1;
}

Report* new_reports(std::size_t count) {
    void* const memory = mmap(nullptr, count * sizeof(Report), PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    return static_cast<Report*>(memory);
}

// Runs body(i) for i < count in processes of their own, `jobs` at a time.
template <class Body>
void in_parallel(std::size_t count, std::uint64_t jobs, Body&& body) {
    std::size_t next = 0;
    std::size_t running = 0;
    while (next < count || running != 0) {
        if (next < count && running < jobs) {
            std::fflush(nullptr);
            if (fork() == 0) {
                alarm(watchdog_seconds);
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                int status = 0;
                try {
                    body(next);
                } catch (const std::exception& error) {
                    std::fprintf(stderr, "supervisor: %s\n", error.what());
                    status = 1;
                }
                _exit(status);
            }
            ++next;
            ++running;
            continue;
        }
        int status = 0;
        const pid_t ended = wait(&status);
        if (ended <= 0) continue;
        --running;
        ScratchFolder::remove_left_by(ended);
    }
}

int told(const Report* reports, std::size_t count) {
    std::uint64_t violations = 0;
    double slowest = 0;
    const char* slowest_call = "";
    for (std::size_t i = 0; i < count; ++i) {
        if (reports[i].over == 0) ++violations;
        violations += reports[i].violations;
        if (reports[i].slowest > slowest) {
            slowest = reports[i].slowest;
            slowest_call = reports[i].slowest_call;
        }
        for (const auto& text : reports[i].first) {
            if (text[0] != '\0') std::printf("VIOLATION %s\n", text);
        }
    }
    std::printf("longest time of a live call beyond its bound: %.3f s (%s)\n", slowest,
                slowest_call);
    std::printf("violations: %llu\n", static_cast<unsigned long long>(violations));
    return violations == 0 ? 0 : 1;
}

int run_steps(const Arguments& arguments) {
    struct Cell {
        std::size_t point;  // stop_point_count: all slots held
        Fate fate;
    };
    std::vector<Cell> cells;
    for (std::size_t point = 0; point < stop_point_count; ++point) {
        if (std::string(stop_point_names[point]).find(arguments.only) == std::string::npos)
            continue;
        for (const Fate fate : {Fate::kill, Fate::stop, Fate::stop_and_continue}) {
            cells.push_back({point, fate});
        }
    }
    if (std::string("all_slots_held").find(arguments.only) != std::string::npos) {
        cells.push_back({stop_point_count, Fate::stop});
    }
    Report* const reports = new_reports(cells.size());
    in_parallel(cells.size(), arguments.jobs, [&](std::size_t i) {
        Findings findings;
        findings.slack = arguments.slack;
        Random random(arguments.seed * 1000 + i);
        const Cell cell = cells[i];
        reports[i].cell = cell.point == stop_point_count
                              ? run_all_slots_held(std::max<std::uint64_t>(1, arguments.hits / 50),
                                                   findings, random)
                              : run_cell(static_cast<mpbuffer::StopPoint>(cell.point), cell.fate,
                                         arguments.hits, findings, random);
        fill(reports[i], findings);
    });
    std::printf("%-24s %-13s %8s %11s %12s %10s\n", "step", "signal", "hits", "not reached",
                "verified", "violations");
    bool all_reached = true;
    std::uint64_t hits = 0;
    for (std::size_t i = 0; i < cells.size(); ++i) {
        const bool held = cells[i].point == stop_point_count;
        const Report& report = reports[i];
        const char* const name = held ? "all_slots_held" : stop_point_names[cells[i].point];
        std::printf("%-24s %-13s %8llu %11llu %12llu %10llu%s\n", name,
                    fate_names[static_cast<int>(cells[i].fate)],
                    static_cast<unsigned long long>(report.cell.hits),
                    static_cast<unsigned long long>(report.cell.not_reached),
                    static_cast<unsigned long long>(report.cell.verifications),
                    static_cast<unsigned long long>(report.violations),
                    report.over == 0 ? " HUNG OR DIED" : "");
        for (const auto& text : report.first) {
            if (text[0] != '\0') std::printf("    %s\n", text);
        }
        hits += report.cell.hits;
        all_reached = all_reached && (held || report.cell.hits >= arguments.hits);
    }
    std::printf("hits: %llu\n", static_cast<unsigned long long>(hits));
    if (!all_reached) std::printf("not every step was reached as often as asked for\n");
    const int status = told(reports, cells.size());
    return all_reached ? status : 1;
}

int run_chaos_campaign(const Arguments& arguments) {
    Report* const reports = new_reports(arguments.jobs);
    in_parallel(arguments.jobs, arguments.jobs, [&](std::size_t i) {
        Findings findings;
        findings.slack = arguments.slack;
        Random random(arguments.seed * 1000 + 500 + i);
        const auto share = [&](std::uint64_t all) {
            return (all + arguments.jobs - 1) / arguments.jobs;
        };
        const auto run = [&] {
            switch (arguments.mode) {
                case Mode::forks:
                    return run_forks_beside_adds(share(arguments.hits), findings, random);
                case Mode::namespaces:
                    return run_namespaces(share(arguments.kills), findings, random);
                case Mode::execs: return run_execs(share(arguments.kills), findings, random);
                default:
                    return run_chaos(share(arguments.kills), share(arguments.stops), findings,
                                     random);
            }
        };
        reports[i].chaos = run();
        fill(reports[i], findings);
    });
    ChaosResult sum;
    for (std::size_t i = 0; i < arguments.jobs; ++i) sum += reports[i].chaos;
    print(sum);
    return told(reports, arguments.jobs);
}

}  // namespace

int main(int count, char** values) {
    if (count == 7 && std::string(values[1]) == "--exec-explorer") {
        install_hook();
        return explore_after_exec(values + 2);
    }
    Arguments arguments;
    for (int i = 1; i < count; ++i) {
        const std::string name = values[i];
        const auto value = [&]() -> const char* {
            if (i + 1 == count) {
                std::fprintf(stderr, "%s needs a value\n", name.c_str());
                std::exit(2);
            }
            return values[++i];
        };
        const auto number = [&] { return std::strtoull(value(), nullptr, 10); };
        if (name == "--hits") {
            arguments.hits = number();
        } else if (name == "--kills") {
            arguments.kills = number();
        } else if (name == "--stops") {
            arguments.stops = number();
        } else if (name == "--jobs") {
            arguments.jobs = std::max(1ull, number());
        } else if (name == "--seed") {
            arguments.seed = number();
        } else if (name == "--slack") {
            arguments.slack = std::strtod(value(), nullptr);
        } else if (name == "--only") {
            arguments.only = value();
        } else if (name == "--short") {
            arguments.is_short = true;
        } else if (name == "--chaos") {
            arguments.mode = Mode::chaos;
        } else if (name == "--forks") {
            arguments.mode = Mode::forks;
        } else if (name == "--namespaces") {
            arguments.mode = Mode::namespaces;
        } else if (name == "--nameless") {
            all_nameless = true;
        } else if (name == "--execs") {
            arguments.mode = Mode::execs;
        } else {
            std::fprintf(stderr, "unknown argument %s\n", name.c_str());
            return 2;
        }
    }
    if (arguments.is_short) {
        arguments.hits = arguments.mode == Mode::forks ? 50 : 12;
        arguments.kills = arguments.mode == Mode::chaos ? 300 : 100;
        arguments.stops = 100;
    }
    if (arguments.mode == Mode::namespaces && !may_make_pid_namespaces()) {
        std::printf("skipped: no right to make pid namespaces\n");
        return exit_skipped;
    }
    install_hook();
    return arguments.mode == Mode::steps ? run_steps(arguments) : run_chaos_campaign(arguments);
}

#include <fcntl.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "children.hpp"
#include "outsiders.hpp"

namespace stops {

using namespace mpbuffer;

namespace {

// What this process hands on to the program that it becomes.
struct Legacy {
    std::string folder;
    std::string name;
    int board_fd = -1;
    std::uint64_t seed = 0;
    Board* board = nullptr;
};
Legacy legacy;

constexpr const char* other_program = "sleep";

void become_another_program() {
    execl("/bin/sleep", other_program, "1000", nullptr);
    _exit(98);
}

void become_the_next_run() {
    legacy.board->execs.fetch_add(1);
    const std::uint32_t seat = legacy.board->next_seat.fetch_add(1);
    if (seat >= max_seats) become_another_program();
    execl("/proc/self/exe", "mpbuffer_stops", "--exec-explorer", legacy.folder.c_str(),
          legacy.name.c_str(), std::to_string(legacy.board_fd).c_str(),
          std::to_string(seat).c_str(), std::to_string(legacy.seed).c_str(), nullptr);
    _exit(98);
}

int explore_until_exec(ReplayBuffer& buffer, Board& board, Seat& seat, Random random) {
    legacy.seed = random.next();
    Explorer explorer(buffer, board, seat);
    const bool stays = random.one_in(4);
    const auto become = stays ? become_another_program : become_the_next_run;
    if (random.one_in(3)) {
        const auto moment = static_cast<long>(random.below(3000));
        std::thread([become, moment] {
            pause_microseconds(moment);
            become();
        }).detach();
    } else {
        armed.point = steps_inside_add[random.below(std::size(steps_inside_add))];
        armed.countdown = random.between(1, 24);
        armed.seat = &seat;
        armed.act = become;
        armed.on = true;
    }
    const std::uint64_t longest = std::min<std::uint64_t>(buffer.capacity(), 20);
    while (board.quit.load() == 0) explorer.add(random.between(1, longest));
    _exit(0);  // with the thread that may be about to become something else
}

SegmentOptions options_of(const std::string& folder) {
    SegmentOptions options;
    options.directory = folder;
    return options;
}

class ExecCampaign {
  public:
    ExecCampaign(std::uint64_t kills, Findings& findings, Random& random)
        : kills_(kills), findings_(findings), random_(random), board_(new_board(&board_fd_)) {}

    ChaosResult run() {
        while (result_.kills < kills_ && findings_.violations < enough_violations) {
            static constexpr std::uint64_t capacities[] = {2, 8, 9, 24, 64};
            const std::uint64_t capacity = capacities[random_.below(5)];
            const std::size_t words =
                random_.one_in(3) ? random_.between(64, 3000) : random_.between(5, 16);
            Arena arena(folder_.path(), *board_, capacity, RowShape{words}, findings_, random_);
            arena.commits_may_be_unlogged = true;
            for (int round = 0; round < 3; ++round) play(arena);
            result_.kills_with_claim_left += arena.claims_ever_left();
            arena.end(folder_);
        }
        result_.execs = board_->execs;
        return result_;
    }

  private:
    void start(Arena& arena, Children& children, Seat& seat) {
        const Random its_random(random_.next());
        children.start([&] {
            legacy = {folder_.path(), arena.name(), board_fd_, 0, board_};
            return explore_until_exec(arena.live(), *board_, seat, its_random);
        });
    }

    void play(Arena& arena) {
        alarm(watchdog_seconds);
        board_->quit = 0;
        board_->next_seat = 1;
        Children children;
        const std::size_t most = random_.between(1, 6);
        std::vector<std::size_t> exploring;
        while (board_->next_seat.load() + most < max_seats) {
            if (exploring.size() < most) {
                Seat& seat = board_->seats[board_->next_seat.fetch_add(1)];
                exploring.push_back(children.all().size());
                start(arena, children, seat);
            }
            for (std::uint64_t i = random_.below(4); i > 0; --i) arena.work(true);
            if (random_.one_in(3)) pause_microseconds(static_cast<long>(random_.below(4000)));
            if (exploring.size() < most && !random_.one_in(3)) continue;
            const std::size_t which = random_.below(exploring.size());
            // Some that have become another program live to the end, and prove nothing by it.
            Child& child = children.all()[exploring[which]];
            exploring.erase(exploring.begin() + static_cast<std::ptrdiff_t>(which));
            if (children.all().size() < 60 && is_another_program(child) && random_.one_in(2)) {
                continue;
            }
            expect_running(child);
            child.kill_to_zombie();
            ++result_.kills;
        }
        board_->quit = 1;
        std::size_t living = 0;
        for (Child& child : children.all()) living += is_left_by(child) ? 1 : 0;
        result_.stops += living;
        for (std::size_t seat = 0; seat < max_seats; ++seat) {
            result_.rows_acknowledged += board_->seats[seat].acknowledged;
        }
        arena.verify(Others::dead, 0, true);
        arena.lap(true, true);
        if (arena.claims() != 0) findings_.add("an exec has left claims that stay");
        if (arena.live().processes().size() != 1) findings_.add("an exec has left handles");
        arena.verify(Others::dead, 0, true);
        result_.verifications += 2;
    }

    static bool is_another_program(const Child& child) {
        std::ifstream file("/proc/" + std::to_string(child.pid) + "/comm");
        std::string name;
        return std::getline(file, name) && name == other_program;
    }

    // So exec has returned: it has its name a little earlier than its old descriptors are closed.
    static bool sleeps(const Child& child) {
        std::ifstream file("/proc/" + std::to_string(child.pid) + "/stat");
        std::string text;
        std::getline(file, text);
        const std::size_t name_ends = text.rfind(')');
        return name_ends != std::string::npos && text.compare(name_ends, 3, ") S") == 0;
    }

    void expect_running(Child& child) {
        if (child.look() != ChildState::running) {
            findings_.add("an explorer ended by itself, status %d", child.status);
        }
    }

    // Waits until the child has ended, or is another program; then true.
    bool is_left_by(Child& child) {
        for (int i = 0; i < 100'000; ++i) {
            const ChildState state = child.look();
            if (state == ChildState::exited && child.status != 0) {
                findings_.add("an explorer ended with status %d", child.status);
            }
            if (state == ChildState::killed && child.status != SIGKILL) {
                findings_.add("an explorer died of signal %d", child.status);
            }
            if (state == ChildState::exited || state == ChildState::killed) return false;
            if (is_another_program(child) && sleeps(child)) return true;
            pause_microseconds(200);
        }
        findings_.add("an explorer hung");
        child.kill_to_zombie();
        return false;
    }

    std::uint64_t kills_;
    Findings& findings_;
    Random& random_;
    ScratchFolder folder_;
    int board_fd_ = -1;
    Board* board_;
    ChaosResult result_;
};

}  // namespace

ChaosResult run_execs(std::uint64_t kills, Findings& findings, Random& random) {
    return ExecCampaign(kills, findings, random).run();
}

int explore_after_exec(char** arguments) {
    const int board_fd = std::atoi(arguments[2]);
    legacy = {arguments[0], arguments[1], board_fd, 0, board_of_file(board_fd)};
    Seat& seat = legacy.board->seats[std::atoi(arguments[3])];
    const Random random(std::strtoull(arguments[4], nullptr, 10));
    try {
        const auto buffer = attach(legacy.name, options_of(legacy.folder));
        return explore_until_exec(*buffer, *legacy.board, seat, random);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "after an exec: %s\n", error.what());
        return 99;
    }
}

}  // namespace stops

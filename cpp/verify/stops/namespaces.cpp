#include <fcntl.h>
#include <sched.h>

#include <algorithm>
#include <vector>

#include "base/error.hpp"
#include "children.hpp"
#include "outsiders.hpp"

namespace stops {

using namespace mpbuffer;

namespace {

// From construction to destruction children are forked into a new pid namespace: for one child.
class NewPidNamespace {
  public:
    NewPidNamespace() : own_(open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC)) {
        made_ = unshare(CLONE_NEWPID) == 0;
    }
    NewPidNamespace(const NewPidNamespace&) = delete;
    NewPidNamespace& operator=(const NewPidNamespace&) = delete;
    ~NewPidNamespace() {
        if (made_ && setns(own_, CLONE_NEWPID) != 0) std::abort();
        close(own_);
    }
    bool made() const { return made_; }

  private:
    int own_;
    bool made_ = false;
};

Board* the_board = nullptr;
bool closes_descriptors = false;

void stand_still() {
    if (closes_descriptors) close_range(STDERR_FILENO + 1, ~0U, 0);
    while (the_board->go.load() == 0) pause_microseconds(200);
}

int explore_abroad(Arena& arena, Seat& seat, Random random) {
    Board& board = arena.board();
    ReplayBuffer* buffer = &arena.live();
    std::unique_ptr<ReplayBuffer> attached;
    if (random.one_in(2)) {
        attached = attach(arena.name(), arena.options());
        buffer = attached.get();
    }
    Explorer explorer(*buffer, board, seat);
    the_board = &board;
    closes_descriptors = random.one_in(2);
    armed.point = steps_inside_add[random.below(std::size(steps_inside_add))];
    armed.countdown = random.between(1, 24);
    armed.seat = &seat;
    armed.act = stand_still;
    armed.on = true;
    const std::uint64_t longest = std::min<std::uint64_t>(arena.capacity(), 20);
    try {
        while (board.quit.load() == 0) explorer.add(random.between(1, longest));
    } catch (const SystemFailure&) {
        if (!closes_descriptors) throw;  // it has met another one's claim, and cannot ask
    }
    return 0;
}

class NamespaceCampaign {
  public:
    NamespaceCampaign(std::uint64_t kills, Findings& findings, Random& random)
        : kills_(kills), findings_(findings), random_(random), board_(new_board()) {}

    ChaosResult run() {
        while (result_.kills < kills_ && findings_.violations < enough_violations) {
            static constexpr std::uint64_t capacities[] = {8, 9, 16, 24, 64};
            const std::uint64_t capacity = capacities[random_.below(5)];
            const std::size_t words =
                random_.one_in(3) ? random_.between(64, 3000) : random_.between(5, 16);
            Arena arena(folder_.path(), *board_, capacity, RowShape{words}, findings_, random_);
            arena.commits_may_be_unlogged = true;
            play(arena);
            arena.end(folder_);
        }
        return result_;
    }

  private:
    struct Actor {
        Child* child;
        Seat* seat;
        bool killed;
    };

    void start(Arena& arena, Children& children, Seat& seat) {
        const Random its_random(random_.next());
        const NewPidNamespace other;
        children.start([&] { return explore_abroad(arena, seat, its_random); });
    }

    void kill(Actor& actor) {
        actor.child->kill_to_zombie();
        actor.killed = true;
        actor.seat->hit = 1;  // its rows count, its seat stays its own
        ++result_.kills;
    }

    void play(Arena& arena) {
        alarm(watchdog_seconds);
        board_->quit = 0;
        board_->go = 0;
        Children children;
        const std::size_t count = random_.between(1, arena.capacity() / 2);
        for (std::size_t i = 0; i < count; ++i) start(arena, children, board_->seats[i + 1]);
        std::vector<Actor> actors;
        for (std::size_t i = 0; i < count; ++i) {
            actors.push_back({&children.all()[i], &board_->seats[i + 1], false});
        }
        for (Actor& actor : actors) {
            if (random_.one_in(3)) {
                pause_microseconds(static_cast<long>(random_.below(2000)));
                kill(actor);
            }
            for (int i = 0; actor.seat->hit.load() == 0; ++i) {
                if (i == 2000) kill(actor);
                arena.work(true);
                expect_running(actor);
            }
        }
        // Each stands still, or is dead, which nobody here can tell.
        result_.stops += standing(actors);
        expect_claims_stay(arena, count);
        for (Actor& actor : actors) {
            if (!actor.killed && random_.one_in(2)) kill(actor);
        }
        expect_claims_stay(arena, count);
        board_->quit = 1;
        board_->go = 1;
        for (const Actor& actor : actors) {
            if (!actor.killed) await(*actor.child);
        }
        expect_claims_stay(arena, count - standing(actors));
        for (std::size_t seat = 0; seat <= count; ++seat) {
            result_.rows_acknowledged += board_->seats[seat].acknowledged;
        }
        result_.kills_with_claim_left += arena.claims();
    }

    static std::size_t standing(const std::vector<Actor>& actors) {
        return static_cast<std::size_t>(
            std::count_if(actors.begin(), actors.end(), [](const Actor& a) { return !a.killed; }));
    }

    void expect_running(Actor& actor) {
        const ChildState state = actor.child->look();
        if (actor.killed || state == ChildState::running) return;
        findings_.add("an explorer ended by itself, status %d", actor.child->status);
        actor.killed = true;
        actor.seat->hit = 1;
    }

    // A lap of rows takes no claim from anybody, and all else is in order.
    void expect_claims_stay(Arena& arena, std::size_t holders) {
        const std::vector<std::uint64_t> before = arena.claimed_words();
        if (before.size() > holders) findings_.add("more claims than holders");
        arena.verify(Others::stopped, holders, true);
        arena.lap(true);
        arena.verify(Others::stopped, holders, true);
        result_.verifications += 2;
        if (arena.claimed_words() != before) {
            findings_.add("a claim was taken from an owner who cannot be proved dead");
        }
    }

    void await(Child& child) {
        for (int i = 0; i < 100'000; ++i) {
            const ChildState state = child.look();
            if (state == ChildState::exited) {
                if (child.status != 0) findings_.add("an explorer ended with %d", child.status);
                return;
            }
            if (state == ChildState::killed) {
                findings_.add("an explorer died of signal %d", child.status);
                return;
            }
            pause_microseconds(200);
        }
        findings_.add("an explorer hung");
        child.kill_to_zombie();
    }

    std::uint64_t kills_;
    Findings& findings_;
    Random& random_;
    ScratchFolder folder_;
    Board* board_;
    ChaosResult result_;
};

}  // namespace

bool may_make_pid_namespaces() { return NewPidNamespace().made(); }

ChaosResult run_namespaces(std::uint64_t kills, Findings& findings, Random& random) {
    return NamespaceCampaign(kills, findings, random).run();
}

}  // namespace stops

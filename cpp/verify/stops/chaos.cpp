#include "chaos.hpp"

#include <cstdio>
#include <functional>
#include <thread>

#include "base/error.hpp"
#include "children.hpp"

namespace stops {

using namespace mpbuffer;

ChaosResult& ChaosResult::operator+=(const ChaosResult& other) {
    kills += other.kills;
    kills_of_learner += other.kills_of_learner;
    kills_in_fold_or_update += other.kills_in_fold_or_update;
    kills_with_claim_left += other.kills_with_claim_left;
    stops += other.stops;
    forks += other.forks;
    execs += other.execs;
    verifications += other.verifications;
    rows_acknowledged += other.rows_acknowledged;
    rows_sampled += other.rows_sampled;
    return *this;
}

void print(const ChaosResult& result) {
    const auto line = [](const char* what, std::uint64_t count) {
        std::printf("%-44s %10llu\n", what, static_cast<unsigned long long>(count));
    };
    line("kills", result.kills);
    line("  of the learner", result.kills_of_learner);
    line("  of it, inside fold or update", result.kills_in_fold_or_update);
    line("  that left a claim behind", result.kills_with_claim_left);
    line("stops", result.stops);
    line("forks beside adds", result.forks);
    line("execs", result.execs);
    line("verifications", result.verifications);
    line("rows acknowledged", result.rows_acknowledged);
    line("rows sampled and found whole", result.rows_sampled);
}

namespace {

// Adds until told to quit; with threads, from two of them at a time.
int explore(Arena& arena, Seat& seat, Random random) {
    Board& board = arena.board();
    ReplayBuffer* buffer = &arena.live();
    std::unique_ptr<ReplayBuffer> attached;
    if (random.one_in(3)) {
        attached = attach(arena.name(), arena.options());
        buffer = attached.get();
    }
    const std::uint64_t longest = std::min<std::uint64_t>(arena.capacity(), 24);
    const auto add_on = [&](Random mine) {
        Explorer explorer(*buffer, board, seat);
        while (board.quit.load() == 0) {
            explorer.add(mine.one_in(8) ? longest : mine.between(1, longest));
            for (int i = 0; i < 20 && board.quit.load() == 0; ++i) explorer.add_again();
            if (mine.one_in(5000)) explorer.clear();
        }
    };
    if (random.one_in(4)) {
        // Entries of the board are made by one thread at a time: this one adds nothing.
        std::thread second(add_on, Random(random.next()));
        LearnerAtWork reader(*buffer, arena.view().ring, board, seat);
        while (board.quit.load() == 0) reader.sample_uniform(4);
        second.join();
    } else {
        add_on(Random(random.next()));
    }
    return 0;
}

int learn(Arena& arena, Seat& seat, Random random) {
    Board& board = arena.board();
    LearnerAtWork learner(arena.live(), arena.view().ring, board, seat);
    while (board.quit.load() == 0) {
        learner.fold();
        learner.sample(random.between(1, arena.capacity()));
        learner.update();
        for (int i = 0; i < 50; ++i) learner.fold();
    }
    return 0;
}

class Campaign {
  public:
    Campaign(std::uint64_t kills, std::uint64_t stops, Findings& findings, Random& random)
        : kills_(kills), stops_(stops), findings_(findings), random_(random), board_(new_board()) {}

    ChaosResult run() {
        while ((result_.kills < kills_ || result_.stops < stops_) &&
               findings_.violations < enough_violations) {
            static constexpr std::uint64_t capacities[] = {2, 4, 8, 24, 64, 128};
            const std::uint64_t capacity = capacities[random_.below(6)];
            const std::size_t words = random_.one_in(4)   ? random_.between(5, 16)
                                      : random_.one_in(3) ? random_.between(64, 2000)
                                                          : random_.between(2000, 7500);
            const RowShape shape{words, random_.one_in(2) ? words / 4 + 1 : 0};
            Arena arena(folder_.path(), *board_, capacity, shape, findings_, random_);
            arena.commits_may_be_unlogged = true;
            for (int round = 0; round < 4; ++round) play(arena);
            result_.kills_with_claim_left += arena.claims_ever_left();
            arena.end(folder_);
        }
        return result_;
    }

  private:
    struct Actor {
        std::size_t child;
        Seat* seat;
        bool learner;
        bool stopped;
    };

    void start(Arena& arena, Children& children, bool learner) {
        Seat& seat = board_->seats[next_seat_++];
        const Random its_random(random_.next());
        const std::size_t child = children.all().size();
        children.start([&] {
            return learner ? learn(arena, seat, its_random) : explore(arena, seat, its_random);
        });
        actors_.push_back({child, &seat, learner, false});
    }

    // Kills, stops and continues until the seats are used up, then lets everybody quit, and
    // compares. Nobody is reaped before that.
    void play(Arena& arena) {
        alarm(watchdog_seconds);
        board_->quit = 0;
        next_seat_ = 1;
        actors_.clear();
        Children children;
        {
            arena.live().release_learner();
        }
        start(arena, children, true);
        const std::size_t explorers = random_.between(1, 4);
        for (std::size_t i = 0; i < explorers; ++i) start(arena, children, false);
        std::uint64_t actions = 0;
        while (next_seat_ < max_seats && actions++ < 400) {
            const std::uint64_t wait = random_.below(4);
            if (wait != 0) pause_microseconds(static_cast<long>(random_.below(300 * wait)));
            if (random_.one_in(4)) arena.work(false);
            act(arena, children, random_.below(actors_.size()));
            if (result_.kills >= kills_ && result_.stops >= stops_) break;
        }
        board_->quit = 1;
        for (const Actor& actor : actors_) {
            Child& child = children.all()[actor.child];
            if (actor.stopped && random_.one_in(2)) {
                child.kill_to_zombie();
                note_kill(actor);
            }
            child.send(SIGCONT);
        }
        for (const Actor& actor : actors_) await(children.all()[actor.child]);
        for (std::size_t seat = 0; seat < next_seat_; ++seat) {
            result_.rows_acknowledged += board_->seats[seat].acknowledged;
            result_.rows_sampled += board_->seats[seat].samples;
        }
        arena.verify(Others::dead, 0, true);
        ++result_.verifications;
    }

    void act(Arena& arena, Children& children, std::size_t which) {
        Actor& actor = actors_[which];
        Child& child = children.all()[actor.child];
        const std::size_t standing = static_cast<std::size_t>(std::count_if(
            actors_.begin(), actors_.end(), [](const Actor& a) { return a.stopped; }));
        if (actor.stopped) {
            if (random_.one_in(2)) {
                child.send(SIGCONT);
                actor.stopped = false;
                return;
            }
        } else if (random_.below(10) < 3 && result_.stops < stops_ + kills_) {
            // So that some slot is free: with every slot held add takes its second to say so.
            if (standing + 1 >= arena.capacity() || standing + 1 >= actors_.size()) return;
            if (child.look() != ChildState::running) return;
            child.send(SIGSTOP);
            actor.stopped = true;
            ++result_.stops;
            return;
        }
        if (child.look() == ChildState::exited || child.look() == ChildState::killed) {
            findings_.add("%s ended by itself, status %d",
                          actor.learner ? "a learner" : "an explorer", child.status);
        }
        child.kill_to_zombie();
        note_kill(actor);
        const bool learner = actor.learner;
        actors_.erase(actors_.begin() + static_cast<std::ptrdiff_t>(which));
        start(arena, children, learner);
    }

    void note_kill(const Actor& actor) {
        ++result_.kills;
        if (!actor.learner) return;
        ++result_.kills_of_learner;
        const Activity activity = actor.seat->activity;
        result_.kills_in_fold_or_update +=
            activity == Activity::fold || activity == Activity::update;
    }

    void await(Child& child) {
        for (int i = 0; i < 100'000; ++i) {
            const ChildState state = child.look();
            if (state == ChildState::exited && child.status != 0) {
                findings_.add("a process ended with status %d", child.status);
            }
            if (state == ChildState::killed && child.status != SIGKILL) {
                findings_.add("a process died of signal %d", child.status);
            }
            if (state == ChildState::exited || state == ChildState::killed) return;
            pause_microseconds(200);
        }
        findings_.add("a process hung");
        child.kill_to_zombie();
    }

    std::uint64_t kills_;
    std::uint64_t stops_;
    Findings& findings_;
    Random& random_;
    ScratchFolder folder_;
    Board* board_;
    std::vector<Actor> actors_;
    std::size_t next_seat_ = 1;
    ChaosResult result_;
};

}  // namespace

ChaosResult run_chaos(std::uint64_t kills, std::uint64_t stops, Findings& findings,
                      Random& random) {
    return Campaign(kills, stops, findings, random).run();
}

ChaosResult run_forks_beside_adds(std::uint64_t forks, Findings& findings, Random& random) {
    ChaosResult result;
    const ScratchFolder folder;
    Board* const board = new_board();
    while (result.forks < forks && findings.violations < enough_violations) {
        alarm(watchdog_seconds);
        const std::size_t words = random.between(5, 3000);
        const RowShape shape{words, random.one_in(2) ? words / 4 + 1 : 0};
        Arena arena(folder.path(), *board, random.between(2, 64), shape, findings, random);
        board->quit = 0;
        const auto add_on = [&arena, board](Seat& seat) {
            Explorer explorer(arena.live(), *board, seat);
            while (board->quit.load() == 0) {
                explorer.add(std::min<std::uint64_t>(arena.capacity(), 7));
            }
        };
        std::thread first(add_on, std::ref(board->seats[1]));
        std::thread second(add_on, std::ref(board->seats[2]));
        Children children;
        for (std::size_t i = 0; i < 50 && result.forks < forks; ++i, ++result.forks) {
            Seat& seat = board->seats[3 + i];
            const bool dies = random.one_in(4);
            Child child = children.start([&arena, &seat, board, dies] {
                Explorer explorer(arena.live(), *board, seat);
                LearnerAtWork reader(arena.live(), arena.view().ring, *board, seat);
                for (int round = 0; round < 5 || dies; ++round) {
                    explorer.add(std::min<std::uint64_t>(arena.capacity(), 5));
                    reader.sample_uniform(4);
                }
                if (seat.acknowledged % 2 == 0) arena.live().close();
                return 0;
            });
            if (dies) {
                pause_microseconds(static_cast<long>(random.below(2000)));
                child.kill_to_zombie();
                result.kills += 1;
            }
        }
        for (Child& child : children.all()) {
            for (int i = 0; child.look() == ChildState::running; ++i) {
                pause_microseconds(100);
                if (i == 300'000) {
                    findings.add("a forked child hung");
                    child.kill_to_zombie();
                }
            }
            if (child.look() == ChildState::exited && child.status != 0) {
                findings.add("a forked child ended with status %d", child.status);
            }
        }
        board->quit = 1;
        first.join();
        second.join();
        for (std::size_t seat = 0; seat < max_seats; ++seat) {
            result.rows_acknowledged += board->seats[seat].acknowledged;
            result.rows_sampled += board->seats[seat].samples;
        }
        arena.commits_may_be_unlogged = true;
        arena.verify(Others::dead, 0, true);
        ++result.verifications;
        result.kills_with_claim_left += arena.claims_ever_left();
        arena.end(folder);
    }
    return result;
}

}  // namespace stops

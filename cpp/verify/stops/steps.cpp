// One file, though long: the scenes share their actors, and a step is understood beside the others.
#include "steps.hpp"

#include <algorithm>
#include <deque>
#include <memory>

#include "base/error.hpp"
#include "children.hpp"
#include "segment/sweep.hpp"

namespace stops {

using namespace mpbuffer;

namespace {

enum class Scene { writing, clearing, reading, learning, segment };

Scene scene_of(StopPoint point) {
    if (point <= StopPoint::reference_stored || point >= StopPoint::number_locked) {
        return Scene::writing;
    }
    if (point <= StopPoint::cursor_behind_clear) return Scene::clearing;
    if (point <= StopPoint::rows_retired) return Scene::reading;
    return point <= StopPoint::line_odd ? Scene::learning : Scene::segment;
}

bool comes_once(StopPoint point) {
    return point >= StopPoint::segment_made || point == StopPoint::role_taken;
}

// Only where rows have frames.
bool is_of_frames(StopPoint point) {
    return (point >= StopPoint::source_committed && point <= StopPoint::reference_stored) ||
           (point >= StopPoint::frame_copied && point <= StopPoint::rows_retired);
}

constexpr int exit_not_reached = 7;
constexpr int exit_continued = 0;

// For the child that lets its own reads be overtaken.
std::unique_ptr<ReplayBuffer> second_handle;
std::unique_ptr<Explorer> overtaker;
bool overtake_next_read = false;

void overtake() {
    if (!overtake_next_read) return;
    overtake_next_read = false;
    const CurrentAdd outer = current_add;
    overtaker->add(second_handle->capacity());
    current_add = outer;
}

// What a victim does until its step comes, and after it was continued until told to quit.
int be_victim(Arena& arena, Seat& seat, StopPoint point, Fate fate, Random random) {
    Board& board = arena.board();
    ReplayBuffer& buffer = arena.live();
    const Scene scene = scene_of(point);
    Explorer explorer(buffer, board, seat);
    LearnerAtWork learner(buffer, arena.view().ring, board, seat);
    if (point == StopPoint::draw_again_leaf_zeroed) {
        second_handle = attach(arena.name(), arena.options());
        overtaker = std::make_unique<Explorer>(*second_handle, board, seat);
        during_read = overtake;
    }
    armed.point = point;
    armed.signal = fate == Fate::kill ? SIGKILL : SIGSTOP;
    armed.seat = &seat;
    armed.countdown = comes_once(point) ? 1 : random.between(1, random.one_in(3) ? 2 : 24);
    armed.on = true;
    const std::uint64_t longest = std::min<std::uint64_t>(arena.capacity(), 20);
    bool learns = scene == Scene::learning || (scene == Scene::reading && random.one_in(2));
    for (int round = 0; round < 3000; ++round) {
        if (!armed.on && board.quit.load() != 0) break;
        if (scene == Scene::writing || random.one_in(2)) explorer.add(random.between(1, longest));
        if (scene == Scene::clearing && random.one_in(3)) explorer.clear();
        if (scene == Scene::reading && !learns) learner.sample_uniform(random.between(1, 8));
        if (!learns) continue;
        try {
            if (random.one_in(2)) explorer.add(random.between(1, longest));
            overtake_next_read = overtaker != nullptr;
            learner.sample(random.between(1, 2 * arena.capacity()));
            overtake_next_read = false;
            learner.update();
            if (random.one_in(8)) {
                buffer.release_learner();
            }
        } catch (const LearnerBusy&) {
            learns = false;  // a reader beside another one, or the supervisor has the role
        }
    }
    if (armed.on) return exit_not_reached;
    if (random.one_in(2)) {
        second_handle.reset();
        buffer.close();
    }
    return exit_continued;
}

class RingCell {
  public:
    RingCell(StopPoint point, Fate fate, std::uint64_t hits, Findings& findings, Random& random)
        : point_(point),
          fate_(fate),
          hits_(hits),
          findings_(findings),
          random_(random),
          scene_(scene_of(point)),
          board_(new_board()) {}

    CellResult run() {
        while (result_.hits < hits_ && result_.not_reached < hits_ + 100 &&
               findings_.violations < enough_violations) {
            static constexpr std::uint64_t capacities[] = {8, 9, 16, 20, 33, 64};
            const std::uint64_t capacity = capacities[random_.below(6)];
            // 40 bytes to 60 KB, most of them small.
            const std::size_t words = random_.one_in(20)  ? random_.between(1000, 7500)
                                      : random_.one_in(3) ? random_.between(16, 200)
                                                          : random_.between(5, 16);
            const bool framed = is_of_frames(point_) || random_.one_in(3);
            const bool retires =
                point_ >= StopPoint::frame_copied && point_ <= StopPoint::rows_retired;
            const RowShape shape{words, framed ? words / 4 + 1 : 0, retires ? capacity + 8 : 0};
            Arena arena(folder_.path(), *board_, capacity, shape, findings_, random_);
            for (int round = 0; round < 6 && result_.hits < hits_; ++round) play(arena);
            const bool leave_first = fate_ != Fate::kill && random_.one_in(4);
            if (leave_first) leave_before_the_stopped(arena);
            arena.end(folder_);
        }
        return result_;
    }

  private:
    bool exclusive() const { return scene_ == Scene::learning; }

    // One round: victims run into their step while the live process works; then everything is
    // compared, with the dead not reaped and the stopped still holding what they hold.
    void play(Arena& arena) {
        alarm(watchdog_seconds);
        board_->quit = 0;
        const bool numbers_go_on = fate_ == Fate::kill && random_.one_in(4);
        // Else it has filled every slot before a victim gets to its first.
        live_waits_ = numbers_go_on;
        Children children;
        // A second clear would have the count mended that the first one left.
        const bool alone = numbers_go_on && scene_ == Scene::clearing;
        const std::size_t victims = exclusive() || alone ? 1 : random_.between(1, 4);
        if (scene_ == Scene::learning || scene_ == Scene::reading) release_role(arena);
        std::size_t seat = 1;
        if (random_.one_in(3)) {
            start_bystander(arena, children, seat++);
        }
        // With empty slots again, so that what is committed has to be counted.
        if (random_.one_in(2)) arena.clear();
        // A killed learner is followed by another one that runs into the same step; killed writers
        // too, who may get a dead one's number before anybody has asked for the stored size.
        const std::size_t generations = fate_ != Fate::kill || alone ? 1 : exclusive() ? 4 : 2;
        std::size_t stopped = 0;
        bool role_is_free = scene_ != Scene::reading;
        for (std::size_t generation = 0; generation < generations; ++generation) {
            std::vector<std::size_t> mine;
            for (std::size_t i = 0; i < victims; ++i, ++seat) {
                Seat& its = board_->seats[seat];
                const Random its_random(random_.next());
                mine.push_back(children.all().size());
                children.start([&] { return be_victim(arena, its, point_, fate_, its_random); });
            }
            stopped += until_hit(arena, children, mine);
        }
        if (stopped != 0 && exclusive()) role_is_free = false;
        if (scene_ == Scene::reading && stopped == 0) role_is_free = true;
        quit_bystander(children);
        if (scene_ == Scene::reading && stopped != 0) {
            role_is_free = can_learn(arena);
        }
        if (stopped != 0) {
            // Half of the time the tree is a successor's, who finds what is being written now.
            if (role_is_free && random_.one_in(2)) release_role(arena);
            const Others others =
                scene_ == Scene::clearing ? Others::stopped_in_clear : Others::stopped;
            arena.verify(others, stopped, role_is_free);
            if (random_.one_in(8)) arena.each_call(false, role_is_free);
            ++result_.verifications;
            if (fate_ == Fate::stop_and_continue) {
                go_on(arena, children, role_is_free);
            } else {
                for (Child& child : children.all()) child.kill_to_zombie();
            }
        }
        result_.claims_left += arena.claims();
        if (numbers_go_on) take_numbers_of_the_dead(arena);
        arena.verify(Others::dead, 0, true);
        ++result_.verifications;
    }

    // Before anybody has asked what they were doing.
    void take_numbers_of_the_dead(Arena& arena) {
        std::vector<std::unique_ptr<ReplayBuffer>> handles;
        for (int i = 0; i < 12; ++i) {
            handles.push_back(attach(arena.name(), arena.options()));
        }
    }

    void release_role(Arena& arena) { arena.live().release_learner(); }

    bool can_learn(Arena& arena) {
        try {
            arena.live().take_learner_role();
            return true;
        } catch (const LearnerBusy&) {
            return false;
        }
    }

    void start_bystander(Arena& arena, Children& children, std::size_t seat) {
        Seat& its = board_->seats[seat];
        children.start([&arena, &its, this] {
            Explorer explorer(arena.live(), *board_, its);
            LearnerAtWork reader(arena.live(), arena.view().ring, *board_, its);
            while (board_->quit.load() == 0) {
                explorer.add(3);
                reader.sample_uniform(3);
            }
            return 0;
        });
        bystander_ = true;
    }

    void quit_bystander(Children& children) {
        if (!bystander_) return;
        bystander_ = false;
        // Those who were stopped see it when they go on.
        board_->quit = 1;
        await(children.all()[0], "a bystander");
    }

    void await(Child& child, const char* who) {
        for (int i = 0; i < 200'000; ++i) {
            const ChildState state = child.look();
            if (state == ChildState::exited) {
                if (child.status != exit_continued) {
                    findings_.add("%s ended with status %d", who, child.status);
                }
                return;
            }
            if (state == ChildState::killed) {
                findings_.add("%s died of signal %d", who, child.status);
                return;
            }
            pause_microseconds(i < 100 ? 20 : 200);
        }
        findings_.add("%s hung", who);
        child.kill_to_zombie();
    }

    // Works until each of these victims is dead, stopped or done; returns how many are stopped.
    std::size_t until_hit(Arena& arena, Children& children, const std::vector<std::size_t>& mine) {
        std::size_t stopped = 0;
        std::vector<bool> over(mine.size(), false);
        std::size_t left = mine.size();
        while (left != 0) {
            for (std::size_t i = 0; i < mine.size(); ++i) {
                if (over[i]) continue;
                Child& child = children.all()[mine[i]];
                const ChildState state = child.look();
                if (state == ChildState::running) continue;
                over[i] = true;
                --left;
                if (state == ChildState::exited) {
                    if (child.status == exit_not_reached) {
                        ++result_.not_reached;
                    } else {
                        findings_.add("a victim ended with status %d", child.status);
                    }
                } else if (state == ChildState::stopped) {
                    ++stopped;
                    ++result_.hits;
                } else if (child.status == SIGKILL && fate_ == Fate::kill) {
                    ++result_.hits;
                } else {
                    findings_.add("a victim died of signal %d: %s", child.status,
                                  child.status == SIGALRM ? "it hung" : "not by its own hand");
                }
            }
            if (left == 0) break;
            if (live_waits_) {
                pause_microseconds(50);
            } else {
                arena.work(scene_ == Scene::writing || scene_ == Scene::clearing);
            }
        }
        return stopped;
    }

    void go_on(Arena& arena, Children& children, bool role_is_free) {
        // Sometimes at once: then nothing but the rows that were being written is new.
        const bool a_lap_later = !random_.one_in(4);
        if (a_lap_later) arena.lap(role_is_free);
        // Or less than a lap: then frames are overwritten, and their rows are not.
        for (int i = 0; !a_lap_later && arena.framed() && i < 6; ++i) arena.work(false);
        if (role_is_free && random_.one_in(2)) release_role(arena);
        board_->quit = 1;
        for (const Child& child : children.all()) child.send(SIGCONT);
        for (int i = 0; a_lap_later && i < 20; ++i) arena.work(false);
        for (std::size_t i = 0; i < children.all().size(); ++i) {
            Child& child = children.all()[i];
            for (int look = 0; look < 1000 && child.look() == ChildState::stopped; ++look) {
                pause_microseconds(20);
            }
            if (child.look() == ChildState::exited && child.status == exit_not_reached) continue;
            await(child, "a continued process");
        }
    }

    // The live process leaves first; what the stopped ones then leave is removed by a sweep.
    void leave_before_the_stopped(Arena& arena) {
        alarm(watchdog_seconds);
        Children children;
        Seat& its = board_->seats[1];
        const Random its_random(random_.next());
        release_role(arena);
        children.start([&] { return be_victim(arena, its, point_, fate_, its_random); });
        const std::size_t stopped = until_hit(arena, children, {0});
        arena.close_live();
        const bool there = arena.is_there();
        if (stopped != 0 && !there) findings_.add("the segment of a stopped process was removed");
        if (stopped != 0 && !sweep_segments(folder_.path()).empty()) {
            findings_.add("the segment of a stopped process was swept");
        }
        for (Child& child : children.all()) child.kill_to_zombie();
        sweep_segments(folder_.path());
    }

    StopPoint point_;
    Fate fate_;
    std::uint64_t hits_;
    Findings& findings_;
    Random& random_;
    Scene scene_;
    ScratchFolder folder_;
    Board* board_;
    CellResult result_;
    bool bystander_ = false;
    bool live_waits_ = false;
};

// Segments come and go: a victim creates, attaches or closes.
class SegmentCell {
  public:
    SegmentCell(StopPoint point, Fate fate, std::uint64_t hits, Findings& findings, Random& random)
        : point_(point),
          fate_(fate),
          hits_(hits),
          findings_(findings),
          random_(random),
          board_(new_board()) {}

    CellResult run() {
        while (result_.hits < hits_ && result_.not_reached < hits_ + 100 &&
               findings_.violations < enough_violations) {
            play();
            if (!folder_.files().empty()) {
                findings_.add("%s was left behind", folder_.files()[0].c_str());
                sweep_segments(folder_.path());
            }
        }
        return result_;
    }

  private:
    enum Answer : std::uint32_t { none, done, exists, not_found, wrong_rows };

    SegmentOptions options() {
        SegmentOptions options;
        options.directory = folder_.path();
        options.force_named_creation = random_.one_in(3);
        return options;
    }

    std::unique_ptr<ReplayBuffer> create(const std::string& name) {
        const RingShape shape{16, 40, true, 0.6, 1e-4};
        return ReplayBuffer::create({name, shape, 1, R"({"fields": []})", options()});
    }

    // A buffer with a past: three rows.
    std::unique_ptr<ReplayBuffer> create_with_rows(const std::string& name, Seat& seat) {
        auto buffer = create(name);
        Explorer(*buffer, *board_, seat).add(3);
        return buffer;
    }

    bool is_usable(ReplayBuffer& buffer, Seat& seat) {
        Explorer(buffer, *board_, seat).add(2);
        const SegmentView view(buffer);
        LearnerAtWork reader(buffer, view.ring, *board_, seat);
        const bool drawn = reader.sample_uniform(4);
        return drawn && seat.complains.load() == 0 && buffer.stored_size() >= 2;
    }

    int be_victim() {
        Seat& seat = board_->seats[1];
        armed.point = point_;
        armed.countdown = 1;
        armed.signal = fate_ == Fate::kill ? SIGKILL : SIGSTOP;
        armed.seat = &seat;
        const bool attaches =
            point_ == StopPoint::attach_opened || point_ == StopPoint::attach_present;
        const bool closes = point_ >= StopPoint::handle_left && point_ <= StopPoint::last_unlinked;
        armed.on = !closes;
        std::unique_ptr<ReplayBuffer> buffer;
        Answer answer = done;
        try {
            if (attaches) {
                while (board_->go.load() == 0) pause_microseconds(50);
                buffer = ReplayBuffer::attach("s", options());
            } else {
                buffer = create_with_rows("s", seat);
            }
            if (!is_usable(*buffer, seat)) answer = wrong_rows;
        } catch (const SegmentExists&) {
            answer = exists;
        } catch (const SegmentNotFound&) {
            answer = not_found;
        }
        board_->go = 2;
        while (closes && board_->go.load() != 3) pause_microseconds(50);
        armed.on = armed.on || closes;
        if (buffer) buffer->close();
        seat.answer = answer;
        return armed.on ? exit_not_reached : exit_continued;
    }

    void play() {
        alarm(watchdog_seconds);
        board_->go = 0;
        board_->seats[0].reset();
        board_->seats[1].reset();
        Seat& own = board_->seats[0];
        Children children;
        Child victim = children.start([this] { return be_victim(); });
        std::unique_ptr<ReplayBuffer> ours;
        const bool attaches =
            point_ == StopPoint::attach_opened || point_ == StopPoint::attach_present;
        const bool closes = point_ >= StopPoint::handle_left && point_ <= StopPoint::last_unlinked;
        if (attaches) {
            ours = create_with_rows("s", own);
            board_->go = 1;
        } else if (closes) {
            while (board_->go.load() != 2 && victim.look() == ChildState::running) {
                pause_microseconds(50);
            }
            // With us still there the victim is not the last one out.
            const bool before_the_last = point_ <= StopPoint::segment_unmapped;
            if (before_the_last && random_.one_in(2)) {
                ours = ReplayBuffer::attach("s", options());
            }
            board_->go = 3;
        }
        ChildState state;
        while ((state = victim.look()) == ChildState::running) pause_microseconds(20);
        if (state == ChildState::exited) {
            ++result_.not_reached;
            if (victim.status != exit_not_reached) {
                findings_.add("a victim ended with status %d", victim.status);
            }
            if (ours) ours->close();
            return;
        }
        ++result_.hits;
        ++result_.verifications;
        if (state == ChildState::killed) {
            if (victim.status != SIGKILL || fate_ != Fate::kill) {
                findings_.add("a victim died of signal %d", victim.status);
            }
            after_the_kill(std::move(ours));
            return;
        }
        while_stopped(ours);
        const bool ours_stays = ours != nullptr;
        std::uint64_t rows_of_ours = 0;
        if (ours) {
            rows_of_ours = ours->stored_size();
        }
        if (fate_ == Fate::stop) {
            victim.kill_to_zombie();
            after_the_kill(std::move(ours));
            return;
        }
        if (ours && random_.one_in(4)) {
            ours->close();
            ours.reset();
        }
        victim.send(SIGCONT);
        for (int i = 0;
             (state = victim.look()) == ChildState::running || state == ChildState::stopped; ++i) {
            pause_microseconds(20);
            if (i == 500'000) {
                findings_.add("a continued victim hung");
                victim.kill_to_zombie();
            }
        }
        if (state != ChildState::exited || victim.status != exit_continued) {
            findings_.add("a continued victim ended with %d", victim.status);
        }
        const std::uint32_t answer = board_->seats[1].answer;
        if (answer == wrong_rows || answer == none) findings_.add("answer %u", answer);
        if (board_->seats[1].complains != 0) findings_.add("%s", board_->seats[1].complaint);
        if (attaches && ours_stays && ours && answer != done) {
            findings_.add("attach of a living segment: answer %u", answer);
        }
        if (point_ == StopPoint::attach_opened && !ours_stays && answer != not_found) {
            findings_.add("attach of a segment that is gone: answer %u", answer);
        }
        if (point_ == StopPoint::attach_opened && ours && answer == done) {
            if (ours->stored_size() != rows_of_ours + 2) findings_.add("attached to another one");
        }
        if (!attaches && !closes && !ours_stays && answer != done) {
            findings_.add("creation under a free name: answer %u", answer);
        }
        if (ours) {
            // Nobody else may have removed the name of what we hold.
            expect_ours_is_there(*ours);
            ours->close();
        }
    }

    void expect_ours_is_there(ReplayBuffer& ours) {
        if (!is_usable(ours, board_->seats[0])) findings_.add("our buffer is not usable");
        try {
            auto again = within(findings_, "attach", 0.1,
                                [&] { return ReplayBuffer::attach("s", options()); });
            if (again->stored_size() != ours.stored_size()) findings_.add("another one's segment");
        } catch (const Error& error) {
            findings_.add("our segment: %s", error.what());
        }
    }

    void after_the_kill(std::unique_ptr<ReplayBuffer> ours) {
        if (ours) {
            expect_ours_is_there(*ours);
            ours->close();
            ours.reset();
        }
        if (random_.one_in(2)) {
            try {
                auto left = within(findings_, "attach", 0.1,
                                   [&] { return ReplayBuffer::attach("s", options()); });
                if (!is_usable(*left, board_->seats[0]))
                    findings_.add("a dead one's segment is damaged");
                left->close();
            } catch (const SegmentNotFound&) {
            }
        }
        // The name is free, whatever the dead left behind.
        try {
            auto fresh = within(findings_, "create", 0.1, [&] { return create("s"); });
            if (!is_usable(*fresh, board_->seats[0])) findings_.add("a new segment is damaged");
            within(findings_, "close", 0, [&] { fresh->close(); });
        } catch (const Error& error) {
            findings_.add("after a death: %s", error.what());
        }
    }

    // Neither attach nor create wait for who stands still, and other names are free.
    void while_stopped(std::unique_ptr<ReplayBuffer>& ours) {
        if (ours) {
            if (random_.one_in(2)) {
                expect_ours_is_there(*ours);
            } else {
                within(findings_, "close", 0, [&] { ours->close(); });
                ours.reset();
            }
        }
        if (!ours) {
            try {
                auto theirs = within(findings_, "attach", 0.1,
                                     [&] { return ReplayBuffer::attach("s", options()); });
                if (!is_usable(*theirs, board_->seats[0])) findings_.add("not usable");
                within(findings_, "close", 0, [&] { theirs->close(); });
            } catch (const SegmentNotFound&) {
            }
            if (random_.one_in(2)) {
                try {
                    ours = within(findings_, "create", 0.2,
                                  [&] { return create_with_rows("s", board_->seats[0]); });
                    if (point_ == StopPoint::segment_linked ||
                        point_ == StopPoint::attach_present) {
                        findings_.add("the name of a stopped process's segment was given away");
                    }
                } catch (const SegmentExists&) {
                }
            }
        }
        auto other = within(findings_, "create", 0.2, [&] { return create("other"); });
        if (!is_usable(*other, board_->seats[0])) findings_.add("another name is not usable");
        within(findings_, "close", 0, [&] { other->close(); });
    }

    StopPoint point_;
    Fate fate_;
    std::uint64_t hits_;
    Findings& findings_;
    Random& random_;
    ScratchFolder folder_;
    Board* board_;
    CellResult result_;
};

}  // namespace

CellResult run_cell(StopPoint point, Fate fate, std::uint64_t hits, Findings& findings,
                    Random& random) {
    if (scene_of(point) == Scene::segment) {
        return SegmentCell(point, fate, hits, findings, random).run();
    }
    return RingCell(point, fate, hits, findings, random).run();
}

CellResult run_all_slots_held(std::uint64_t rounds, Findings& findings, Random& random) {
    static constexpr StopPoint writing[] = {StopPoint::claim_taken, StopPoint::field_copied,
                                            StopPoint::leaf_in_stored};
    CellResult result;
    const ScratchFolder folder;
    Board* const board = new_board();
    for (std::uint64_t round = 0; round < rounds; ++round) {
        alarm(watchdog_seconds);
        const std::uint64_t capacity = random.between(1, 8);
        Arena arena(folder.path(), *board, capacity, RowShape{5}, findings, random);
        board->quit = 1;
        for (std::uint64_t i = random.below(3); i > 0; --i) arena.work(false);
        Children children;
        for (std::size_t i = 0; i < capacity; ++i) {
            Seat& seat = board->seats[i + 1];
            children.start([&arena, &seat, i, board] {
                Explorer explorer(arena.live(), *board, seat);
                armed = {true, writing[i % 3], 1, SIGSTOP, &seat};
                explorer.add(1);
                return 0;
            });
        }
        for (Child& child : children.all()) {
            while (child.look() == ChildState::running) pause_microseconds(50);
            result.hits += child.look() == ChildState::stopped;
        }
        if (arena.claims() != capacity) {
            findings.add("%zu writers hold %llu slots", children.all().size(),
                         static_cast<unsigned long long>(arena.claims()));
            continue;
        }
        arena.each_call(true, true);
        const bool go_on = random.one_in(2);
        for (Child& child : children.all()) {
            if (go_on) {
                child.send(SIGCONT);
                while (child.look() != ChildState::exited && child.look() != ChildState::killed) {
                    pause_microseconds(50);
                }
            } else {
                child.kill_to_zombie();
            }
        }
        arena.lap(true);
        arena.verify(Others::dead, 0, true);
        ++result.verifications;
        children.kill_and_reap();
        arena.end(folder);
    }
    return result;
}

}  // namespace stops

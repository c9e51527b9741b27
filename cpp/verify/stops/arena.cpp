// One file, though a little long: what the arena makes, and how it checks what became of it.
#include "arena.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <stdexcept>

#include "base/error.hpp"
#include "format/header.hpp"
#include "segment/names.hpp"
#include "segment/sweep.hpp"

namespace stops {

bool all_nameless = false;

using namespace mpbuffer;

namespace {
unsigned long long ull(std::uint64_t number) { return number; }
}  // namespace

void Findings::add(const char* format, ...) {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    ++violations;
    if (first.size() < 5) first.emplace_back(text);
}

ScratchFolder::ScratchFolder() : owner_(getpid()) {
    std::string pattern = prefix(owner_) + "XXXXXX";
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no scratch folder");
    path_ = pattern;
}

std::string ScratchFolder::prefix(pid_t owner) {
    return "/dev/shm/mpbuffer-stops-" + std::to_string(owner) + "-";
}

void ScratchFolder::remove_left_by(pid_t owner) {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator("/dev/shm", ignored)) {
        if (entry.path().string().rfind(prefix(owner), 0) == 0) {
            std::filesystem::remove_all(entry.path(), ignored);
        }
    }
}

ScratchFolder::~ScratchFolder() {
    if (getpid() != owner_) return;
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

std::vector<std::string> ScratchFolder::files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
        names.push_back(entry.path().filename().string());
    }
    return names;
}

SegmentView::SegmentView(const ReplayBuffer& buffer) {
    const std::string link = "/proc/self/fd/" + std::to_string(buffer.data_descriptor());
    const int fd = open(link.c_str(), O_RDWR | O_CLOEXEC);
    SegmentHeader header;
    if (fd < 0 || pread(fd, &header, sizeof header, 0) != sizeof header) {
        throw std::runtime_error("the segment cannot be read");
    }
    bytes_ = header.total_bytes;
    base_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (base_ == MAP_FAILED) throw std::runtime_error("the segment cannot be mapped");
    auto* base = static_cast<std::byte*>(base_);
    ring = SlotRing(base, header.ring[0]);
    table = ProcessTable(base + header.process_table_offset, header.max_handles);
}

SegmentView::~SegmentView() { munmap(base_, bytes_); }

Board* board_of_file(int fd) {
    void* const memory = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return static_cast<Board*>(memory);
}

Board* new_board(int* fd) {
    const int file = memfd_create("board", fd == nullptr ? MFD_CLOEXEC : 0);
    if (file < 0 || ftruncate(file, sizeof(Board)) != 0) throw std::bad_alloc();
    Board* const board = new (board_of_file(file)) Board{};
    if (fd != nullptr) {
        *fd = file;
    } else {
        close(file);
    }
    return board;
}

Arena::Arena(const std::string& directory, Board& board, std::uint64_t capacity,
             const RowShape& shape, Findings& findings, Random& random)
    : directory_(directory),
      name_(all_nameless || random.one_in(2) ? generate_name() : "arena"),
      board_(board),
      capacity_(capacity),
      shape_(shape),
      findings_(findings),
      random_(random),
      newest_(capacity) {
    for (UpdateLog& log : board_.updates) {
        log.seq = 0;
        log.begun = 0;
        log.ended = 0;
    }
    for (Seat& seat : board_.seats) seat.reset();
    RowLayout layout = shape.layout();
    RingShape rings{capacity, layout.stored_bytes(), true, 0.6, 1e-4};
    if (framed()) {
        const std::uint64_t any[] = {capacity + 8, 2 * capacity + 8, 8 * capacity + 64};
        const std::uint64_t frames = shape.frames != 0 ? shape.frames : any[random.below(3)];
        rings.sources = {{std::max(frames, fewest_sources), shape.frame_words * 8}};
    }
    SegmentOptions creation = options();
    creation.nameless = name_ != "arena";
    creation.force_named_creation = random.one_in(4);
    live_ = ReplayBuffer::create({name_, rings, random.next(), shape.description(), creation});
    if (framed()) live_->describe_rows(std::move(layout));
    view_ = std::make_unique<SegmentView>(*live_);
    explorer_ = std::make_unique<Explorer>(*live_, board_, board_.seats[0]);
    learner_ = std::make_unique<LearnerAtWork>(*live_, view_->ring, board_, board_.seats[0]);
}

Arena::~Arena() = default;

bool Arena::is_there() const {
    return std::filesystem::exists(segment_path(name_, directory_)) ||
           !nameless_path(name_).empty();
}

SegmentOptions Arena::options() const {
    SegmentOptions options;
    options.directory = directory_;
    return options;
}

void Arena::work(bool may_learn) {
    switch (random_.below(may_learn ? 5 : 3)) {
        case 0:
        case 1:
            within(findings_, "add", 1, [&] {
                explorer_->add(random_.between(1, std::min<std::uint64_t>(capacity_, 20)));
            });
            break;
        case 2: within(findings_, "sample_uniform", 0, [&] { learner_->sample_uniform(4); }); break;
        case 3: within(findings_, "fold", 0, [&] { learner_->fold(); }); break;
        default:
            within(findings_, "sample", 0,
                   [&] { learner_->sample(random_.between(1, capacity_)); });
            within(findings_, "update", 0, [&] { learner_->update(); });
    }
}

void Arena::lap(bool may_learn, bool nobody_else) {
    for (std::uint64_t rows = 0; rows < capacity_ + 16; rows += 8) {
        const bool added =
            within(findings_, "add", nobody_else ? 0 : 1, [&] { return explorer_->add(8); });
        if (nobody_else && !added) findings_.add("the dead hold every slot");
        if (may_learn && random_.one_in(2)) {
            within(findings_, "sample", 0, [&] { learner_->sample(4); });
            within(findings_, "update", 0, [&] { learner_->update(); });
        }
    }
}

void Arena::clear() {
    explorer_->clear();
    live_->stored_size();
}

std::vector<std::uint64_t> Arena::claimed_words() const {
    std::vector<std::uint64_t> words;
    for (std::uint64_t slot = 0; slot < capacity_; ++slot) {
        const std::uint64_t word = view_->ring.word(slot);
        if (!slot_word::is_committed(word)) words.push_back(word);
    }
    return words;
}

std::uint64_t Arena::claims_ever_left() const {
    std::uint64_t count = claims();
    for (unsigned number = 1; number <= view_->table.high_water(); ++number) {
        count += view_->table.record(number).ring[0].steals;
    }
    return count;
}

void Arena::collect(Seat& seat) {
    if (seat.complains.load() != 0) findings_.add("%s", seat.complaint);
    for (std::uint64_t slot = 0; slot < capacity_; ++slot) {
        const std::uint64_t seq = seat.newest[slot].seq;
        if (seq == 0) continue;
        if (seq == newest_[slot].seq && seat.newest[slot].id != newest_[slot].id) {
            findings_.add("seq %llu was committed twice", ull(seq));
        }
        if (seq > newest_[slot].seq) newest_[slot] = {seq, seat.newest[slot].id};
    }
    seat.reset();
}

// Every row that was committed is there, whole, unless a later claim has taken its slot.
void Arena::verify_rows(Others others, std::size_t stopped) {
    const SlotRing& ring = view_->ring;
    RowsRead read(shape_, 1);
    if (framed()) {
        // Whoever misses a frame ends the row.
        for (std::uint64_t slot = 0; slot < capacity_; ++slot) {
            live_->read_slot(slot, 0, read.targets());
        }
    }
    const std::uint64_t size =
        within(findings_, "stored_size", 0, [&] { return live_->stored_size(); });
    const std::uint64_t cleared = ring.clear_before();
    std::uint64_t complete = 0;
    for (std::uint64_t slot = 0; slot < capacity_; ++slot) {
        const std::uint64_t word = ring.word(slot);
        const std::uint64_t seq = slot_word::seq(word);
        const Newest newest = newest_[slot];
        if (seq < newest.seq) {
            findings_.add("slot %llu: row of seq %llu was committed, the word says %llu", ull(slot),
                          ull(newest.seq), ull(seq));
        }
        if (seq == newest.seq && seq != 0 && !slot_word::is_committed(word)) {
            findings_.add("slot %llu: the row of seq %llu was committed and is claimed again",
                          ull(slot), ull(seq));
        }
        if (seq != 0 && seq % capacity_ != slot) {
            findings_.add("slot %llu holds seq %llu", ull(slot), ull(seq));
        }
        if (seq == 0 || seq < cleared || !slot_word::is_committed(word)) continue;
        ++complete;
        if (!live_->read_slot(slot, 0, read.targets())) {
            findings_.add("slot %llu cannot be read", ull(slot));
        }
        const std::uint64_t* const row = read.row(0);
        if (!shape_.is_whole(row)) {
            findings_.add("slot %llu: torn row, id %llx", ull(slot), ull(row[0]));
        } else if (seq == newest.seq ? row[0] != newest.id : !commits_may_be_unlogged) {
            findings_.add("slot %llu, seq %llu: row %llx, expected %llx of seq %llu", ull(slot),
                          ull(seq), ull(row[0]), ull(newest.id), ull(newest.seq));
        }
    }
    // Whoever stands still inside add may hold a row's slot, or have rows that are not counted yet.
    const bool right = others == Others::stopped
                           ? size <= complete + stopped && size + 16 * stopped >= complete
                           : size == complete;
    if (!right) {
        findings_.add("stored size %llu, %llu rows are complete", ull(size), ull(complete));
    }
    const std::size_t filled = live_->filled_slots(false).size();
    if (filled != complete) {
        findings_.add("%zu filled slots, %llu rows are complete", filled, ull(complete));
    }
}

// After a fold, with nobody writing: exactly the complete rows have leaves, each one its own.
void Arena::verify_tree() {
    const SlotRing& ring = view_->ring;
    const std::uint64_t cleared = ring.clear_before();
    const std::vector<float> leaves = live_->leaves();
    const std::size_t id_at = shape_.layout().fields()[0].stored;
    double sum = 0;
    std::uint64_t sampleable = 0;
    for (std::uint64_t slot = 0; slot < capacity_; ++slot) {
        const std::uint64_t word = ring.word(slot);
        const std::uint64_t seq = slot_word::seq(word);
        const float leaf = leaves[slot];
        sum += leaf;
        if (seq == 0 || seq < cleared || !slot_word::is_committed(word)) {
            if (leaf != 0) {
                findings_.add("slot %llu holds no row and has leaf %g", ull(slot), double{leaf});
            }
            continue;
        }
        ++sampleable;
        std::uint64_t id = 0;
        ring.read_any(slot, cleared, [&](const std::byte* record) {
            load_from_record(reinterpret_cast<std::byte*>(&id), record + id_at, 8);
        });
        if (ring.head(slot).lap != static_cast<std::uint32_t>(seq / capacity_)) {
            findings_.add("slot %llu: the row of seq %llu is not in the tree, lap %u", ull(slot),
                          ull(seq), ring.head(slot).lap.load());
            continue;
        }
        const int version = version_of_leaf(leaf, id);
        const UpdateLog& log = board_.updates[slot];
        const std::uint32_t ended = log.seq == seq ? log.ended.load() : 0;
        const std::uint32_t begun = log.seq == seq ? log.begun.load() : 0;
        if (version < 0) {
            findings_.add("slot %llu: leaf %g belongs to no version of row %llx", ull(slot),
                          double{leaf}, ull(id));
        } else if (version != static_cast<int>(ended) && version != static_cast<int>(begun)) {
            findings_.add("slot %llu: row %llx has version %d of its leaf, %u was acknowledged",
                          ull(slot), ull(id), version, ended);
        }
    }
    // Leaves of 24 bits between 1 and 2^21: their sum is exact in any order.
    const double total = live_->total();
    if (total != sum) findings_.add("the tree's total is %.17g, the leaves' %.17g", total, sum);
    const LearnerFigures status = live_->learner_status().figures;
    if (status.sampleable != sampleable) {
        findings_.add("the learner counts %llu sampleable rows, there are %llu",
                      ull(status.sampleable), ull(sampleable));
    }
}

void Arena::verify(Others others, std::size_t stopped, bool role_is_free) {
    for (Seat& seat : board_.seats) {
        if (stopped == 0 || seat.hit.load() == 0) collect(seat);
    }
    if (stopped != 0) {
        // Of those who stand still the rows count as well; their seats stay theirs.
        for (Seat& seat : board_.seats) {
            if (seat.hit.load() == 0) continue;
            for (std::uint64_t slot = 0; slot < capacity_; ++slot) {
                if (seat.newest[slot].seq > newest_[slot].seq) {
                    newest_[slot] = {seat.newest[slot].seq, seat.newest[slot].id};
                }
            }
        }
    }
    verify_rows(others, stopped);
    if (role_is_free) {
        try {
            within(findings_, "fold", 0, [&] { learner_->fold(); });
            verify_tree();
            within(findings_, "sample", 0, [&] { learner_->sample(capacity_); });
            within(findings_, "update", 0, [&] { learner_->update(); });
            verify_tree();
        } catch (const std::exception& error) {
            findings_.add("the successor cannot go on: %s", error.what());
        }
    } else {
        try {
            within(findings_, "learner", 0, [&] { live_->take_learner_role(); });
            findings_.add("the role of a learner who stands still was given away");
        } catch (const LearnerBusy&) {
        }
    }
    within(findings_, "sample_uniform", 0, [&] { learner_->sample_uniform(8); });
    collect(board_.seats[0]);
    if (others != Others::dead || !random_.one_in(3)) return;
    // A lap later nothing reminds of the dead.
    lap(role_is_free, true);
    if (claims() != 0) findings_.add("%llu slots are lost to the dead", ull(claims()));
    collect(board_.seats[0]);
    verify_rows(others, 0);
    if (!role_is_free) return;
    learner_->fold();
    verify_tree();
}

// Every public call, twice: from the old handle and from a new one.
void Arena::each_call(bool all_slots_held, bool role_is_free) {
    const auto of_handle = [&](ReplayBuffer& buffer) {
        Seat& seat = board_.seats[0];
        Explorer explorer(buffer, board_, seat);
        LearnerAtWork learner(buffer, view_->ring, board_, seat);
        const bool added = within(findings_, "add", 1, [&] { return explorer.add(1); });
        if (added == all_slots_held) findings_.add("add with %s", added ? "no slot" : "free slots");
        const bool drawn =
            within(findings_, "sample_uniform", 0, [&] { return learner.sample_uniform(8); });
        if (drawn && all_slots_held) findings_.add("a row was drawn, though all are being written");
        if (role_is_free) {
            within(findings_, "fold", 0, [&] { learner.fold(); });
            within(findings_, "sample", 0, [&] { return learner.sample(8); });
            within(findings_, "update", 0, [&] { learner.update(); });
            within(findings_, "update", 0, [&] {
                const std::int64_t slot = 0;
                const double priority = 1;
                const float leaf = 1;
                if (all_slots_held) buffer.update({&slot, 1}, {}, {&priority, 1}, {&leaf, 1});
            });
            within(findings_, "release_learner", 0, [&] { buffer.release_learner(); });
        }
        within(findings_, "stored_size", 0, [&] { return buffer.stored_size(); });
        within(findings_, "filled_slots", 0, [&] { return buffer.filled_slots(true); });
        RowsRead read(shape_, 1);
        within(findings_, "read_slot", 0, [&] { return buffer.read_slot(0, 0, read.targets()); });
        within(findings_, "next_slot", 0, [&] { return buffer.next_slot(); });
        within(findings_, "rows_added", 0, [&] { return buffer.rows_added(); });
        within(findings_, "max_priority", 0, [&] { return buffer.max_priority(); });
        within(findings_, "processes", 0, [&] { return buffer.processes(); });
        within(findings_, "learner_status", 0, [&] {
            try {
                (void)buffer.learner_status();
            } catch (const LearnerBusy&) {  // it stands still in the middle of publishing
            }
        });
        within(findings_, "leaves", 0, [&] { return buffer.leaves(); });
    };
    of_handle(*live_);
    {
        auto other = within(findings_, "attach", 0, [&] { return attach(name_, options()); });
        of_handle(*other);
        within(findings_, "close", 0, [&] { other->close(); });
    }
    within(findings_, "clear", 0, [&] { explorer_->clear(); });
    within(findings_, "stored_size", 0, [&] { return live_->stored_size(); });
}

void Arena::end(const ScratchFolder& folder) {
    close_live();
    if (is_there()) findings_.add("the segment was left behind");
    for (const std::string& file : folder.files()) {
        findings_.add("%s was left behind", file.c_str());
    }
}

void Arena::close_live() {
    explorer_.reset();
    learner_.reset();
    within(findings_, "close", 0, [&] { live_->close(); });
}

}  // namespace stops

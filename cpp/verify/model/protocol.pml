/* The shared-memory protocol of cpp/core as processes for spin: writers (claim, copy, commit, count),
 * a learner (take over, fold, draw, update), one who clears, and observers (uniform read, stored
 * size). Writers, learner, clearer and observers may die before every access to shared memory.
 *
 * Each `atomic` holds one access to shared memory, plus what its process decides from it alone. The
 * names of the steps are those of slot_ring.hpp, prioritized.cpp and replay_buffer.cpp. README.md says
 * what is left out. Memory is sequentially consistent here; litmus/ is about weaker memory.
 *
 * Sizes and budgets are macros (below); each FLAW_... macro puts in one mistake that must make an
 * assertion fail. -DOUTCOMES turns the assertions about the inside (I1, I2, I3, I5) off, so that a
 * flaw has to show in what a user sees.
 *
 * One file, though long: spin has no modules, and every process shares the same memory and ghosts.
 */

#ifndef CAP
#define CAP 1                /* slots */
#endif
#ifndef WRITERS
#define WRITERS 2
#endif
#ifndef CALLS
#define CALLS 1              /* calls of add, each writer */
#endif
#ifndef EXTRA_CALLS
#define EXTRA_CALLS 0        /* calls that only the first writer makes on top */
#endif
#ifndef ROWS
#define ROWS 1               /* rows of a call */
#endif
#ifndef BATCH
#define BATCH 1              /* positions claimed at once (rows_per_claim) */
#endif
#ifndef CLAIMS
#define CLAIMS 2             /* positions a call claims before it gives up with SlotsHeld */
#endif
#ifndef CLEARS
#define CLEARS 0             /* calls of clear, by a process of their own */
#endif
#ifndef DEATHS
#define DEATHS 0             /* of writers, clearer and observers, together */
#endif
#ifndef RESTARTS
#define RESTARTS 0           /* dead writers whose number a new process takes */
#endif
#ifndef LEARNERS
#define LEARNERS 1           /* processes that hold the learner role one after another; 0: none */
#endif
#ifndef LEARNER_OPS
#define LEARNER_OPS 2        /* folds, samples and updates, all learners together */
#endif
#ifndef OBSERVERS
#define OBSERVERS 0
#endif
#ifndef ASKS
#define ASKS 1               /* stored sizes asked while others work, each observer */
#endif
#ifndef READS
#define READS 0              /* uniform reads, each observer */
#endif
#ifndef STALLS
#define STALLS 0             /* writers that stop for good in the middle of a call and stay alive */
#endif

#ifndef CLOSES
#define CLOSES 0             /* writers whose descriptors are closed, and who go on */
#endif
#ifndef EXECS
#define EXECS 0              /* writers that are replaced by another program: a death that leaves
                                pid and start time */
#endif
#ifndef ABROAD
#define ABROAD 0             /* the writer that lies in another pid namespace than all others */
#endif

#define NUMBERS (WRITERS + 1)                     /* process numbers; 0 is nobody */
#define COUNTING (OBSERVERS && ASKS)              /* else the count is left out: nobody reads it */
#define EPOCHS (RESTARTS || defined(FLAW_NUMBER_TAKEN_WHILE_HELD))

/* What must hold: never written, names for the messages of the assertions. */
hidden byte I1_seq_of_a_slot_only_grows;
hidden byte I2_one_live_writer_of_a_slot;
hidden byte I3_claim_taken_only_from_the_dead;
hidden byte I4_read_returns_one_whole_row;
hidden byte I4_read_returns_no_cleared_row;
hidden byte I5_row_is_in_the_tree_or_awaited;
hidden byte no_committed_row_is_missing_in_the_tree;
hidden byte no_leaf_of_another_row;
hidden byte no_update_is_lost;
hidden byte no_leaf_without_a_row;
hidden byte sampleable_is_exact;
hidden byte stored_size_is_exact;
hidden byte no_row_is_dropped;
hidden byte no_row_is_added_behind_a_clear;
hidden byte the_row_after_a_clear_goes_to_slot_0;
hidden byte a_clear_costs_an_add_one_claim;
hidden byte nobody_awaits_a_position_that_nobody_took;
hidden byte given_up_only_to_the_living;

#define MUST(name, holds)    if :: (holds) :: else -> assert(name) fi
#ifdef OUTCOMES
#define INSIDE(name, holds)  skip
#else
#define INSIDE(name, holds)  MUST(name, holds)
#endif

/* Shared memory. A word is {seq, own, inc, fresh}; own 0: committed. */
byte cursor = CAP, clear_before = CAP;
#if CLEARS
int taken;                                        /* ghost: a bit for each position of a fetch_add */
#define TAKE(s) taken = taken | (1 << (s))
#define TAKEN_EVER(s) (taken & (1 << (s)))
#else
#define TAKE(s) skip
#define TAKEN_EVER(s) true
#endif
#define MAX(a, b) ((a) > (b) -> (a) : (b))
byte word_seq[CAP], word_own[CAP];
bit word_fresh[CAP];
#if EPOCHS
byte word_inc[CAP];
#define INC(slot) word_inc[slot]
#define SET_INC(slot, value) word_inc[slot] = value
#else
#define INC(slot) 0
#define SET_INC(slot, value) skip
#endif
byte record_a[CAP], record_b[CAP];                /* a row is its seq, written as two words */
#if LEARNERS
byte leaf_in[CAP];                                /* a leaf is 2 * seq, + 1 once updated */
byte leaf_seq[CAP], leaf[CAP];
byte key[CAP];                                    /* what callers keep: generation last drawn */
byte updated[CAP];                                /* ghost: seq of the last update accepted */
#endif
#if COUNTING
byte filled_stamp, filled_count;
bit busy[NUMBERS];                                /* busy != 0 */
byte busy_inc[NUMBERS];                           /* and the epoch it holds */
bit requested[OBSERVERS];                          /* recount_requests != requests_seen of that one */
#if OBSERVERS > 1
#define REQUEST_RECOUNT requested[0] = 1; requested[1] = 1
#else
#define REQUEST_RECOUNT requested[0] = 1
#endif
#else
#define REQUEST_RECOUNT skip
#endif

/* The process table and the kernel's locks. */
bit alive[NUMBERS];
byte epoch[NUMBERS];
bit enrolling[NUMBERS];                           /* byte locked, epoch not moved yet */
#if CLOSES
bit closed[NUMBERS];                              /* byte free all the same */
#define CLOSED(number) closed[number]
#else
#define CLOSED(number) false
#endif
#if EXECS
bit replaced[NUMBERS];                            /* dead by exec */
#define REPLACED(number) replaced[number]
#else
#define REPLACED(number) false
#endif
#define DEAD(number, inc) (epoch[number] != (inc) || !alive[number])
/* What can be proved: the byte is free, and the process has ended or has no longer mapped the
 * segment. Of another pid namespace nothing can. */
#define PROVABLE(number, inc)                                                                     \
    (epoch[number] != (inc) || (!alive[number] && (number) != ABROAD))

/* Budgets. */
byte deaths_left = DEATHS, restarts_left = RESTARTS, stalls_left = STALLS;
#if CLOSES
byte closes_left = CLOSES;
#define MAY_BE_CLOSED                                                                             \
    if                                                                                            \
    :: closes_left > 0 && !closed[me] -> closes_left--; closed[me] = 1                            \
    :: true                                                                                       \
    fi
#else
#define MAY_BE_CLOSED skip
#endif
#if EXECS
byte execs_left = EXECS;
#define MAY_EXEC                                                                                  \
    if                                                                                            \
    :: execs_left > 0 -> execs_left--; replaced[me] = 1; alive[me] = 0; goto died                 \
    :: true                                                                                       \
    fi
#else
#define MAY_EXEC skip
#endif
byte learner_deaths_left = LEARNERS - (LEARNERS > 0), learner_ops_left = LEARNER_OPS;
byte running = WRITERS + (CLEARS > 0);            /* writers and clearer that are not done */

/* Writers that differ in nothing but their number: let the first to claim be number 1. */
#if LEARNERS && !COUNTING && WRITERS == 2 && !EXTRA_CALLS && !ABROAD
#define ALIKE
bit started;
#endif

/* Death and stop only before stores: before a load they leave the same behind as before the store
 * that comes next, and the load can always be made in time. */
#define MAY_DIE                                                                                   \
    MAY_BE_CLOSED;                                                                                \
    MAY_EXEC;                                                                                     \
    if                                                                                            \
    :: deaths_left > 0 -> deaths_left--; alive[me] = 0; goto died                                 \
    :: stalls_left > 0 -> stalls_left--; goto done                                                \
    :: true                                                                                       \
    fi

/* What a reader takes for the position and the clear: the cursor first. */
inline look_at_bounds(position_seen, clear_seen)
{
#ifdef FLAW_CURSOR_READ_AFTER_CLEAR
    clear_seen = clear_before;
    position_seen = cursor
#else
    position_seen = cursor;
    clear_seen = clear_before;
    if
    :: position_seen < clear_seen -> position_seen = MAX(clear_seen, cursor)
    :: else
    fi
#endif
}

/* ------------------------------------------------------------------------------- a writer */

#define GIVE_UP 0
#define ASK 1
#define TRY 2
#define TAKEN 3

inline look_at_word()
{
    seen_seq = word_seq[slot]; seen_own = word_own[slot];
    seen_inc = INC(slot); seen_fresh = word_fresh[slot];
    if
#ifndef FLAW_SLEEPING_CLAIMER
    :: seen_seq >= seq -> verdict = GIVE_UP
#endif
    :: else ->
        fresh = (seen_seq < cleared);
        if
        :: seen_own == 0 -> verdict = TRY
        :: seen_own == me -> inherit(); verdict = TRY
        :: else -> verdict = ASK
        fi
    fi
}

inline inherit()
{
#ifndef FLAW_FRESH_NOT_INHERITED
    fresh = fresh || seen_fresh
#else
    skip
#endif
}

#ifdef FLAW_STEAL_BY_TIMEOUT
#define PROVED_DEAD (true)
#elif defined(FLAW_ZOMBIE_PASSES_FOR_ALIVE)
#define PROVED_DEAD (false)
#elif defined(FLAW_NUMBER_REUSED_WITHOUT_EPOCH)
#define PROVED_DEAD (!alive[seen_own])
#elif defined(FLAW_FREE_BYTE_PROVES_DEATH)
#define PROVED_DEAD (DEAD(seen_own, seen_inc) || CLOSED(seen_own))
#elif defined(FLAW_START_TIME_PROVES_LIFE)
#define PROVED_DEAD (PROVABLE(seen_own, seen_inc) && !REPLACED(seen_own))
#else
#define PROVED_DEAD (PROVABLE(seen_own, seen_inc))
#endif

inline publish_word()
{
    word_seq[slot] = seq; word_own[slot] = 0; SET_INC(slot, 0); word_fresh[slot] = 0
}

proctype Writer(byte me; byte my_inc)
{
    byte calls, rows, claims, k, seq, slot, cleared, stamp, raise, verdict;
    byte seen_seq, seen_own, seen_inc;
    bit seen_fresh, fresh, request;
#if CLEARS
    byte behind;                                  /* claims of this call that lay before a clear */
    bit move;
#endif

#ifdef FLAW_NUMBER_TAKEN_WHILE_HELD
    epoch[me] = my_inc;
#endif
next_call:
    do
    :: calls < CALLS + EXTRA_CALLS * (me == 1) ->
        atomic {
            calls++; rows = 0; claims = 0;
#if CLEARS
            behind = 0
#endif
        }
#if COUNTING && !defined(FLAW_NO_BUSY_FLAG)
        atomic { MAY_DIE; busy[me] = 1; busy_inc[me] = my_inc }
#endif
        do
        :: rows < ROWS && claims < CLAIMS ->
#if COUNTING
            stamp = filled_stamp;
#endif
#if CLEARS
            cleared = clear_before;
#endif
            atomic {
#ifdef ALIKE
                (me == 1 || started);
                if :: started -> MAY_DIE :: else -> started = 1 fi;
#else
                MAY_DIE;
#endif
#if !CLEARS
                cleared = clear_before;
#endif
                k = (BATCH < ROWS - rows -> BATCH : ROWS - rows);
                seq = cursor;
                do
                :: k > 0 -> TAKE(cursor); cursor++; k--
                :: else -> break
                od;
                k = cursor - seq;
                claims = claims + k;
                raise = 0;
#if CLEARS && !defined(FLAW_CLEAR_OVERLOOKED_BY_ADD)
                if
                :: seq < cleared ->
                    move = 1; behind++;
                    MUST(a_clear_costs_an_add_one_claim, behind <= CLEARS);
                    if
                    :: seq + k < cleared -> seq = seq + k; k = 0
                    :: else -> k = seq + k - cleared; seq = cleared
                    fi
                :: else
                fi;
#endif
#if CLEARS
                MUST(the_row_after_a_clear_goes_to_slot_0,
                     k == 0 || seq % CAP == 0 || TAKEN_EVER(seq - 1));
#endif
            }
#if CLEARS
            if
            :: move ->
                atomic {
                    MAY_DIE;
#ifndef FLAW_NOBODY_MOVES_THE_CURSOR
                    cursor = MAX(cursor, cleared);
#endif
                    move = 0
                }
            :: else
            fi;
#endif
            do
            :: k > 0 ->
                /* claim */
                atomic { slot = seq % CAP; look_at_word() }
                do
                :: verdict == ASK ->
                    atomic {
                        if
                        :: PROVED_DEAD -> inherit(); verdict = TRY
                        :: else ->
                            MUST(given_up_only_to_the_living,
                                 enrolling[seen_own] || !PROVABLE(seen_own, seen_inc));
                            verdict = GIVE_UP
                        fi
                    }
                :: verdict == TRY ->
                    atomic {
                        MAY_DIE;
                        if
#ifndef FLAW_CLAIM_WITHOUT_COMPARING
                        :: (word_seq[slot] != seen_seq || word_own[slot] != seen_own
                            || INC(slot) != seen_inc || word_fresh[slot] != seen_fresh) ->
                            look_at_word()
#endif
                        :: else ->
                            INSIDE(I1_seq_of_a_slot_only_grows, seq > word_seq[slot]);
                            INSIDE(I3_claim_taken_only_from_the_dead,
                                   word_own[slot] == 0 || DEAD(word_own[slot], INC(slot))
                                   || enrolling[word_own[slot]]
                                   || (word_own[slot] == me && INC(slot) == my_inc));
                            word_seq[slot] = seq; word_own[slot] = me;
                            SET_INC(slot, my_inc); word_fresh[slot] = fresh;
                            verdict = TAKEN
                        fi
                    }
                :: else -> break
                od;
                if
                :: verdict == TAKEN ->
#ifdef FLAW_PUBLISH_BEFORE_COPY
                    atomic { MAY_DIE; publish_word() }
#define STILL_MINE true
#else
#define STILL_MINE (word_seq[slot] == seq && word_own[slot] == me && INC(slot) == my_inc)
#endif
                    atomic {
                        MAY_DIE;
                        INSIDE(I2_one_live_writer_of_a_slot, STILL_MINE);
                        record_a[slot] = seq
                    }
                    atomic {
                        MAY_DIE;
                        INSIDE(I2_one_live_writer_of_a_slot, STILL_MINE);
                        record_b[slot] = seq
                    }
                    /* commit */
#if LEARNERS
                    atomic { MAY_DIE; leaf_in[slot] = 2 * seq }
#endif
                    atomic {
                        MAY_DIE;
                        INSIDE(I2_one_live_writer_of_a_slot, STILL_MINE);
                        INSIDE(I1_seq_of_a_slot_only_grows, word_seq[slot] <= seq);
                        MUST(no_row_is_added_behind_a_clear, seq >= cleared);
                        publish_word();
                        rows++;
                        raise = raise + fresh
                    }
#ifdef FLAW_EXPLORER_WRITES_LEAF
                    atomic { MAY_DIE; leaf[slot] = 2 * seq }
                    atomic { MAY_DIE; leaf_seq[slot] = seq }
#endif
                :: else ->
#ifdef FLAW_SKIPPED_ROW_IS_DROPPED
                    claims = claims - 1;
                    rows++;
                    assert(no_row_is_dropped)
#else
                    skip
#endif
                fi;
                atomic {
                    k--; seq++; verdict = 0; fresh = 0; slot = 0;
                    seen_seq = 0; seen_own = 0; seen_inc = 0; seen_fresh = 0
                }
            :: else -> break
            od;
#if COUNTING
            if
            :: raise > 0 ->
                atomic {
                    MAY_DIE;
                    if
#ifndef FLAW_RAISE_WITHOUT_STAMP
                    :: filled_stamp != stamp -> request = 1
#endif
                    :: else -> filled_count = filled_count + raise
                    fi
                };
                if :: request -> atomic { MAY_DIE; REQUEST_RECOUNT; request = 0 } :: else fi
            :: else
            fi;
#ifndef FLAW_CLEAR_SEEN_WITHOUT_REQUEST
            request = (clear_before != cleared);
            if :: request -> atomic { MAY_DIE; REQUEST_RECOUNT; request = 0 } :: else fi;
#endif
#endif
            atomic { cleared = 0; stamp = 0; raise = 0; seq = 0 }
        :: else -> break
        od;
#if COUNTING
        atomic { MAY_DIE; busy[me] = 0 }
#endif
    :: else -> break
    od;
    goto done;

died:
#if RESTARTS
    if
    :: atomic { restarts_left > 0 -> restarts_left--; alive[me] = 1; enrolling[me] = 1 }
        atomic { MAY_DIE; epoch[me]++; my_inc = epoch[me]; enrolling[me] = 0 }
        atomic {
            k = 0; seq = 0; slot = 0; cleared = 0; stamp = 0; raise = 0; verdict = 0; request = 0;
            seen_seq = 0; seen_own = 0; seen_inc = 0; seen_fresh = 0; fresh = 0; rows = 0;
#if CLEARS
            move = 0; behind = 0
#endif
        }
#if COUNTING
        request = busy[me];
        if
        :: request -> atomic { MAY_DIE; REQUEST_RECOUNT }; atomic { MAY_DIE; busy[me] = 0; request = 0 }
        :: else
        fi;
#endif
        goto next_call
    :: true
    fi;
#endif
done:
    atomic {
        running--; enrolling[me] = 0;
        calls = 0; rows = 0; claims = 0; k = 0; seq = 0; slot = 0; cleared = 0; stamp = 0;
        raise = 0; verdict = 0; request = 0; fresh = 0;
        seen_seq = 0; seen_own = 0; seen_inc = 0; seen_fresh = 0;
#if CLEARS
        move = 0; behind = 0
#endif
    }
}

/* ------------------------------------------------------------------------- who clears */

#if CLEARS

/* Who stops for good here has died for all others: nobody asks whether it lives. */
#define CLEARER_MAY_DIE                                                                           \
    if                                                                                            \
    :: deaths_left > 0 -> deaths_left--; goto died                                                \
    :: true                                                                                       \
    fi

proctype Clearer()
{
    byte calls, next;
#ifdef FLAW_CLEAR_IN_TWO_STORES
    byte position;
    bit again;
#endif
    do
    :: calls < CLEARS ->
        calls++;
#ifdef FLAW_CLEAR_IN_TWO_STORES
        atomic { position = cursor; again = 1 }
        do
        :: again ->
            atomic {
                CLEARER_MAY_DIE;
                next = (position + CAP - 1) / CAP * CAP;
                if
                :: cursor == position -> cursor = next; again = 0
                :: else -> position = cursor
                fi
            }
        :: else -> break
        od;
#else
        next = (cursor + CAP - 1) / CAP * CAP;
#endif
        atomic { CLEARER_MAY_DIE; clear_before = MAX(clear_before, next) }
    :: else -> break
    od;
died:
    atomic { running--; calls = 0; next = 0 }
}
#endif

/* ----------------------------------------------------------------------------- the learner */

#if LEARNERS

#define LEARNER_MAY_DIE                                                                           \
    if                                                                                            \
    :: learner_deaths_left > 0 -> learner_deaths_left--; goto died                                \
    :: true                                                                                       \
    fi
/* Whatever the leaf is: that of a row which is there may be 0, where its priority is. */
#define SETTLED(slot, seq) (leaf_seq[slot] == (seq))

inline mark_pending(at, position)
{
    if :: pending[at] < (position) -> pending[at] = position :: else fi
}

inline zero_leaf(at)
{
    if :: leaf[at] > 0 -> leaf[at] = 0; sampleable-- :: else fi
}

/* Takes the leaf that came with row `s` of `slot`; `ok`: it was there. */
inline fold_row(s)
{
    ok = (word_seq[slot] == s && word_own[slot] == 0);
    if
    :: ok ->
        new_leaf = leaf_in[slot];
        atomic {
            LEARNER_MAY_DIE;
#ifndef SPARE_LEAF_IN_WITHOUT_SECOND_LOOK
            ok = (word_seq[slot] == s && word_own[slot] == 0);
#endif
            if
            :: ok ->
                before = (leaf[slot] > 0);
                sampleable = sampleable + !before;
#ifdef FLAW_LEAF_SEQ_BEFORE_LEAF
                leaf_seq[slot] = s
#else
                leaf[slot] = new_leaf
#endif
            :: else
            fi
        }
        if
        :: ok ->
            atomic {
                LEARNER_MAY_DIE;
#ifdef FLAW_LEAF_SEQ_BEFORE_LEAF
                leaf[slot] = new_leaf;
#else
                leaf_seq[slot] = s;
#endif
                new_leaf = 0
            }
        :: else -> new_leaf = 0
        fi
    :: else
    fi
}

inline fold()
{
    look_at_bounds(position, seen);
    if
    :: seen != cleared ->
        /* fold_clear */
        slot = 0;
        do
        :: slot < CAP ->
            atomic {
                LEARNER_MAY_DIE;
#ifndef FLAW_CLEAR_LEAVES_THE_LEAVES
                if :: leaf_seq[slot] < seen -> zero_leaf(slot) :: else fi;
#endif
                slot++
            }
        :: else -> break
        od;
        atomic {
            slot = 0;
            do
            :: slot < CAP ->
                if :: pending[slot] < seen -> pending[slot] = 0 :: else fi;
                slot++
            :: else -> break
            od;
            cleared = seen; slot = 0
        }
    :: else
    fi;
    atomic {
        s = folded;
        if :: s + CAP < position -> s = position - CAP :: else fi;
        if :: s < cleared -> s = cleared :: else fi
    }
    /* fold_range */
    do
    :: s < position ->
        slot = s % CAP;
        MUST(nobody_awaits_a_position_that_nobody_took, TAKEN_EVER(s));
        if
#ifndef FLAW_FOLD_TAKES_SETTLED_ROWS_AGAIN
        :: SETTLED(slot, s)
#endif
        :: else ->
            fold_row(s);
            if
            :: ok
            :: else ->
                atomic {
                    LEARNER_MAY_DIE;
                    if
                    :: word_seq[slot] <= s ->
#ifndef FLAW_PENDING_DROPPED
                        mark_pending(slot, s);
#endif
#ifdef FLAW_HOLE_LOSES_ITS_OLD_ROW
                        zero_leaf(slot)
#else
                        if :: word_own[slot] != 0 -> zero_leaf(slot) :: else fi
#endif
                    :: else
                    fi
                }
            fi
        fi;
        atomic { s++; ok = 0 }
    :: else -> break
    od;
    atomic { if :: folded < position -> folded = position :: else fi; slot = 0; s = 0; position = 0 }
    /* recheck_pending */
    do
    :: slot < CAP ->
        if
        :: pending[slot] > 0 ->
            atomic {
                LEARNER_MAY_DIE;
                seen = word_seq[slot]; ok = 0; need = 0;
                if
                :: word_own[slot] != 0 -> zero_leaf(slot);
#ifdef FLAW_HOLE_TIMED_OUT
                    pending[slot] = 0
#endif
                :: else ->
                    if
                    :: seen < cleared
                    :: seen >= cleared && SETTLED(slot, seen) -> ok = 1
                    :: else -> need = 1
                    fi
                fi
            }
            if :: need -> fold_row(seen) :: else fi;
            atomic {
                if :: ok && seen >= pending[slot] -> pending[slot] = 0 :: else fi;
                ok = 0; need = 0; seen = 0
            }
        :: else
        fi;
        slot++
    :: else -> break
    od;
    atomic {
        slot = 0; ok = 0; before = 0; seen = 0;
        do
        :: slot < CAP ->
            INSIDE(I5_row_is_in_the_tree_or_awaited,
                   word_own[slot] != 0 || word_seq[slot] < clear_before
                   || word_seq[slot] >= folded
                   || (leaf_seq[slot] == word_seq[slot] && leaf[slot] / 2 == word_seq[slot])
                   || pending[slot] >= word_seq[slot]);
            slot++
        :: else -> break
        od;
        slot = 0;
        check_sampleable()
    }
}

inline check_sampleable()
{
#ifdef FLAW_EXPLORER_WRITES_LEAF
    skip                                          /* does not count them at all */
#elif CAP == 1
    MUST(sampleable_is_exact, sampleable == (leaf[0] > 0))
#else
    MUST(sampleable_is_exact, sampleable == (leaf[0] > 0) + (leaf[1] > 0))
#endif
}

proctype Learner()
{
    byte folded, cleared, position, s, slot, seen, new_leaf, sampleable, since;
    byte pending[CAP];
    bit ok, before, need;

take_over:
    look_at_bounds(position, cleared);
    folded = position;
    do
    :: slot < CAP ->
        atomic {
            seen = word_seq[slot];
            ok = (word_own[slot] == 0 && seen >= cleared);
#ifdef FLAW_TAKE_OVER_TRUSTS_LEAVES
            need = (ok && !(leaf[slot] > 0))
#else
            need = (ok && !SETTLED(slot, seen))
#endif
        }
        if
        :: need -> fold_row(seen); sampleable = sampleable + (ok && before)
        :: else
        fi;
        atomic {
            LEARNER_MAY_DIE;
            if
            :: ok -> sampleable = sampleable + !need
            :: else -> leaf[slot] = 0
            fi;
            s = position - position % CAP + slot;
            if :: s >= position -> s = s - CAP :: else fi;
#ifndef FLAW_TAKE_OVER_EXPECTS_NOTHING
            if
            :: s >= cleared && !(ok && seen >= s) ->
                MUST(nobody_awaits_a_position_that_nobody_took, TAKEN_EVER(s));
                mark_pending(slot, s)
            :: else
            fi;
#endif
            slot++; ok = 0; need = 0; before = 0; seen = 0; s = 0
        }
    :: else -> break
    od;
#ifdef FLAW_TAKE_OVER_READS_CURSOR_AFTER_SCAN
    folded = cursor;
#endif
    atomic { slot = 0; position = 0; check_sampleable() }

    do
    :: atomic { learner_ops_left > 0 -> learner_ops_left-- }
        if
        :: /* sample; one that keeps no key is a fold, for everybody else */
            since = clear_before;
            fold();
            do
            :: atomic {
                    sampleable > 0 ->
                    if
                    :: leaf[0] > 0 -> slot = 0
#if CAP > 1
                    :: leaf[1] > 0 -> slot = 1
#endif
                    fi;
                    s = leaf_seq[slot];
                    ok = (s >= cleared)
                }
                if
                :: ok -> ok = (word_seq[slot] == s && word_own[slot] == 0)
                :: else
                fi;
                if
                :: ok ->
                    seen = record_a[slot];
                    position = record_b[slot];
                    atomic {
#ifndef FLAW_ROW_WITHOUT_SECOND_LOOK
                        ok = (word_seq[slot] == s && word_own[slot] == 0)
#endif
                    }
                :: else
                fi;
                if
                :: ok ->
                    atomic {
                        MUST(I4_read_returns_one_whole_row, seen == s && position == s);
                        MUST(I4_read_returns_no_cleared_row, s >= since);
                        MUST(no_leaf_of_another_row, leaf[slot] / 2 == s);
                        if :: key[slot] = s :: true fi    /* callers may keep an older one */
                    }
                    break
                :: else ->
                    /* draw_again */
#ifndef FLAW_REDRAW_WITHOUT_BOUND
                    atomic {
                        LEARNER_MAY_DIE;
                        zero_leaf(slot);
#ifndef SPARE_FAILED_DRAW_EXPECTS_NOTHING
                        mark_pending(slot, word_seq[slot]);
#endif
                        slot = 0; s = 0; seen = 0; position = 0
                    }
                    fold()
#else
                    atomic { slot = 0; s = 0; seen = 0; position = 0 }
#endif
                fi
            :: else -> break                     /* EmptyBuffer, in the end */
            od;
            atomic { slot = 0; s = 0; seen = 0; position = 0; ok = 0; since = 0 }
        :: /* update */
            if
            :: slot = 0
#if CAP > 1
            :: slot = 1
#endif
            fi;
            seen = clear_before;
            atomic {
                if
                :: key[slot] > 0 -> s = key[slot]
                :: s = leaf_seq[slot]
#ifdef OWN_ROWS
                :: key[slot] == 0 -> s = word_seq[slot]  /* of this handle's own, not folded yet */
#endif
                fi;
                ok = (s >= seen
#if !defined(FLAW_UPDATE_UNCHECKED) && !defined(SPARE_UPDATE_TRUSTS_WORD)
#ifdef OWN_ROWS
                      && (s == leaf_seq[slot] || key[slot] == 0)
#else
                      && s == leaf_seq[slot]
#endif
#endif
#if !defined(FLAW_UPDATE_UNCHECKED) && !defined(SPARE_UPDATE_TRUSTS_LEAF_SEQ)
                      && word_seq[slot] == s && word_own[slot] == 0
#endif
                );
            }
#if defined(OWN_ROWS) && !defined(FLAW_OWN_ROW_IS_NOT_SETTLED)
            if
            :: ok && s != leaf_seq[slot] -> fold_row(s); before = 0
            :: else
            fi;
#endif
            if
            :: ok ->
                atomic {
                    LEARNER_MAY_DIE;
                    sampleable = sampleable + !(leaf[slot] > 0);
                    leaf[slot] = 2 * s + 1;
                    updated[slot] = s
                }
            :: else
            fi;
            atomic { slot = 0; s = 0; seen = 0; ok = 0 }
        fi
    :: running == 0 -> break
    od;

    /* Everybody else is done: one more fold, then all must be in its place. */
    fold();
    atomic {
        do
        :: slot < CAP ->
            if
            :: word_own[slot] == 0 && word_seq[slot] >= clear_before ->
                MUST(no_committed_row_is_missing_in_the_tree,
                     leaf_seq[slot] == word_seq[slot] && leaf[slot] > 0);
                MUST(no_leaf_of_another_row, leaf[slot] / 2 == word_seq[slot]);
                MUST(no_update_is_lost, updated[slot] != word_seq[slot] || leaf[slot] % 2 == 1)
            :: else -> MUST(no_leaf_without_a_row, leaf[slot] == 0)
            fi;
            slot++
        :: else -> break
        od
    }
    goto done;

died:
    atomic {
        folded = 0; cleared = 0; position = 0; s = 0; slot = 0; seen = 0; new_leaf = 0;
        sampleable = 0; since = 0; ok = 0; before = 0; need = 0; pending[0] = 0;
#if CAP > 1
        pending[1] = 0
#endif
    }
    goto take_over;
done:
    skip
}
#endif

/* ---------------------------------------------------------------------------- an observer */

#if OBSERVERS

#define OBSERVER_MAY_DIE                                                                          \
    if                                                                                            \
    :: OBSERVERS > 1 && me > 0 && deaths_left > 0 -> deaths_left--; goto died                     \
    :: true                                                                                       \
    fi

inline stored_size()
{
    number = 1;
    do
    :: number <= WRITERS ->
        atomic { ok = busy[number]; inc = busy_inc[number] }
        if
        :: ok ->
            ok = PROVABLE(number, inc);
            if
            :: ok ->
#ifdef FLAW_BUSY_FORGOTTEN_BEFORE_REQUEST
                atomic { OBSERVER_MAY_DIE;
                         if :: busy_inc[number] == inc -> busy[number] = 0 :: else fi }
                atomic { OBSERVER_MAY_DIE; REQUEST_RECOUNT }
#else
                atomic { OBSERVER_MAY_DIE; REQUEST_RECOUNT }
                atomic { OBSERVER_MAY_DIE;
                         if :: busy_inc[number] == inc -> busy[number] = 0 :: else fi }
#endif
            :: else
            fi
        :: else
        fi;
        atomic { number++; ok = 0; inc = 0 }
    :: else -> break
    od;
    number = 0;
    atomic { OBSERVER_MAY_DIE; ok = requested[me]; requested[me] = 0 }
#if CLEARS
    cleared = clear_before;
#ifndef FLAW_CLEAR_NOT_SEEN_BY_COUNT
    ok = (ok || cleared != cleared_seen);
#endif
#else
    cleared = CAP;
#endif
    if
    :: ok ->
        /* recount */
        ok = 0;
        atomic { stamp = filled_stamp; count = filled_count }
#if CLEARS
        cleared = clear_before;
#endif
        counted = 0;
        do
        :: slot < CAP ->
            atomic {
                claim[slot] = 0;
                if
                :: word_seq[slot] < cleared
                :: word_seq[slot] >= cleared && word_own[slot] == 0 -> counted++
                :: word_seq[slot] >= cleared && word_own[slot] != 0 && !word_fresh[slot] ->
                    counted++; claim[slot] = word_seq[slot]
                :: else
                fi;
                slot++
            }
        :: else -> break
        od;
        atomic {
            OBSERVER_MAY_DIE;
            if
#ifdef FLAW_EQUAL_COUNT_NEEDS_NO_STAMP
            :: count == counted -> cleared_seen = cleared
#endif
            :: else ->
                if
                :: filled_stamp == stamp && filled_count == count ->
                    filled_count = counted; cleared_seen = cleared;
#ifndef FLAW_RECOUNT_WITHOUT_STAMP
                    filled_stamp++
#endif
                :: else -> requested[me] = 1
                fi
            fi;
            slot = 0; stamp = 0; count = 0; cleared = 0
        }
    :: else ->
        counted = filled_count;
        do
        :: slot < CAP ->
            atomic {
                if
                :: (claim[slot] > 0 && (word_seq[slot] != claim[slot] || word_own[slot] == 0
                                        || claim[slot] < cleared)) ->
                    claim[slot] = 0
                :: else
                fi;
                slot++
            }
        :: else -> break
        od;
        atomic { slot = 0; cleared = 0 }
    fi;
    atomic {
        size = 0;
        do
        :: slot < CAP -> size = size + (claim[slot] > 0); slot++
        :: else -> break
        od;
        slot = 0;
        if :: size < counted -> size = counted - size :: else -> size = 0 fi;
        counted = 0
    }
}

proctype Observer(byte me)
{
    byte asks, reads, number, inc, stamp, count, counted, cleared, slot, seq, size;
    byte claim[CAP];
    byte cleared_seen = CAP;
    byte a, b;
    bit ok;
    do
#if ASKS
    :: asks < ASKS && running > 0 -> asks++; stored_size(); size = 0
#endif
#if READS
    :: reads < READS ->
        /* draw_uniform */
        reads++;
        look_at_bounds(seq, cleared);
        atomic {
            if
            :: seq == cleared
            :: seq > cleared -> seq = seq - 1; ok = 1
#if CAP > 1
            :: seq > cleared + 1 -> seq = seq - 2; ok = 1
#endif
            fi
            if
            :: ok ->
                MUST(nobody_awaits_a_position_that_nobody_took, TAKEN_EVER(seq));
                slot = seq % CAP
            :: else
            fi
        }
        /* read_any */
        if
        :: ok ->
            atomic {
                seq = word_seq[slot];
                ok = (word_own[slot] == 0 && seq >= cleared)
            }
        :: else
        fi;
        if
        :: ok ->
            if
            :: a = record_a[slot]; b = record_b[slot]
            :: b = record_b[slot]; a = record_a[slot]
            fi;
            atomic {
#ifndef FLAW_ROW_WITHOUT_SECOND_LOOK
                ok = (word_seq[slot] == seq && word_own[slot] == 0);
#endif
                MUST(I4_read_returns_one_whole_row, !ok || (a == seq && b == seq));
                MUST(I4_read_returns_no_cleared_row, !ok || seq >= cleared)
            }
        :: else
        fi;
        atomic { slot = 0; seq = 0; a = 0; b = 0; ok = 0; cleared = 0 }
#endif
    :: running == 0 -> break
    od;
#if ASKS
    stored_size();
    atomic {
        if
        :: word_own[slot] == 0 && word_seq[slot] >= clear_before -> counted++
        :: else
        fi;
#if CAP > 1
        if
        :: word_own[1] == 0 && word_seq[1] >= clear_before -> counted++
        :: else
        fi;
#endif
        MUST(stored_size_is_exact, stalls_left < STALLS || size == counted)
    }
#endif
died:
    skip
}
#endif

init {
    atomic {
        byte number = 1;
        do
        :: number < NUMBERS -> alive[number] = 1; number++
        :: else -> break
        od;
#ifdef FLAW_FORKED_CHILD_KEEPS_IDENTITY
        run Writer(1, 0); run Writer(1, 0);
#elif defined(FLAW_NUMBER_TAKEN_WHILE_HELD)
        run Writer(1, 0); run Writer(1, 1);
#else
        number = 1;
        do
        :: number <= WRITERS -> run Writer(number, 0); number++
        :: else -> break
        od;
#endif
#if CLEARS
        run Clearer();
#endif
#if LEARNERS
        run Learner();
#endif
#if OBSERVERS
        run Observer(0);
#if OBSERVERS > 1
        run Observer(1);
#endif
#endif
    }
}

/* The weights' protocol of cpp/core/weights/version_slots.hpp as processes for spin: publishers, one after
 * another, and readers. A publisher may die before every store, and so may readers; readers may also
 * be stopped, and go on. Each `atomic` holds one access to shared memory, plus what its process
 * decides from it alone. Memory is sequentially consistent here; litmus/ is about weaker memory.
 *
 * -DOUTCOMES turns the assertions about the inside off (which slots rest, how often a read copies), so
 * that a flaw has to show in what a user reads.
 *
 * A version's bytes are two words that hold the number of the attempt to publish, so that bytes of
 * two attempts under one version's number can be told. Sizes and budgets are macros; each FLAW_...
 * puts in one mistake that must make an assertion fail.
 */

#ifndef SLOTS
#define SLOTS 3
#endif
#ifndef READERS
#define READERS 2
#endif
#ifndef READS
#define READS 1              /* each reader */
#endif
#ifndef VERSIONS
#define VERSIONS 3           /* calls of publish, all publishers together */
#endif
#ifndef PUBLISHERS
#define PUBLISHERS 1         /* processes that hold the role one after another */
#endif
#ifndef DEATHS
#define DEATHS 0             /* of readers */
#endif
#ifndef STOPS
#define STOPS 0              /* how often a reader is stopped */
#endif

#define ALL ((1 << SLOTS) - 1)
#define BIT(slot) (1 << (slot))

/* What must hold: never written, names for the messages of the assertions. */
hidden byte a_read_is_one_whole_version;
hidden byte a_read_is_one_copy;
hidden byte a_slot_rests_while_it_is_copied;
hidden byte the_offered_slot_is_not_written;
hidden byte what_is_offered_never_gets_older;
hidden byte a_read_is_as_new_as_what_was_offered;
hidden byte the_newest_version_is_offered_at_rest;

#define GUARD (!stopped[me])
#define MUST(name, holds)    if :: (holds) :: else -> assert(name) fi

/* Shared memory. The offer is one word: {newest, offered, pending_plus_one}. */
byte newest, offered, pending_plus_one;
byte version[SLOTS], word_a[SLOTS], word_b[SLOTS];
byte mark[READERS];                               /* slot + 1; 0: reads nothing */

bit dead[READERS], stopped[READERS + 1];         /* the last stands for who never is */
bit role_taken;

/* Ghosts: told to nobody. */
byte attempts;                                    /* calls of publish */
byte attempt_of[VERSIONS + 1];                    /* whose bytes a version has */
byte offered_version;
byte copied_slot_plus_one[READERS];               /* once the mark is confirmed */
bit overtaking;                                   /* a reader was stopped in a copy, and went on */
bit lost;                                         /* a pending version, by its publisher's death */

byte publications_left = VERSIONS, publisher_deaths_left = PUBLISHERS - 1;
byte deaths_left = DEATHS, stops_left = STOPS;
byte publishers_done, readers_done;

/* Those of `candidates` that no running reader has, into `free`. */
inline find_free(candidates) {
    held = 0;
    reader = 0;
    do
    :: atomic { GUARD && reader < READERS ->
            if :: mark[reader] != 0 -> held = held | BIT(mark[reader] - 1) :: else fi;
            reader++ }
    :: atomic { reader == READERS -> break }
    od;
#ifdef FLAW_MARKS_IGNORED
    held = 0;
#endif
    free = candidates & ~held & ALL;
    if
    :: free == 0 ->
        held = 0;
        reader = 0;
        do
        :: atomic { GUARD && reader < READERS ->
                seen_mark = mark[reader];
                if :: seen_mark != 0 && (BIT(seen_mark - 1) & candidates & ~held)
                   :: else -> seen_mark = 0; reader++
                fi }
            if
            :: atomic { seen_mark != 0 && GUARD ->
#ifdef FLAW_DEAD_HOLD_THEIR_SLOTS
                    held = held | BIT(seen_mark - 1);
#else
                    if :: !dead[reader] && !stopped[reader] -> held = held | BIT(seen_mark - 1)
                       :: else
                    fi;
#endif
                    reader++; seen_mark = 0 }
            :: seen_mark == 0
            fi
        :: atomic { reader == READERS -> break }
        od;
        free = candidates & ~held & ALL
    :: else
    fi
}

#define OFFER(new_version, slot)                                                                   \
    MUST(what_is_offered_never_gets_older, (new_version) > offered_version);                       \
    offered_version = new_version;                                                                 \
    offered = slot

/* Offers the version that was seen pending, if a slot is free then: `settled`. */
inline offer_pending() {
    find_free(ALL & ~BIT(seen_offered) & ~BIT(seen_pending - 1));
    if
    :: free == 0 -> settled = false
    :: else ->
        settled = true;
        atomic { GUARD ->
            if
            :: newest == seen_newest && offered == seen_offered &&
               pending_plus_one == seen_pending ->
                OFFER(newest, pending_plus_one - 1);
                pending_plus_one = 0
            :: else
            fi }
    fi
}

#define LOOK  seen_newest = newest; seen_offered = offered; seen_pending = pending_plus_one

#ifdef OUTCOMES
#define INSIDE(name, holds)  skip
#else
#define INSIDE(name, holds)  MUST(name, holds)
#endif

#define REST_IS_KEPT(slot)                                                                         \
    INSIDE(the_offered_slot_is_not_written, newest == 0 || offered != slot);                         \
    INSIDE(a_slot_rests_while_it_is_copied,                                                        \
         overtaking ||                                                                             \
         ((copied_slot_plus_one[0] != slot + 1 || stopped[0] || dead[0]) &&                        \
          (copied_slot_plus_one[READERS - 1] != slot + 1 || stopped[READERS - 1] ||                \
           dead[READERS - 1])))

#define LOCALS                                                                                     \
    byte held, free, reader, seen_mark, seen_newest, seen_offered, seen_pending;                   \
    bool settled

#define MAY_DIE  :: atomic { publisher_deaths_left > 0 -> publisher_deaths_left--; goto gone }

active [PUBLISHERS] proctype publisher() {
    LOCALS;
    byte me = READERS;
    byte slot, attempt, number;
    bool taken_back;
    atomic { !role_taken -> role_taken = 1 };
    do
    :: atomic { publications_left > 0 -> publications_left--; attempts++; attempt = attempts;
                taken_back = false; LOOK };
        /* slot_to_write */
        if
        :: seen_pending != 0 ->
            offer_pending();
            if
            :: !settled ->
                if
                :: atomic {
#ifndef FLAW_PENDING_TAKEN_WITHOUT_COMPARING
                        newest == seen_newest && offered == seen_offered &&
                        pending_plus_one == seen_pending ->
#else
                        true ->
#endif
                        pending_plus_one = 0; slot = seen_pending - 1; taken_back = true }
#ifndef FLAW_PENDING_TAKEN_WITHOUT_COMPARING
                :: atomic { newest != seen_newest || offered != seen_offered ||
                            pending_plus_one != seen_pending -> skip }
#endif
                MAY_DIE
                fi
            :: else
            fi;
            atomic { LOOK }
        :: else
        fi;
        if
        :: !taken_back ->
#ifdef FLAW_OFFERED_SLOT_TAKEN
            find_free(ALL);
#else
            find_free(ALL & ~BIT(seen_offered));
#endif
            atomic {
                if :: free == 0 -> free = ALL & ~BIT(seen_offered) :: else fi;
                if
                :: free & 1 -> slot = 0
                :: free & 2 -> slot = 1
                :: SLOTS > 2 && (free & 4) -> slot = 2
                :: SLOTS > 3 && (free & 8) -> slot = 3
                fi }
        :: else
        fi;
        atomic { number = newest + 1 };
#ifdef FLAW_OFFERED_BEFORE_IT_IS_WRITTEN
        atomic { OFFER(number, slot); newest = number };
#endif
#ifndef FLAW_NUMBER_KEPT
        if :: atomic { REST_IS_KEPT(slot); version[slot] = 0 } MAY_DIE fi;
#endif
        if :: atomic { REST_IS_KEPT(slot); word_a[slot] = attempt } MAY_DIE fi;
        if :: atomic { REST_IS_KEPT(slot); word_b[slot] = attempt } MAY_DIE fi;
        if
        :: atomic { REST_IS_KEPT(slot); version[slot] = number; attempt_of[number] = attempt }
        MAY_DIE
        fi;
        /* offer */
#ifndef FLAW_OFFERED_BEFORE_IT_IS_WRITTEN
        atomic { LOOK };
        find_free(ALL & ~BIT(seen_offered) & ~BIT(slot));
#ifdef FLAW_NEVER_PENDING
        free = 1;
#endif
        if
        :: free != 0 ->
            if
            :: atomic { OFFER(number, slot); newest = number;
                        pending_plus_one = 0; lost = false }
            MAY_DIE
            fi
        :: else ->
            if
            :: atomic { newest = number;
                        pending_plus_one = slot + 1; lost = false; LOOK }
            MAY_DIE
            fi;
#ifndef SPARE_NO_LOOK_AFTER_PENDING
            offer_pending()
#endif
        fi
#endif
    :: atomic { publications_left == 0 -> break }
    od;
    goto done;
gone:
    atomic { if :: taken_back -> lost = true :: else fi };
done:
    atomic { role_taken = 0; publishers_done++ }
}

#define MAY_FALL  :: atomic { GUARD && deaths_left > 0 -> deaths_left--; goto fallen }

/* look(): leaves in seen_... what is offered now. */
inline look() {
    atomic { GUARD -> LOOK };
#ifndef FLAW_READERS_LEAVE_IT_PENDING
    if
    :: seen_pending != 0 -> offer_pending(); atomic { GUARD -> LOOK }
    :: else
    fi
#endif
}

active [READERS] proctype a_reader() {
    LOCALS;
    byte me = _pid - PUBLISHERS;
    byte reads_left = READS, last, start, got, slot, a, b;
    bool whole;
    do
    :: atomic { GUARD && reads_left > 0 -> reads_left--; start = offered_version };
again:
        look();
        if
        :: seen_newest <= last -> goto returned
        :: else -> slot = seen_offered
        fi;
        if
        :: atomic { GUARD -> mark[me] = slot + 1 }
        MAY_FALL
        fi;
#ifndef FLAW_OFFER_NOT_LOOKED_AT_AGAIN
        if
        :: atomic { GUARD && offered != slot }
            if :: atomic { GUARD -> mark[me] = 0 } MAY_FALL fi;
            goto again
        :: atomic { GUARD && offered == slot -> copied_slot_plus_one[me] = slot + 1 }
        fi;
#endif
        atomic { GUARD -> got = version[slot] };
        if
        :: got > last ->
            atomic { GUARD -> a = word_a[slot] };
            atomic { GUARD -> b = word_b[slot] }
        :: else
        fi;
#ifdef FLAW_NUMBER_NOT_LOOKED_AT_AGAIN
        atomic { GUARD -> whole = got != 0; copied_slot_plus_one[me] = 0 };
#else
        atomic { GUARD -> whole = got != 0 && version[slot] == got; copied_slot_plus_one[me] = 0 };
#endif
        if :: atomic { GUARD -> mark[me] = 0 } MAY_FALL fi;
        look();
        if
        :: !whole ->
            INSIDE(a_read_is_one_copy, overtaking);
            goto again
        :: whole && got > last ->
            MUST(a_read_is_one_whole_version, a == b && a == attempt_of[got]);
            last = got
        :: else
        fi;
returned:
        MUST(a_read_is_as_new_as_what_was_offered, last >= start);
        a = 0; b = 0; got = 0; slot = 0; start = 0
    :: atomic { GUARD && reads_left == 0 -> break }
    od;
    goto done;
fallen:
    dead[me] = 1;
done:
    readers_done++
}

#define GO_ON(who)                                                                                 \
    stopped[who] = 0; if :: mark[who] != 0 -> overtaking = 1 :: else fi

#if STOPS
active proctype stopper() {
    byte who;
    do
    :: atomic { stops_left > 0 -> select(who : 0 .. READERS - 1); stops_left--; stopped[who] = 1;
                who = 0 }
    :: atomic { stopped[0] -> GO_ON(0) }
    :: atomic { stopped[READERS - 1] -> GO_ON(READERS - 1) }
    :: stops_left == 0 && stopped[0] + stopped[READERS - 1] == 0 -> break
    od
}
#endif

/* Looks once all the others are done, dead or stopped for good. */
active proctype observer() {
    LOCALS;
    byte me = READERS;
    publishers_done == PUBLISHERS && readers_done == READERS;
    atomic { LOOK };
#ifndef FLAW_READERS_LEAVE_IT_PENDING
    if
    :: seen_pending != 0 -> offer_pending()
    :: else
    fi;
#endif
    MUST(the_newest_version_is_offered_at_rest,
         newest == 0 || lost ||
         (pending_plus_one == 0 && version[offered] == newest &&
          word_a[offered] == word_b[offered] && word_a[offered] == attempt_of[newest]))
}

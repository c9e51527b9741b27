/* Frames stored once (cpp/core/ring/sources.hpp, source_writer.hpp) as processes for spin: writers, whose
 * rows refer to frames in a source ring, observers that retire and read rows, and one who clears.
 * Writers may die, or stop for good and stay alive, before every store. Each `atomic` holds one access to
 * shared memory, plus what its process decides from it alone. Memory is sequentially consistent here;
 * litmus/ is about weaker memory.
 *
 * How a slot is claimed, copied and committed is protocol.pml's matter: here taking a position and
 * claiming its slot are one step, and so are copy and commit, and the look at a row's birth. The look at
 * frames' words before they are copied is left out: it only saves copies. A row refers to two frames: its writer's last one, and one that is new. Each writer begins with a
 * frame that is there already. It has their
 * contents in its own words too, so that another frame in a lost one's place can be told.
 *
 * -DOUTCOMES turns the assertions about the inside off, so that a flaw has to show in what a user sees.
 * Sizes and budgets are macros; each FLAW_... puts in one mistake that must make an assertion fail.
 */

#ifndef N
#define N 1                  /* rows */
#endif
#ifndef M
#define M 3                  /* frames */
#endif
#define AGE ((M - N) / 2)
#ifndef WRITERS
#define WRITERS 2
#endif
#ifndef EXTRA_ROWS
#define EXTRA_ROWS 0         /* rows that only the first writer adds on top */
#endif
#ifndef ROWS
#define ROWS 1               /* each writer */
#endif
#ifndef CLAIMS
#define CLAIMS 2             /* positions a row may claim, and a frame, before its writer gives up */
#endif
#ifndef OBSERVERS
#define OBSERVERS 1
#endif
#ifndef RETIRES
#define RETIRES 0            /* each observer, while others work */
#endif
#ifndef READS
#define READS 0              /* each observer */
#endif
#ifndef CLEARS
#define CLEARS 0
#endif
#ifndef DEATHS
#define DEATHS 0             /* of writers */
#endif
#ifndef STALLS
#define STALLS 0             /* writers that stop for good, and stay alive */
#endif

#ifndef WASTE
#define WASTE 0              /* frames that others write whose rows never come */
#endif

/* What must hold: never written, names for the messages of the assertions. */
hidden byte no_row_has_another_frame;
hidden byte a_row_without_its_frames_is_gone;
hidden byte what_is_not_due_has_its_frames;
hidden byte a_clear_is_never_undone;
hidden byte every_row_at_rest_has_its_frames;

#define MUST(name, holds)    if :: (holds) :: else -> assert(name) fi
#ifdef OUTCOMES
#define INSIDE(name, holds)  skip
#else
#define INSIDE(name, holds)  MUST(name, holds)
#endif
#define MAX(a, b) ((a) > (b) -> (a) : (b))

/* Shared memory. A word is {seq, own}; own 0: committed. Positions start at the capacity. */
byte cursor = N, clear_before = N;
byte word_seq[N], word_own[N];
byte born[N], older[N], newer[N];                 /* a row's references, as positions */
#if READS
byte own_older[N], own_newer[N];                  /* what the two frames must hold */
byte frame[M];
#define HOLD(array, at, content) array[at] = content
#define HOLDS(array, at, content) (array[at] == (content))
#else
#define HOLD(array, at, content) skip
#define HOLDS(array, at, content) true
#endif
byte frame_cursor = M;
byte frame_seq[M], frame_own[M];

bit dead[WRITERS + 1];
byte deaths_left = DEATHS, stalls_left = STALLS;
byte running = WRITERS + (CLEARS > 0) + (WASTE > 0);

#define COMMITTED(slot, seq) (word_seq[slot] == (seq) && word_own[slot] == 0)
#define IS_THERE(q) (frame_seq[(q) % M] == (q) && frame_own[(q) % M] == 0)
#define TAKEN_OVER(own) ((own) == 0 || (own) == me || dead[own])

#define MAY_DIE                                                                                    \
    if                                                                                             \
    :: deaths_left > 0 -> deaths_left--; dead[me] = 1; goto done                                   \
    :: stalls_left > 0 -> stalls_left--; goto done                                                 \
    :: true                                                                                        \
    fi

/* ------------------------------------------------------------------------------- a writer */

/* Writes a frame of this content; its position, or 0 if others hold all slots that were tried. */
inline put(content, position)
{
    tries = 0;
    position = 0;
    do
    :: position == 0 && tries < CLAIMS ->
        atomic {
            MAY_DIE;
            q = frame_cursor; frame_cursor++; tries++;
            if
            :: frame_seq[q % M] < q && TAKEN_OVER(frame_own[q % M]) ->
                frame_seq[q % M] = q; frame_own[q % M] = me; position = q
            :: else
            fi
        }
        if
        :: position != 0 -> atomic { MAY_DIE; HOLD(frame, q % M, content); frame_own[q % M] = 0 }
        :: else
        fi
    :: else -> break
    od;
    atomic { q = 0; tries = 0 }
}

proctype Writer(byte me; byte last)
{
    byte rows, claims, tries, seq, slot, cleared, birth, now, q;
    byte last_content = 16 * me;                  /* of the frame at `last` */
    byte a, b;                                    /* where the frames of this row are */

    do
    :: rows < ROWS + EXTRA_ROWS * (me == 1) ->
        /* prepare: what is remembered is used if it is still there, and not soon too old. */
        rows++;
        atomic { a = (last + AGE >= frame_cursor && IS_THERE(last) -> last : 0) }
        if
        :: a == 0 ->
            put(last_content, a);
            if :: a == 0 -> goto done :: else fi
        :: else
        fi;
#ifndef FLAW_FRAME_AFTER_ROW
        put(last_content + 1, b);
        if :: b == 0 -> goto done :: else fi;
#endif
#ifndef FLAW_BORN_AFTER_CLAIM
        birth = frame_cursor;
#endif
#ifdef FLAW_AGE_SEEN_BEFORE_CLAIM
        now = frame_cursor;
#endif
        claims = 0;
        do
        :: claims < CLAIMS ->
#if CLEARS
            cleared = clear_before;
#endif
            atomic {
                MAY_DIE;
                claims++; seq = cursor; cursor++; slot = seq % N;
                if
                :: seq < cleared -> slot = N
                :: seq >= cleared && word_seq[slot] < seq && TAKEN_OVER(word_own[slot]) ->
                    word_seq[slot] = seq; word_own[slot] = me; break
                :: else
                fi
            }
#if CLEARS
            if
            :: slot == N -> atomic { MAY_DIE; cursor = MAX(cursor, cleared) }
            :: else
            fi
#endif
        :: else -> goto done
        od;
#ifdef FLAW_BORN_AFTER_CLAIM
        birth = frame_cursor;
#endif
#ifdef FLAW_FRAME_AFTER_ROW
        b = frame_cursor;
#endif
#ifndef FLAW_AGE_SEEN_BEFORE_CLAIM
        now = frame_cursor;
#endif
#ifndef FLAW_NOTHING_IS_TOO_OLD
        if
        :: a + AGE < now ->
            put(last_content, a);
            if :: a == 0 -> goto done :: else fi
        :: else
        fi;
#ifndef FLAW_FRAME_AFTER_ROW
        if
        :: b + AGE < now ->
            put(last_content + 1, b);
            if :: b == 0 -> goto done :: else fi
        :: else
        fi;
#endif
#endif
        atomic {
            MAY_DIE;
            born[slot] = birth; older[slot] = a; newer[slot] = b;
            HOLD(own_older, slot, last_content); HOLD(own_newer, slot, last_content + 1);
            word_own[slot] = 0
        }
#ifdef FLAW_FRAME_AFTER_ROW
        put(last_content + 1, b);
        if :: b == 0 -> goto done :: else fi;
#endif
        atomic {
            last = b; last_content++;
            a = 0; b = 0; seq = 0; slot = 0; cleared = 0; birth = 0; now = 0; claims = 0
        }
    :: else -> break
    od;
done:
    running--
}

#if WASTE
proctype Waster()
{
    byte frames;
    do
    :: frames < WASTE ->
        atomic {
            if
            :: frame_seq[frame_cursor % M] < frame_cursor && frame_own[frame_cursor % M] == 0 ->
                frame_seq[frame_cursor % M] = frame_cursor;
                HOLD(frame, frame_cursor % M, 255)
            :: else
            fi;
            frame_cursor++;
            frames++
        }
    :: else -> break
    od;
    running--
}
#endif

/* -------------------------------------------------------------------------- who clears */

#if CLEARS
proctype Clearer()
{
    byte next, calls;
    do
    :: calls < CLEARS ->
        calls++;
        next = cursor;
        atomic { next = MAX(next, clear_before); next = (next + N - 1) / N * N }
        atomic { clear_before = MAX(clear_before, next); next = 0 }
    :: else -> break
    od;
    running--
}
#endif

/* ------------------------------------------------------------------------- an observer */

inline look_at_bounds()
{
#if CLEARS || OBSERVERS > 1
    position = cursor;
    cleared = clear_before;
    if :: position < cleared -> position = MAX(cleared, cursor) :: else fi
#else
    atomic { position = cursor; cleared = clear_before }
#endif
}

/* Raises clear_before to `value` if nobody has raised it since `cleared` was seen: `ok`. */
inline raise_clear(value)
{
    atomic {
#ifdef FLAW_RETIRE_WITHOUT_COMPARING
        ok = 1;
#else
        ok = (clear_before == cleared);
#endif
        if
        :: ok -> MUST(a_clear_is_never_undone, value >= clear_before); clear_before = value
        :: else
        fi
    }
}

inline retire()
{
    ok = 0;
    do
    :: !ok ->
        now = frame_cursor;
        look_at_bounds();
        atomic {
            first = MAX(cleared, position - N);
            seq = first; end = 0
        }
        do
        :: seq < position ->
            atomic {
                there = COMMITTED(seq % N, seq);
                birth = born[seq % N];
                if
#ifdef FLAW_RETIRE_STOPS_AT_A_HOLE
                :: !there -> break
#else
                :: !there -> seq++
#endif
                :: there && birth + (M - AGE) < now -> seq++; end = seq
                :: else -> break
                fi;
                birth = 0
            }
        :: else -> break
        od;
        if
        :: end != 0 -> raise_clear(end)
        :: else -> ok = 1
        fi
    :: else -> break
    od;
    atomic {
        slot = 0;
        do
        :: slot < N ->
            INSIDE(what_is_not_due_has_its_frames,
                   word_own[slot] != 0 || word_seq[slot] < seq || word_seq[slot] >= position
                   || (older[slot] + M >= now && newer[slot] + M >= now));
            slot++
        :: else -> break
        od;
        slot = 0; seq = 0; end = 0; first = 0; now = 0; position = 0; cleared = 0; ok = 0; there = 0
    }
}

/* By whoever missed a frame of the row in `chosen`. */
inline expel()
{
    retire();
#ifndef FLAW_OLDER_LAP_STAYS
    look_at_bounds();
    atomic {
        seq = word_seq[chosen];
        there = (word_own[chosen] == 0 && seq >= cleared && seq + N < position)
    }
    if :: there -> raise_clear(seq + 1) :: else -> ok = 1 fi;
    /* Where somebody else raised it, the row is missed once more. */
#else
    ok = 1;
#endif
    atomic { seq = 0; there = 0; cleared = 0; position = 0 }
}

proctype Observer()
{
    byte retires, reads, chosen, row, position, cleared, first, seq, end, birth, now, slot;
    byte q_older, q_newer, content_older, content_newer, want_older, want_newer;
    bit ok, there, whole;

    do
#if RETIRES
    :: retires < RETIRES -> retires++; retire()
#endif
#if READS
    :: reads < READS ->
        reads++;
        cleared = clear_before;
        if
        :: chosen = 0
#if N > 1
        :: chosen = 1
#endif
        fi;
        atomic {
            row = word_seq[chosen];
            there = (word_own[chosen] == 0 && row >= cleared && row != 0);
            cleared = 0
        }
        if
        :: there ->
            atomic { q_older = older[chosen]; q_newer = newer[chosen] }
            atomic { want_older = own_older[chosen]; want_newer = own_newer[chosen] }
            content_older = frame[q_older % M];
            content_newer = frame[q_newer % M];
#ifdef FLAW_FRAME_WITHOUT_SECOND_LOOK
            whole = 1;
#else
            whole = IS_THERE(q_older);
            whole = (whole && IS_THERE(q_newer));
#endif
            if
            :: whole ->
                atomic {
#ifndef FLAW_ROW_WITHOUT_SECOND_LOOK
                    there = COMMITTED(chosen, row);
#endif
                    MUST(no_row_has_another_frame,
                         !there || (content_older == want_older && content_newer == want_newer))
                }
            :: else ->
                expel();
                atomic {
                    MUST(a_row_without_its_frames_is_gone,
                         !ok || !COMMITTED(chosen, row) || row < clear_before)
                }
            fi
        :: else
        fi;
        atomic {
            chosen = 0; row = 0; q_older = 0; q_newer = 0; content_older = 0; content_newer = 0;
            want_older = 0; want_newer = 0; ok = 0; there = 0; whole = 0
        }
#endif
    :: running == 0 -> break
    od;

    retire();
    atomic {
        do
        :: slot < N ->
            MUST(every_row_at_rest_has_its_frames,
                 word_own[slot] != 0 || word_seq[slot] < clear_before
                 || word_seq[slot] + N < cursor
                 || (IS_THERE(older[slot]) && IS_THERE(newer[slot])
                     && HOLDS(frame, older[slot] % M, own_older[slot])
                     && HOLDS(frame, newer[slot] % M, own_newer[slot])));
            slot++
        :: else -> break
        od
    }
}

init {
    atomic {
        byte number = 1;
        do
        :: number <= WRITERS ->
            frame_seq[frame_cursor % M] = frame_cursor;
            HOLD(frame, frame_cursor % M, 16 * number);
            run Writer(number, frame_cursor);
            frame_cursor++;
            number++
        :: else -> break
        od;
        number = 0;
        do
        :: number < OBSERVERS -> run Observer(); number++
        :: else -> break
        od;
        number = 0;
#if CLEARS
        run Clearer();
#endif
#if WASTE
        run Waster();
#endif
    }
}

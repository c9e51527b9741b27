// What help() shows of the methods that Python classes inherit from the core. The lines up to "--"
// are their signature for inspect; "$self" suits only methods that pybind11 has not bound.
#pragma once

namespace mpbuffer::bindings::docstrings {

inline constexpr char uniform_type[] = "The core of mpbuffer.ReplayBuffer.";
inline constexpr char prioritized_type[] = "The core of mpbuffer.PrioritizedReplayBuffer.";

inline constexpr char uniform_add[] = R"(add($self, /, **fields)
--

Add one transition, or a batch of n.

Any process may call it. It waits for nobody; only if other living processes
are writing every slot of the buffer at once, for at most 1 s.

Parameters
----------
**fields : array_like
    One value for each field of the buffer: of the field's shape for one
    transition, or of shape ``(n,) + shape`` in every field for n of them.
    A field of one element also takes a scalar, or shape ``(n,)``. Arrays,
    lists, scalars, CPU tensors and whatever has ``__array__`` or
    ``__dlpack__`` are converted to the field's dtype. Numbers may be
    rounded to its precision; what it cannot represent is an error.

Returns
-------
int
    The slot of the first row. The others follow it around the ring, unless
    rows of other processes came between. With ``Nstep=``, of the first row
    that this call wrote; None if it wrote none. A batch is consecutive steps.

Raises
------
KeyError
    If a field is missing.
ValueError
    If a shape is wrong, the fields have different numbers of rows, or the
    field's dtype cannot represent a value: 300 or NaN in uint8, 1.5 in int64,
    1e300 in float32, a text that is too long.
TypeError
    If a value cannot be converted; with ``strict=True``, if a field is given
    that the buffer does not have (else a warning, once per name).
IndexError
    If the batch is longer than the buffer.
SlotsHeld
    If living processes held every slot for 1 s; tells how many rows were
    added. Ctrl-C ends that wait, and what was added stays. After any other
    error nothing has changed. With ``Nstep=`` the steps are taken all the
    same, and the next call writes the rows that this one could not.
OSError
    If another process's claim is met and this program has closed the
    descriptor through which the buffer asks whether that process lives.
BufferClosed
    After close().
)";

inline constexpr char prioritized_add[] = R"(add($self, /, *, priorities=None, **fields)
--

Add one transition, or a batch of n, with its priorities.

Any process may call it. It waits for nobody; only if other living processes
are writing every slot of the buffer at once, for at most 1 s.

Parameters
----------
priorities : array_like, optional
    A scalar for all rows or shape (n,), at least 0. The leaf
    ``(priority + eps) ** alpha`` is what rows are drawn by (Schaul et al.,
    "Prioritized experience replay", 2016, eq. 1). A row of leaf 0 (priority
    0, eps 0, alpha above 0) is stored and counted and never drawn; a smaller
    leaf than 1.2e-38 becomes 1.2e-38. Default: the largest priority supplied
    since creation or clear(), 1.0 at first.
**fields : array_like
    As for ReplayBuffer.add.

Returns
-------
int
    The slot of the first row.

Raises
------
ValueError
    If a priority is NaN, infinite, negative or too large for a float32 leaf,
    or their number is not 1 or n; and as for ReplayBuffer.add.
KeyError, TypeError, IndexError, SlotsHeld, OSError, BufferClosed
    As for ReplayBuffer.add.
)";

inline constexpr char name[] =
    "The name that ``mpbuffer.attach`` takes: the argument, or a fresh one.";

inline constexpr char close[] = R"(close(self, /)
--

Close this handle; remove the segment if it was the last one. Twice is once.

Waits for calls of other threads through this handle, not for other processes.
)";

inline constexpr char clear[] = R"(clear(self, /)
--

Remove all rows; the next one goes to slot 0. Any process may call it.

Rows that others are adding at that moment may come before or after. The
largest priority is 1.0 again.
)";

inline constexpr char get_stored_size[] = R"(get_stored_size(self, /)
--

Return how many complete rows are there.

Exact when nobody is adding. Takes no time that depends on the size, except
once after a clear() or after a process died inside a call: then it counts.
)";

inline constexpr char get_buffer_size[] =
    "get_buffer_size(self, /)\n--\n\nReturn how many rows fit.";

inline constexpr char get_next_index[] =
    "get_next_index(self, /)\n--\n\nReturn the slot that the next row will go to.";

inline constexpr char get_all_transitions[] = R"(get_all_transitions(self, /, shuffle=False)
--

Return a copy of all complete rows.

Any process may call it. It takes O(size). A row that is overwritten meanwhile
comes out as the old row, as the new one, or not at all, never mixed.

Parameters
----------
shuffle : bool, optional
    Whether the rows come in random order; else by slot.

Returns
-------
dict of str to numpy.ndarray
    For each field an array of shape ``(rows,) + shape``.
)";

inline constexpr char encode_sample[] =
    "_encode_sample(self, /, indexes)\n--\n\n"
    "Return the rows in these slots; IndexError if one holds no complete row.";

inline constexpr char rows_added[] =
    "rows_added(self, /)\n--\n\n"
    "Return how many rows all processes have added since creation, ended ones included.";

inline constexpr char on_episode_end[] = R"(on_episode_end(self, /)
--

End the episode: get_current_episode_len() starts again.

With ``Nstep=``, writes the rows of add()'s last steps, each with as many steps
as there are. After a step whose flag ended the episode, none are left. Raises
what add() does; then the rows are kept, and the next call writes them.
)";

inline constexpr char get_current_episode_len[] =
    "get_current_episode_len(self, /)\n--\n\n"
    "Return the steps added through this handle since on_episode_end() or clear().";

inline constexpr char is_nstep[] =
    "is_Nstep(self, /)\n--\n\nReturn whether the buffer was made with ``Nstep=``.";

inline constexpr char get_max_priority[] =
    "get_max_priority(self, /)\n--\n\n"
    "Return the largest priority supplied since creation or clear(), at least 1.0.";

inline constexpr char get_generations[] = R"(get_generations(self, /, indexes)
--

Return which rows the indexes mean, to be passed to update_priorities() later.

For the learner, as sample().

Parameters
----------
indexes : array_like of int
    (n,) slots.

Returns
-------
numpy.ndarray
    uint64 (n,). If `indexes` shares a sample's memory: the rows sampled. Else
    the rows that this handle last sampled in these slots; where it never
    sampled any, the row that the last sample() saw there, or that this handle
    has added since. 0 for a slot without a row.

Raises
------
LearnerBusy
    If another handle has the learner's role.
)";

inline constexpr char acquire_learner[] = R"(acquire_learner(self, /)
--

Take the learner's role now, instead of at the first sample().

A stray sample() in another process then fails there, and not in the learner.
Takes some 15 ns for each row there is, as the first sample() would.

Raises
------
LearnerBusy
    If another handle has the role; names it, at once.
BufferClosed
    After close().
)";

inline constexpr char release_learner[] = R"(release_learner(self, /)
--

Give up the learner's role, if this handle has it; another process can take it.

Batches gathered ahead are discarded. Only a call takes the role again.
)";

inline constexpr char leaves[] =
    "_leaves(self, /)\n--\n\n"
    "Return a copy of the leaves: float32 (size,), 0 where there is nothing to draw.";

inline constexpr char tree_total[] =
    "_tree_total(self, /)\n--\n\nReturn the sum at the root of the learner's tree.";

inline constexpr char staging_type[] = "The hot call of mpbuffer.Staging.";

inline constexpr char staging_add[] =
    R"(add($self, /, *, envs=None, priorities=None, q=None, v=None, next_v=None, **fields)
--

Take one step of each environment, or of some, or of one a batch of steps.

Writes the finished rows to the buffer if there are `flush_every` of them, or
if a step has ended its episode. Waits for nobody, but as ``buffer.add``.

Parameters
----------
envs : array_like of int, optional
    (n,): the environment that each row comes from, as ``envs`` of the rows
    that ``VectorTransitions.step()`` returns. Rows of one environment are
    consecutive steps of it. Default: with n_envs=1 all rows are steps of the
    one; else there must be n_envs rows, one for each in turn.
priorities : array_like, optional
    A scalar or shape (n,): for the rows that begin with these steps. As for
    PrioritizedReplayBuffer.add.
q, v : array_like, optional
    A scalar or shape (n,), finite: the value of the action taken, and that of
    the state it was taken in, such as the largest of its actions. Needed with
    ``priorities="td"``, and only then.
next_v : array_like, optional
    The value of the state that each step led to; NaN where it is not known.
    Of interest where an episode was cut off.
**fields : array_like
    As for ``buffer.add``: n rows, in every field but the discount. There may
    be no rows at all.

Returns
-------
int
    How many rows were written to the buffer.

Raises
------
KeyError, ValueError, TypeError
    As for ``buffer.add``, and of `envs`, `q`, `v`, `next_v` likewise. No step
    was taken then.
IndexError
    If there is no environment of a number in `envs`; no step was taken.
SlotsHeld, OSError
    As for ``buffer.add``. The steps are taken; the rows that could not be
    written stay staged. So after an exception of `priorities`.
BufferClosed
    After close() of this, or of the buffer's handle; no step was taken.
)";

inline constexpr char uniform_sample[] =
    "sample($self, /, batch_size, *, return_indexes=False, out=None)\n--\n\n"
    "Draw rows uniformly, with replacement.\n\n"
    "Any process may call it; it never waits. Takes O(batch_size). Large batches are copied by\n"
    "several threads, and their memory is reused, as by PrioritizedReplayBuffer.sample.\n\n"
    "Parameters\n----------\n"
    "batch_size : int\n    At least 1.\n"
    "return_indexes : bool, optional\n    Whether to add ``\"indexes\"``.\n"
    "out : dict of str to numpy.ndarray, optional\n"
    "    An earlier batch of this size, or arrays like its, that share no memory: written to, and\n"
    "    returned. ``out[\"indexes\"]``, if there, is written to whether asked for or not;\n"
    "    ``out[\"weights\"]`` is removed, as it would be of other rows.\n\n"
    "Returns\n-------\n"
    "dict of str to numpy.ndarray\n"
    "    `out`, or a fresh array of shape ``(batch_size,) + shape`` for each field, in its dtype;\n"
    "    ``\"indexes\"``: int64 (batch_size,), the slots drawn, on request.\n\n"
    "Raises\n------\n"
    "EmptyBuffer\n    If no complete row is there.\n"
    "ValueError\n    If batch_size is below 1, or an array of `out` is not a writable C-contiguous "
    "one\n"
    "    of the shape and dtype wanted, or shares memory with another.\n"
    "KeyError, TypeError\n    If one is missing, or no array. After these errors `out` is "
    "unchanged.\n"
    "BufferClosed\n    After close().\n";

inline constexpr char sample_uniform[] =
    "sample_uniform($self, /, batch_size, *, return_indexes=False, out=None)\n--\n\n"
    "Draw rows uniformly, with replacement, whatever their priorities.\n\n"
    "Any process may call it, the learner or not; it never waits. Takes O(batch_size).\n\n"
    "Parameters\n----------\n"
    "batch_size : int\n    At least 1.\n"
    "return_indexes : bool, optional\n    Whether to add ``\"indexes\"``.\n"
    "out : dict of str to numpy.ndarray, optional\n    As ReplayBuffer.sample.\n\n"
    "Returns\n-------\n"
    "dict of str to numpy.ndarray\n"
    "    As ReplayBuffer.sample: no ``\"weights\"``.\n\n"
    "Raises\n------\n"
    "EmptyBuffer, ValueError, KeyError, TypeError, BufferClosed\n    As ReplayBuffer.sample.\n";

inline constexpr char prioritized_sample[] = R"(sample($self, /, batch_size, beta=0.4, *, out=None)
--

Draw rows in proportion to their leaves, stratified, with importance weights.

For the learner: the first call takes the learner's role, which this handle
keeps until close(), release_learner() or its process's end. It never waits.
Takes O(batch_size), plus some ns for each row added since the last call. A
batch of 4 MB and more is copied by up to four threads. Memory of arrays of
64 KiB and more is kept for later samples once nothing references it, as much
as one sample takes.

Parameters
----------
batch_size : int
    At least 1. The total of all leaves is cut into so many equal parts, and
    one row is drawn from each (Schaul et al., 2016, section 3.3).
beta : float, optional
    Exponent of the importance weights, at least 0.
out : dict of str to numpy.ndarray, optional
    An earlier batch of this size, or arrays like its, that share no memory:
    written to, and returned. ``out["indexes"]`` knows which rows it means, as
    below, if it came from this buffer.

Returns
-------
dict of str to numpy.ndarray
    `out`, or a fresh array of shape ``(batch_size,) + shape`` for each field, in its
    dtype; ``"weights"``: float32 (batch_size,), ``(N * P(i)) ** -beta``
    divided by the largest weight in the whole buffer (section 3.4);
    ``"indexes"``: int64 (batch_size,), the slots drawn, ascending unless a
    row was overwritten meanwhile. Pass them, or any view of them, to
    update_priorities().

Raises
------
EmptyBuffer
    If no complete row is there, or none whose leaf is above 0.
LearnerBusy
    If another handle has the learner's role; names it.
ValueError
    If batch_size is below 1, beta negative or not finite, or an array of
    `out` not a writable C-contiguous one of the shape and dtype wanted, or it
    shares memory with another.
KeyError, TypeError
    If an array of `out` is missing or no array. After these errors `out` is
    unchanged.
BufferClosed
    After close().
)";

inline constexpr char update_priorities[] =
    R"(update_priorities($self, /, indexes, priorities, generations=None)
--

Set the priorities of rows that were sampled.

For the learner, as sample(). A row that was overwritten since it was sampled
is never given the old row's priority: its update is stale and has no effect.
That is exact, however many batches are in flight, for an array that sample()
returned as ``"indexes"``, and for any slice, view or tensor of its memory.
A copy of it (a converted dtype, a fancy index, a trip to the GPU) does not
carry the generations: then each index means the row that this handle last
sampled in that slot. Where it never sampled any, the index means the row that
this handle has added there since the last sample(), such as the index that
add() returned, or else the row that the last sample() saw there.
For exact updates through copies pass `generations`.

Any other row added since the last sample() keeps the priority it came with.
A handle knows its own rows unless those of other processes cut them into more
than 1,024 stretches between two samples; the rows beyond are as any other.
It never waits. Takes O(n).

Parameters
----------
indexes : array_like of int
    (n,) slots in [0, size), of any integer dtype. If one comes twice, the
    last counts.
priorities : array_like
    A scalar for all, or n values, at least 0.
generations : array_like of int, optional
    (n,) what get_generations() said of these indexes; 0 where not known.

Returns
-------
int
    How many updates were stale.

Raises
------
TypeError
    If one of the two is None, or the indexes are no integers.
IndexError
    If an index is not in [0, size).
ValueError
    If the lengths differ, or a priority is NaN, infinite, negative or too
    large for a float32 leaf. After an error nothing has changed.
LearnerBusy
    If another handle has the learner's role; names it.
BufferClosed
    After close().
)";

}  // namespace mpbuffer::bindings::docstrings

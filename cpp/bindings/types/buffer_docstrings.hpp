// What help() shows of buffers. The lines up to "--" are a method's signature for
// inspect; "$self" suits only the hot calls, which pybind11 has not bound.
#pragma once

namespace mpbuffer::bindings::docstrings {

inline constexpr char uniform_type[] = "The core of mpbuffer.ReplayBuffer.";

inline constexpr char prioritized_type[] = "The core of mpbuffer.PrioritizedReplayBuffer.";

inline constexpr char uniform_add[] = R"(add($self, /, **fields)
--

Add one transition, or a batch of n.

Any process may call it. It does not block, unless other living processes
are writing every slot of the buffer: then for at most 1 s.

Parameters
----------
**fields : array_like
    One value for each field of the buffer: of the field's shape for one
    transition, or of shape ``(n,) + shape`` in every field for n of them.
    A field of one element also takes a scalar, or shape ``(n,)``. Arrays,
    lists, scalars, CPU tensors and objects with ``__array__`` or
    ``__dlpack__`` are converted to the field's dtype. Numbers may be
    rounded to its precision. A value that it cannot represent is an error.

Returns
-------
int
    The slot of the first row. The other rows follow around the ring, unless
    other processes added rows in between. With ``Nstep=`` a batch is
    consecutive steps; returns the slot of the first row that this call wrote,
    or None if it wrote none.

Raises
------
KeyError
    If a field is missing.
ValueError
    If a shape is wrong, the fields have different numbers of rows, or the
    field's dtype cannot represent a value: 300 or NaN in uint8, 1.5 in int64,
    1e300 in float32, a text that is too long.
TypeError
    If a value cannot be converted. With ``strict=True``, if the buffer does
    not have a field that is given; else that is a warning, once per name.
IndexError
    If the batch is longer than the buffer.
SlotsHeld
    If living processes held every slot for 1 s; the message has the number
    of rows added. Ctrl-C ends the wait, and rows that were added stay. After
    any other error nothing has changed. With ``Nstep=`` the steps are taken
    all the same, and the next call writes the rows that this one could not.
OSError
    If another process is writing a slot, and this program has closed the
    descriptor by which the buffer finds out whether that process lives.
BufferClosed
    After close().
)";

inline constexpr char prioritized_add[] = R"(add($self, /, *, priorities=None, **fields)
--

Add one transition, or a batch of n, with its priorities.

Any process may call it. It does not block, unless other living processes
are writing every slot of the buffer: then for at most 1 s.

Parameters
----------
priorities : array_like, optional
    A scalar for all rows or shape (n,), at least 0. Rows are drawn in
    proportion to their leaf ``(priority + eps) ** alpha`` (Schaul et al.,
    "Prioritized experience replay", 2016, eq. 1). A row of leaf 0 (priority
    0, eps 0, alpha above 0) is stored and counted but never drawn. A leaf
    between 0 and 1.2e-38 becomes 1.2e-38. Default: the largest priority
    supplied since creation or clear(), 1.0 at first.
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

inline constexpr char uniform_sample[] =
    "sample($self, /, batch_size, *, return_indexes=False, out=None)\n--\n\n"
    "Draw rows uniformly, with replacement.\n\n"
    "Any process may call it. It never blocks. Takes O(batch_size). Several threads copy large\n"
    "batches, and memory is reused, as in PrioritizedReplayBuffer.sample.\n\n"
    "Parameters\n----------\n"
    "batch_size : int\n    At least 1.\n"
    "return_indexes : bool, optional\n    Whether to add ``\"indexes\"``.\n"
    "out : dict of str to numpy.ndarray, optional\n"
    "    An earlier batch of this size, or arrays like its that share no memory. It is written to\n"
    "    and returned. ``out[\"indexes\"]``, if there, is always written to; ``out[\"weights\"]``\n"
    "    is removed, because it belongs to other rows.\n\n"
    "Returns\n-------\n"
    "dict of str to numpy.ndarray\n"
    "    `out`, or a fresh array of shape ``(batch_size,) + shape`` for each field, in its dtype;\n"
    "    ``\"indexes\"``: int64 (batch_size,), the slots drawn, on request.\n\n"
    "Raises\n------\n"
    "EmptyBuffer\n    If there is no complete row.\n"
    "ValueError\n    If batch_size is below 1, or an array of `out` is not a writable C-contiguous "
    "one\n"
    "    of the shape and dtype wanted, or shares memory with another.\n"
    "KeyError, TypeError\n    If one is missing, or no array. After these errors `out` is "
    "unchanged.\n"
    "BufferClosed\n    After close().\n";

inline constexpr char sample_uniform[] =
    "sample_uniform($self, /, batch_size, *, return_indexes=False, out=None)\n--\n\n"
    "Draw rows uniformly, with replacement, regardless of priorities.\n\n"
    "Any process may call it, the learner or not. It never blocks. Takes O(batch_size).\n\n"
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
keeps until close(), release_learner() or the end of its process. It never
blocks. Takes O(batch_size), plus some ns for each row added since the last
call. Up to four threads copy a batch of 4 MB and more. Memory of arrays of
64 KiB and more is reused for later samples once nothing references it; as
much is kept as one sample takes.

Parameters
----------
batch_size : int
    At least 1. The total of all leaves is cut into `batch_size` equal parts,
    and one row is drawn from each (Schaul et al., 2016, section 3.3).
beta : float, optional
    Exponent of the importance weights, at least 0.
out : dict of str to numpy.ndarray, optional
    An earlier batch of this size, or arrays like its that share no memory. It
    is written to and returned. If ``out["indexes"]`` came from this buffer,
    it carries generations, as below.

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
    If there is no complete row, or none with a leaf above 0.
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

For the learner, as sample(). If a row was overwritten after it was sampled,
its update is stale and has no effect: the new row never gets the old row's
priority. That is exact, however many batches are in flight, for an array that
sample() returned as ``"indexes"``, and for any slice, view or tensor of its
memory. A copy (a converted dtype, a fancy index, a trip to the GPU) does not
carry generations: there, each index means the row that this handle last
sampled in that slot. If it never sampled one, the index means the row that
this handle added there since the last sample(), for instance at the index
that add() returned; else the row that the last sample() saw there. For exact
updates through copies pass `generations`.

Any other row added since the last sample() keeps its priority. If rows of
other processes cut this handle's own rows into more than 1,024 stretches
between two samples, its later rows count as rows of others. It never blocks.
Takes O(n).

Parameters
----------
indexes : array_like of int
    (n,) slots in [0, size), of any integer dtype. If one comes twice, the
    last counts.
priorities : array_like
    A scalar for all, or n values, at least 0.
generations : array_like of int, optional
    (n,) what get_generations() returned for these indexes; 0 if not known.

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

// What help() shows of the hot calls. The lines up to "--" are their signature for inspect.
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
    transition, or of shape ``(n,) + shape`` for n of them. A field of one
    element also takes shape ``(n,)``, or a scalar, which counts for all n
    rows of the other fields. Arrays,
    lists, scalars, CPU tensors and objects with ``__array__`` or
    ``__dlpack__`` are converted to the field's dtype. Numbers may be
    rounded to its precision. A value that it cannot represent is an error.

Returns
-------
int
    The slot of the first row. The other rows follow around the ring, unless
    other processes added rows in between. With ``Nstep=`` or ``sequence=`` a
    batch is consecutive steps; returns the slot of the first row that this
    call wrote, or None if it wrote none.

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
    any other error nothing has changed. With ``Nstep=`` or ``sequence=`` the
    steps are taken all the same, and the next call writes the rows that this
    one could not.
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
    supplied since creation or clear(), 1.0 at first. Not with ``sequence=``.
**fields : array_like
    As for ReplayBuffer.add. With ``sequence=`` also `td`: a scalar or shape
    (n,), finite or NaN, the temporal-difference errors of the steps as they
    were known when acting. A sequence's priority is computed from those of its
    steps behind the burn-in (see ``mpbuffer.sequence_priorities``; eta is
    0.9); if one of them is not given or NaN, it is the largest so far.

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

inline constexpr char uniform_sample[] =
    "sample($self, /, batch_size, *, return_indexes=False, out=None, time_major=False)\n--\n\n"
    "Draw rows uniformly, with replacement.\n\n"
    "Any process may call it. It never blocks. Takes O(batch_size). Several threads copy large\n"
    "batches, and memory is reused, as in PrioritizedReplayBuffer.sample.\n\n"
    "Parameters\n----------\n"
    "batch_size : int\n    At least 1.\n"
    "return_indexes : bool, optional\n    Whether to add ``\"indexes\"``.\n"
    "out : dict of str to numpy.ndarray, optional\n"
    "    An earlier batch of this size, or arrays like its that share no memory. It is written to\n"
    "    and returned. ``out[\"indexes\"]``, if there, is always written to; ``out[\"weights\"]``\n"
    "    is removed, because it belongs to other rows.\n"
    "time_major : bool, optional\n"
    "    Of sequences: whether the steps are on the first axis, ``(T, batch_size) + shape``.\n\n"
    "Returns\n-------\n"
    "dict of str to numpy.ndarray\n"
    "    `out`, or a fresh array of shape ``(batch_size,) + shape`` for each field, in its dtype;\n"
    "    ``\"indexes\"``: int64 (batch_size,), the slots drawn, on request. Of sequences:\n"
    "    ``(batch_size, T) + shape``, ``\"mask\"`` and ``\"is_first\"``, as ``sequence=`` says.\n\n"
    "Raises\n------\n"
    "EmptyBuffer\n    If there is no complete row.\n"
    "ValueError\n    If batch_size is below 1, or an array of `out` is not a writable C-contiguous "
    "one\n"
    "    of the shape and dtype wanted, or shares memory with another; if the steps are to be on\n"
    "    the first axis and rows are no sequences, or `out` is given for whole episodes.\n"
    "KeyError, TypeError\n    If one is missing, or no array. After these errors `out` is "
    "unchanged.\n"
    "BufferClosed\n    After close().\n";

inline constexpr char sample_uniform[] =
    "sample_uniform($self, /, batch_size, *, return_indexes=False, out=None, "
    "time_major=False)\n--\n\n"
    "Draw rows uniformly, with replacement, regardless of priorities.\n\n"
    "Any process may call it, the learner or not. It never blocks. Takes O(batch_size).\n\n"
    "Parameters\n----------\n"
    "batch_size : int\n    At least 1.\n"
    "return_indexes : bool, optional\n    Whether to add ``\"indexes\"``.\n"
    "out, time_major : optional\n    As ReplayBuffer.sample.\n\n"
    "Returns\n-------\n"
    "dict of str to numpy.ndarray\n"
    "    As ReplayBuffer.sample: no ``\"weights\"``.\n\n"
    "Raises\n------\n"
    "EmptyBuffer, ValueError, KeyError, TypeError, BufferClosed\n    As ReplayBuffer.sample.\n";

inline constexpr char prioritized_sample[] =
    R"(sample($self, /, batch_size, beta=0.4, *, weight_norm='buffer', return_probabilities=False, out=None, time_major=False)
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
weight_norm : {"buffer", "batch", None}, optional
    What the weights are divided by: the largest one of all rows that can be
    drawn (Schaul et al., 2016, section 3.4), the largest one of this batch,
    or 1. With ``"buffer"`` a row's weight depends on no other row drawn, but
    one row that is hardly ever drawn makes all others small.
return_probabilities : bool, optional
    Whether to add ``"probabilities"``.
out : dict of str to numpy.ndarray, optional
    An earlier batch of this size, or arrays like its that share no memory. It
    is written to and returned. If ``out["indexes"]`` came from this buffer,
    it carries generations, as below.
time_major : bool, optional
    As ReplayBuffer.sample.

Returns
-------
dict of str to numpy.ndarray
    `out`, or a fresh array of shape ``(batch_size,) + shape`` for each field, in its
    dtype; ``"weights"``: float32 (batch_size,), ``(N * P(i)) ** -beta``
    divided as `weight_norm` says, where N is the number of rows that can be
    drawn and P(i) a row's leaf over the sum of all leaves (equations 1 and
    2); at most the largest float32; ``"probabilities"``, on request: float32
    (batch_size,), P(i) of each draw;
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
    shares memory with another, or weight_norm is none of the above, or
    probabilities are wanted and a field has that name; and as
    ReplayBuffer.sample.
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

inline constexpr char step_writer_type[] = "The core of mpbuffer.StepWriter.";

inline constexpr char step_writer_add[] =
    R"(add($self, /, *, envs=None, priorities=None, q=None, v=None, next_v=None, **fields)
--

Take one step of each environment, or of some, or of one a batch of steps.

Writes the finished rows to the buffer if there are `flush_every` of them, or
if a step ends its episode. Blocks no longer than ``buffer.add``.

Parameters
----------
envs : array_like of int, optional
    (n,): the environment that each row comes from, as ``envs`` of the rows
    that ``VectorTransitions.step()`` returns. Rows of one environment are its
    consecutive steps. Default: with n_envs=1 all rows are steps of that one;
    else there must be n_envs rows, one for each environment in turn.
priorities : array_like, optional
    A scalar or shape (n,), for the rows that begin with these steps; as for
    PrioritizedReplayBuffer.add.
q, v : array_like, optional
    A scalar or shape (n,), finite: the value of the action taken, and the
    value of the state it was taken in, such as the largest of its actions'
    values. Required with ``priorities="td"``, and only allowed then.
next_v : array_like, optional
    The value of the state that each step led to; NaN where it is not known.
    Used where an episode was cut off.
**fields : array_like
    As for ``buffer.add``: n rows in every field except the discount, and
    `td` of sequences. n may be 0.

Returns
-------
int
    How many rows were written to the buffer.

Raises
------
KeyError, ValueError, TypeError
    As for ``buffer.add``; likewise for `envs`, `q`, `v` and `next_v`. Then no
    step was taken.
IndexError
    If `envs` has a number that is no environment's; no step was taken.
SlotsHeld, OSError
    As for ``buffer.add``. The steps are taken, and rows that could not be
    written stay staged. So do they after an exception of `priorities`.
BufferClosed
    After close() of this, or of the buffer's handle; no step was taken.
)";

}  // namespace mpbuffer::bindings::docstrings

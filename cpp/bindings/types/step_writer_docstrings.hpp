// What help() shows of step writers. The lines up to "--" are a method's signature for
// inspect; "$self" suits only the hot calls, which pybind11 has not bound.
#pragma once

namespace mpbuffer::bindings::docstrings {

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
    As for ``buffer.add``: n rows in every field except the discount. n may be
    0.

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

inline constexpr char end_episodes[] = R"(on_episode_end(self, /, envs=None)
--

End episodes that no flag has ended, as if truncated, and write finished rows.

Steps whose rows were waiting for more get a row each, of as many steps as
there are. Where a flag has ended the episode, nothing changes.

Parameters
----------
envs : array_like of int, optional
    Which environments: what ``VectorTransitions.reset()`` returns. All if not
    given.

Returns
-------
int
    How many rows were written.

Raises
------
TypeError, IndexError
    If `envs` are no numbers of environments. Nothing has changed then.
SlotsHeld, OSError, BufferClosed
    As ``buffer.add``; rows that were not written stay staged. So do they after
    an exception of `priorities`.
)";

inline constexpr char flush[] =
    "flush(self, /)\n--\n\n"
    "Write all finished rows to the buffer; return how many. Raises as on_episode_end().";

inline constexpr char close_writer[] = R"(close(self, /)
--

End all episodes, as on_episode_end() does, write all rows, and take no more.

Twice is once. If it raises, as on_episode_end() does, it is closed all the
same, and what was not written is lost.
)";

}  // namespace mpbuffer::bindings::docstrings

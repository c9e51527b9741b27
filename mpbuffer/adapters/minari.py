"""Minari's datasets as rows, and rows as a dataset, with their episodes. Needs minari."""

from __future__ import annotations

from typing import Any

import minari
import numpy as np
import numpy.typing as npt
from minari.data_collector.episode_buffer import EpisodeBuffer

import mpbuffer

__all__ = ["add_dataset", "create_dataset", "fields_of"]

_STEP = ("rew", "terminated", "truncated")


def fields_of(dataset: Any) -> dict[str, dict[str, Any]]:
    """Return an ``env_dict`` for the transitions of a dataset, and their episodes.

    Parameters
    ----------
    dataset : minari.MinariDataset

    Returns
    -------
    dict of str to dict
        The fields of ``mpbuffer.schema_from`` for the dataset's spaces, and ``"episode"``: int64.

    Raises
    ------
    TypeError, ValueError
        If a space has no fixed size, as Text and Graph.
    """
    fields: dict[str, dict[str, Any]] = mpbuffer.schema_from(
        dataset.observation_space, dataset.action_space
    )
    return fields | {"episode": {"dtype": np.int64}}


def add_dataset(buffer: Any, dataset: Any, *, priorities: Any = None) -> int:
    """Add all transitions of a dataset, one episode after another.

    Each step becomes a row, in order. After an episode, ``buffer.on_episode_end()`` is called, so
    that n-step rows end with their episode. If a dataset has more steps than the buffer has room,
    its last ones stay.

    Parameters
    ----------
    buffer : ReplayBuffer or PrioritizedReplayBuffer
        Its fields are among those of fields_of(); ``"episode"`` gets Minari's number.
    dataset : minari.MinariDataset
    priorities : float, optional
        Of all rows; for a prioritized buffer. Default: the largest one so far.

    Returns
    -------
    int
        How many steps were added.

    Raises
    ------
    KeyError, TypeError, ValueError
        As ``buffer.add``.
    """
    wanted = {name for name, _, _ in buffer._fields()}
    given = {} if priorities is None else {"priorities": priorities}
    most = buffer.get_buffer_size()
    steps = 0
    for episode in dataset.iterate_episodes():
        rows = _rows_of(episode, dataset.observation_space, dataset.action_space)
        rows = {name: values for name, values in rows.items() if name in wanted}
        for first in range(0, len(episode), most):
            some = {name: values[first : first + most] for name, values in rows.items()}
            buffer.add(**some, **given)
        buffer.on_episode_end()
        steps += len(episode)
    return steps


def _rows_of(episode: Any, observation_space: Any, action_space: Any) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, values in mpbuffer.to_fields(observation_space, episode.observations).items():
        rows[name] = values[:-1]
        rows[f"next_{name}"] = values[1:]
    rows |= mpbuffer.to_fields(action_space, episode.actions, "act")
    rows |= {
        "rew": episode.rewards,
        "terminated": episode.terminations,
        "truncated": episode.truncations,
        "episode": np.full(len(episode), episode.id, np.int64),
    }
    return rows


def create_dataset(
    buffer: Any, dataset_id: str, observation_space: Any, action_space: Any, **about: Any
) -> Any:
    """Make a Minari dataset of a buffer's rows.

    Rows are taken from the oldest to the newest. With a field ``"episode"``, rows with the same
    number are an episode. Without it, an episode goes on as long as each row begins where the last
    one ended, which needs rows of one explorer. An episode whose beginning was overwritten begins
    with its first row that is there; one whose last row has neither flag is truncated.

    Parameters
    ----------
    buffer : ReplayBuffer or PrioritizedReplayBuffer
        With the fields of ``mpbuffer.schema_from``. Its rows are single steps.
    dataset_id : str
        As Minari wants it: ``"namespace/name-v0"``.
    observation_space, action_space : space
        Of the environment.
    **about : optional
        For ``minari.create_dataset_from_buffers``: ``env``, ``algorithm_name``, ``author``, ...

    Returns
    -------
    minari.MinariDataset

    Raises
    ------
    ValueError
        If the buffer has n-step rows, or no row; and what Minari raises.
    KeyError
        If a field is missing.
    """
    if buffer.is_Nstep():
        raise ValueError(
            f"cannot make a dataset of {buffer.name!r}: its rows are of several steps, expected "
            "single steps"
        )
    rows = buffer.get_all_transitions()
    oldest = buffer.get_next_index() if len(buffer) == buffer.get_buffer_size() else 0
    rows = {name: np.roll(values, -oldest, axis=0) for name, values in rows.items()}
    if not len(rows["rew"]):
        raise ValueError(f"cannot make a dataset of {buffer.name!r}: it has no rows")
    episodes = [
        _episode_of({name: values[steps] for name, values in rows.items()}, number, spaces)
        for number, steps in enumerate(_episodes_in(rows))
        for spaces in [(observation_space, action_space)]
    ]
    return minari.create_dataset_from_buffers(
        dataset_id,
        episodes,
        observation_space=observation_space,
        action_space=action_space,
        **about,
    )


def _episodes_in(rows: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[np.intp]]:
    """Return the places of each episode's rows."""
    count = len(rows["rew"])
    if "episode" in rows:
        numbers = rows["episode"].ravel()
        _, first = np.unique(numbers, return_index=True)
        return [np.nonzero(numbers == numbers[i])[0] for i in np.sort(first)]
    goes_on = ~(rows["terminated"] | rows["truncated"]).reshape(count)[:-1]
    for name in rows:
        if f"next_{name}" in rows:
            ends, begins = rows[f"next_{name}"][:-1], rows[name][1:]
            goes_on &= (ends == begins).reshape(count - 1, -1).all(axis=1)
    return np.split(np.arange(count), np.nonzero(~goes_on)[0] + 1)


def _episode_of(
    rows: dict[str, npt.NDArray[Any]], number: int, spaces: tuple[Any, Any]
) -> EpisodeBuffer:
    observations = {
        name: np.concatenate([values, rows[f"next_{name}"][-1:]])
        for name, values in rows.items()
        if f"next_{name}" in rows
    }
    terminations, truncations = (rows[name].ravel().copy() for name in _STEP[1:])
    if not terminations[-1]:
        truncations[-1] = True
    return EpisodeBuffer(
        id=number,
        observations=mpbuffer.from_fields(spaces[0], observations),
        actions=mpbuffer.from_fields(spaces[1], rows, "act"),
        rewards=rows["rew"].ravel(),
        terminations=terminations,
        truncations=truncations,
        infos={},
    )

"""The argument ``sequence=``: checked against the fields, and as a segment describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mpbuffer._arguments.integers import whole_number
from mpbuffer.buffer.schema import Field

__all__ = [
    "COMPUTED",
    "SequenceArgument",
    "SequenceRule",
    "check_sequence",
    "checked_steps",
    "record_bytes",
    "sequence_from_json",
    "sequence_rule",
]

_KEYS = ("length", "max_length", "period", "pad", "state", "burn_in")
_MOST_STEPS = 2**16
_MOST_STORED = 2**31
_STORED_PER_STEP = 16  # of the longest sequence, at least
# What a sample has beside its fields.
COMPUTED = ("mask", "is_first")

SequenceArgument = Mapping[str, Any] | None


class SequenceRule(NamedTuple):
    """How steps become sequences.

    Attributes
    ----------
    length : int
        The most steps of a sequence, at least 1.
    period : int
        How many steps after a sequence the next one begins, 1 to `length`.
    pad : bool
        Whether an episode's last steps become a sequence that is padded.
    state : tuple of str
        Fields whose value a sample has for the first step alone.
    burn_in : int
        How many first steps only bring the state up to date, below `length`.
    episodes : bool
        Whether each sequence is a whole episode: a batch is as long as its longest one.
    """

    length: int
    period: int
    pad: bool
    state: tuple[str, ...]
    burn_in: int
    episodes: bool

    def for_core(self) -> tuple[int, int, bool, list[str], int, bool]:
        """Return it as the core takes it."""
        return self.length, self.period, self.pad, list(self.state), self.burn_in, self.episodes


def sequence_rule(wanted: SequenceArgument) -> SequenceRule | None:
    """Check the argument ``sequence=`` without the fields; None means none.

    Raises
    ------
    TypeError
        If it is no mapping, a number no integer, or a field's name no str.
    ValueError
        If it has no length or unknown keys, or a number is out of its range.
    """
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping):
        raise TypeError(f"sequence must be a mapping with a 'length', got {wanted!r}")
    unknown = [repr(key) for key in wanted if key not in _KEYS]
    if unknown:
        raise ValueError(
            f"sequence has {', '.join(unknown)}, expected {', '.join(map(repr, _KEYS))}"
        )
    if "length" not in wanted:
        raise ValueError(
            f"sequence needs a 'length': a number of steps, or None for whole episodes, "
            f"got {dict(wanted)!r}"
        )
    episodes = wanted["length"] is None
    if episodes:
        length = _longest_episode(wanted)
    else:
        length = whole_number("sequence['length']", wanted["length"], 1, _MOST_STEPS)
        if "max_length" in wanted:
            raise ValueError(
                "sequence has a 'max_length', which is for whole episodes; expected 'length' None"
            )
    period = length
    if "period" in wanted and not episodes:
        if wanted["period"] is None:
            raise ValueError(
                "sequence['period'] must be a number of steps, got None: sequences that begin "
                "anywhere are not drawn from the steps; period 1 makes one begin at each step"
            )
        period = whole_number("sequence['period']", wanted["period"], 1, length)
    pad = wanted.get("pad", True)
    if not isinstance(pad, bool):
        raise TypeError(f"sequence['pad'] must be True or False, got {pad!r}")
    if episodes and not pad:
        raise ValueError("sequence['pad'] must be True for whole episodes, got False")
    burn_in = whole_number("sequence['burn_in']", wanted.get("burn_in", 0), 0, length - 1)
    return SequenceRule(length, period, pad, _state(wanted.get("state")), burn_in, episodes)


def _longest_episode(wanted: Mapping[str, Any]) -> int:
    if "max_length" not in wanted:
        raise ValueError(
            "sequence needs a 'max_length', the most steps of an episode, where 'length' is None"
        )
    if wanted.get("period") is not None:
        raise ValueError(
            f"sequence has a 'period' of {wanted['period']!r}, expected none: whole episodes do "
            "not overlap"
        )
    return whole_number("sequence['max_length']", wanted["max_length"], 1, _MOST_STEPS)


def _state(given: Any) -> tuple[str, ...]:
    names = () if given is None else (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"sequence['state'] must be a field's name or a list of them, got {name!r}"
            )
    return tuple(dict.fromkeys(names))


def check_sequence(rule: SequenceRule, fields: list[Field], *, prioritized: bool) -> None:
    """Check that a buffer with these fields can make such sequences.

    Raises
    ------
    ValueError
        If a field of the state is missing, or a field has a name that samples or add() need.
    """
    known = [name for name, _, _ in fields]
    for name in rule.state:
        if name not in known:
            raise ValueError(
                f"sequence['state'] names {name!r}, which is no field; fields are "
                f"{', '.join(map(repr, known))}"
            )
    for name in (*COMPUTED, *(("td",) if prioritized else ())):
        if name in known:
            what = "an argument of add()" if name == "td" else "what a sample of sequences has"
            raise ValueError(f"a field has the name {name!r}, which is {what}; rename the field")


def checked_steps(rule: SequenceRule, size: int | None, wanted: int | None) -> int:
    """Return how many steps are stored; 0: as many as the sequences need.

    Raises
    ------
    TypeError, ValueError
        If it is no integer, too small or too large.
    """
    if wanted is not None:
        return whole_number("sources", wanted, _STORED_PER_STEP * rule.length, _MOST_STORED)
    if size is not None and size * rule.period > _MOST_STORED // 2:
        raise ValueError(
            f"size must be at most {_MOST_STORED // 2 // rule.period} with sequences that begin "
            f"every {rule.period} steps, got {size}; or tell how many steps are stored by sources="
        )
    return 0


def sequence_from_json(described: Any, fields: list[Field], *, prioritized: bool) -> SequenceRule:
    """Read the rule from a segment's description; damage raises whatever it causes."""
    if set(described) != set(SequenceRule._fields):
        raise ValueError(f"keys {sorted(described)}")
    wanted = {key: described[key] for key in ("pad", "state", "burn_in")}
    if described["episodes"]:
        wanted |= {"length": None, "max_length": described["length"]}
    else:
        wanted |= {"length": described["length"], "period": described["period"]}
    rule = sequence_rule(wanted)
    if rule is None or rule._asdict() != {**described, "state": tuple(described["state"])}:
        raise ValueError("no rule")
    check_sequence(rule, fields, prioritized=prioritized)
    return rule


def record_bytes(rule: SequenceRule) -> int:
    """Return the bytes of a sequence's record, as format/row_layout.hpp lays it out."""
    return 12 + 4 * rule.length

"""The argument ``Nstep=``: checked against the fields, and as a segment describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from mpbuffer._arguments.integers import whole_number
from mpbuffer.buffer.schema import Field

__all__ = ["FLAGS", "NstepArgument", "NstepRule", "check_nstep", "nstep_from_json", "nstep_rule"]

FLAGS = ("done", "terminated", "truncated")

_KEYS = {"size", "rew", "gamma", "next", "discount"}
_MOST_STEPS = 2**20

NstepArgument = Mapping[str, Any] | Literal[False] | None


class NstepRule(NamedTuple):
    """How steps are folded into n-step rows.

    Attributes
    ----------
    steps : int
        n, at least 1.
    gamma : float
        The discount per step, in [0, 1].
    rew : tuple of str
        Fields whose discounted values are summed.
    next : tuple of str
        Fields taken from the last step, beside the flags.
    discount : str
        The computed field: ``gamma ** steps``, or 0 where nothing follows. Empty: none.
    """

    steps: int
    gamma: float
    rew: tuple[str, ...]
    next: tuple[str, ...]
    discount: str

    def for_core(self) -> tuple[int, float, list[str], list[str], str]:
        """Return it as the core takes it."""
        return self.steps, self.gamma, list(self.rew), list(self.next), self.discount


def nstep_rule(wanted: NstepArgument) -> NstepRule | None:
    """Check the argument ``Nstep=`` without the fields; None, False and {} mean none.

    Raises
    ------
    TypeError
        If it is no mapping, its size no integer, or a field's name no str.
    ValueError
        If it has no size or unknown keys, the size is below 1 or above 2**20, gamma is outside
        [0, 1], or a field is named twice.
    """
    if wanted is None or wanted is False or (isinstance(wanted, Mapping) and not wanted):
        return None
    if not isinstance(wanted, Mapping):
        raise TypeError(f"Nstep must be a mapping with 'size', 'rew' and 'next', got {wanted!r}")
    unknown = [repr(key) for key in wanted if key not in _KEYS]
    if unknown:
        raise ValueError(
            f"Nstep has {', '.join(unknown)}, expected 'size', 'rew', 'gamma', 'next', 'discount'"
        )
    if "size" not in wanted:
        raise ValueError(f"Nstep needs a 'size', the number of steps, got {wanted!r}")
    steps = whole_number("Nstep['size']", wanted["size"], 1, _MOST_STEPS)
    gamma = float(wanted.get("gamma", 0.99))
    if not 0 <= gamma <= 1:
        raise ValueError(f"Nstep['gamma'] must be in [0, 1], got {gamma!r}")
    discount = wanted.get("discount")
    if discount is not None and (not isinstance(discount, str) or not discount):
        raise TypeError(f"Nstep['discount'] must be a field's name, got {discount!r}")
    rule = NstepRule(
        steps,
        gamma,
        _names("rew", wanted),
        _names("next", wanted),
        "" if discount is None else discount,
    )
    named = [*rule.rew, *rule.next, *filter(None, [rule.discount])]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ValueError(f"Nstep names {', '.join(map(repr, twice))} twice")
    return rule


def _names(key: str, wanted: Mapping[str, Any]) -> tuple[str, ...]:
    given = wanted.get(key)
    names = () if given is None else (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"Nstep[{key!r}] must be a field's name or a list of them, got {name!r}"
            )
    return names


def check_nstep(rule: NstepRule, fields: list[Field]) -> None:
    """Check that a buffer with these fields can hold such rows.

    Raises
    ------
    ValueError
        If a field is missing, a reward or the discount is neither float32 nor float64, the discount
        has several elements, a flag is not one number or truth value, or there is none of them.
    """
    known = {name: (dtype, shape) for name, dtype, shape in fields}
    for name in (*rule.rew, *rule.next, *filter(None, [rule.discount])):
        if name not in known:
            raise ValueError(
                f"Nstep names {name!r}, which is no field; fields are {', '.join(map(repr, known))}"
            )
    for name in (*rule.rew, *filter(None, [rule.discount])):
        dtype, shape = known[name]
        if dtype not in (np.float32, np.float64):
            raise ValueError(
                f"Nstep needs float32 or float64 in field {name!r}, which has dtype {dtype}"
            )
        if name == rule.discount and np.prod(shape, dtype=object) != 1:
            raise ValueError(f"the discount must be one number, field {name!r} has shape {shape}")
    flags = [name for name in FLAGS if name in known]
    for name in flags:
        dtype, shape = known[name]
        own = dtype.isbuiltin == 1 and dtype.kind in "biuf"
        if not own or dtype.itemsize > 8 or np.prod(shape, dtype=object) != 1:
            raise ValueError(
                f"Nstep needs one number or truth value in field {name!r}, "
                f"which has shape {shape} and dtype {dtype}"
            )
        if name in (*rule.rew, rule.discount):
            raise ValueError(f"field {name!r} marks the end of episodes and cannot be a reward")
    if not flags:
        raise ValueError(
            "Nstep needs a field that marks the end of episodes: 'done', 'terminated' or "
            f"'truncated'; fields are {', '.join(map(repr, known))}"
        )


def nstep_from_json(described: Any, fields: list[Field]) -> NstepRule:
    """Read the rule from a segment's description; damage raises whatever it causes."""
    if set(described) != set(NstepRule._fields):
        raise ValueError(f"keys {sorted(described)}")
    wanted = {key: described[key] for key in ("gamma", "rew", "next")}
    wanted |= {"size": described["steps"], "discount": described["discount"] or None}
    rule = nstep_rule(wanted)
    if rule is None:
        raise ValueError("no rule")
    check_nstep(rule, fields)
    return rule

"""The description of a buffer's fields that its segment carries."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from mpbuffer._segment.description import (
    dtype_from_json,
    dtype_to_json,
    name_from_json,
    refusing_damage,
    shape_from_json,
)
from mpbuffer.buffer.frames import Cut, cuts_from_json
from mpbuffer.buffer.nstep import NstepRule, nstep_from_json
from mpbuffer.buffer.schema import Field
from mpbuffer.buffer.sequences import SequenceRule, sequence_from_json
from mpbuffer.errors import SegmentMismatch

__all__ = ["Description", "describe", "read_description"]

_KEYS = {"class", "fields", "strict", "attributes", "nstep", "cuts", "sequence"}


class Description(NamedTuple):
    """What a segment says of its rows.

    Attributes
    ----------
    prioritized : bool
    fields : list of Field
    cuts : list of Cut
        One for each field, or none.
    strict : bool
    nstep : NstepRule or None
    sequence : SequenceRule or None
    """

    prioritized: bool
    fields: list[Field]
    cuts: list[Cut]
    strict: bool
    nstep: NstepRule | None
    sequence: SequenceRule | None


def describe(described: Description) -> str:
    """Return the JSON text that a segment carries, so that it can be attached by name."""
    prioritized, fields, cuts, strict, nstep, sequence = described
    description: dict[str, Any] = {
        "class": "PrioritizedReplayBuffer" if prioritized else "ReplayBuffer",
        "fields": [
            {"name": name, "descr": dtype_to_json(dtype), "shape": shape}
            for name, dtype, shape in fields
        ],
        "strict": strict,
        "attributes": {},
    }
    if nstep is not None:
        description["nstep"] = nstep._asdict()
    if cuts:
        description["cuts"] = cuts
    if sequence is not None:
        description["sequence"] = sequence._asdict()
    return json.dumps(description)


def read_description(name: str, text: bytes) -> Description:
    """Read a segment's JSON text.

    Raises
    ------
    SegmentMismatch
        If the text is damaged, or names attributes that this version does not know.
    """
    with refusing_damage(name):
        description = json.loads(text.decode())
        unknown = set(description) - _KEYS | set(description["attributes"])
        fields = [
            (
                name_from_json(each["name"]),
                dtype_from_json(each["descr"]),
                shape_from_json(each["shape"], least=1),
            )
            for each in ([] if unknown else description["fields"])
        ]
        if not unknown and (not fields or len({field[0] for field in fields}) != len(fields)):
            raise ValueError("no fields, or two of one name")
        strict = bool(description["strict"])
        prioritized = description["class"] == "PrioritizedReplayBuffer"
        nstep = None
        if not unknown and "nstep" in description:
            nstep = nstep_from_json(description["nstep"], fields)
        cuts = [] if unknown else cuts_from_json(description.get("cuts", []), fields)
        sequence = None
        if not unknown and "sequence" in description:
            if nstep is not None or cuts:
                raise ValueError("sequences of n-step rows, or of frames")
            sequence = sequence_from_json(description["sequence"], fields, prioritized=prioritized)
    if unknown:
        raise SegmentMismatch(
            f"cannot attach {name!r}: this version does not know its attributes "
            f"{', '.join(sorted(unknown))}"
        )
    if any(dtype.hasobject for _, dtype, _ in fields):
        raise SegmentMismatch(f"cannot attach {name!r}: a field holds Python objects")
    return Description(prioritized, fields, cuts, strict, nstep, sequence)

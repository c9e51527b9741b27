"""The description of a buffer's fields that its segment carries."""

from __future__ import annotations

import json
from typing import Any

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
from mpbuffer.errors import SegmentMismatch

__all__ = ["describe", "read_description"]

_KEYS = {"class", "fields", "strict", "attributes", "nstep", "cuts"}


def describe(
    prioritized: bool, fields: list[Field], cuts: list[Cut], strict: bool, nstep: NstepRule | None
) -> str:
    """Return the JSON text that a segment carries, so that it can be attached by name."""
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
    return json.dumps(description)


def read_description(
    name: str, text: bytes
) -> tuple[list[Field], list[Cut], bool, NstepRule | None]:
    """Return fields, their cuts, strictness and the n-step rule from a segment's JSON text.

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
        nstep = None
        if not unknown and "nstep" in description:
            nstep = nstep_from_json(description["nstep"], fields)
        cuts = [] if unknown else cuts_from_json(description.get("cuts", []), fields)
    if unknown:
        raise SegmentMismatch(
            f"cannot attach {name!r}: this version does not know its attributes "
            f"{', '.join(sorted(unknown))}"
        )
    if any(dtype.hasobject for _, dtype, _ in fields):
        raise SegmentMismatch(f"cannot attach {name!r}: a field holds Python objects")
    return fields, cuts, strict, nstep

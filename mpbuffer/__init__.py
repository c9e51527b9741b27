"""Replay buffers for reinforcement learning whose data live in POSIX shared memory."""

from typing import Any as _Any

from mpbuffer import _core as _core  # before NumPy: it tells why subinterpreters are refused
from mpbuffer._arguments import value_range as _value_range  # noqa: F401 - for the core, by name
from mpbuffer.buffer.attaching import attach
from mpbuffer.buffer.batches import Batches
from mpbuffer.buffer.prioritized import PrioritizedReplayBuffer
from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.buffer.statuses import LearnerStatus, ProcessStatus
from mpbuffer.buffer.step_writer import StepWriter
from mpbuffer.envs.spaces import from_fields, schema_from, to_fields
from mpbuffer.envs.vector import TransitionRows, VectorTransitions
from mpbuffer.errors import (
    BufferClosed,
    EmptyBuffer,
    ExplorerFailed,
    LearnerBusy,
    MpbufferError,
    NotEnoughMemory,
    ProcessTableFull,
    PublisherBusy,
    RoleBusy,
    SegmentExists,
    SegmentMismatch,
    SegmentNotFound,
    SlotsHeld,
)
from mpbuffer.explorers.explorers import Explorer, Explorers, ExplorerStatus
from mpbuffer.weights.shared_weights import PublisherStatus, SharedWeights, WeightsVersion

MPReplayBuffer = ReplayBuffer
MPPrioritizedReplayBuffer = PrioritizedReplayBuffer

__version__: str


def __getattr__(name: str) -> _Any:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # takes as long as all modules of this package

    return version("mpbuffer")


__all__ = [
    "Batches",
    "BufferClosed",
    "EmptyBuffer",
    "Explorer",
    "ExplorerFailed",
    "ExplorerStatus",
    "Explorers",
    "LearnerBusy",
    "LearnerStatus",
    "MPPrioritizedReplayBuffer",
    "MPReplayBuffer",
    "MpbufferError",
    "NotEnoughMemory",
    "PrioritizedReplayBuffer",
    "ProcessStatus",
    "ProcessTableFull",
    "PublisherBusy",
    "PublisherStatus",
    "ReplayBuffer",
    "RoleBusy",
    "SegmentExists",
    "SegmentMismatch",
    "SegmentNotFound",
    "SharedWeights",
    "SlotsHeld",
    "StepWriter",
    "TransitionRows",
    "VectorTransitions",
    "WeightsVersion",
    "attach",
    "from_fields",
    "schema_from",
    "to_fields",
]

"""Replay buffers for reinforcement learning whose data live in POSIX shared memory."""

from typing import Any as _Any

from mpbuffer import _core as _core  # before NumPy: it tells why subinterpreters are refused
from mpbuffer._arguments import value_range as _value_range  # noqa: F401 - for the core, by name
from mpbuffer.buffer.attaching import attach
from mpbuffer.buffer.batches import Batches
from mpbuffer.buffer.prioritized import PrioritizedReplayBuffer
from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.buffer.restoring import restore
from mpbuffer.buffer.statuses import LearnerStatus, ProcessStatus, SnapshotStatus
from mpbuffer.buffer.step_writer import StepWriter
from mpbuffer.envs.agents import AgentTransitions
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
    SnapshotBusy,
    SnapshotMismatch,
    SnapshotNotFound,
)
from mpbuffer.explorers.explorers import Explorer, Explorers, ExplorerStatus
from mpbuffer.replay.create import create_before_add_func, create_buffer, create_env_dict
from mpbuffer.replay.hindsight import HindsightReplayBuffer
from mpbuffer.replay.large_batch import LaBERlazy, LaBERmax, LaBERmean
from mpbuffer.replay.mixture import Mixture
from mpbuffer.replay.reverse import ReverseReplayBuffer
from mpbuffer.replay.selective import SelectiveReplayBuffer
from mpbuffer.replay.sequence_priorities import sequence_priorities
from mpbuffer.replay.training import train
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
    "AgentTransitions",
    "Batches",
    "BufferClosed",
    "EmptyBuffer",
    "Explorer",
    "ExplorerFailed",
    "ExplorerStatus",
    "Explorers",
    "HindsightReplayBuffer",
    "LaBERlazy",
    "LaBERmax",
    "LaBERmean",
    "LearnerBusy",
    "LearnerStatus",
    "MPPrioritizedReplayBuffer",
    "MPReplayBuffer",
    "Mixture",
    "MpbufferError",
    "NotEnoughMemory",
    "PrioritizedReplayBuffer",
    "ProcessStatus",
    "ProcessTableFull",
    "PublisherBusy",
    "PublisherStatus",
    "ReplayBuffer",
    "ReverseReplayBuffer",
    "RoleBusy",
    "SegmentExists",
    "SegmentMismatch",
    "SegmentNotFound",
    "SelectiveReplayBuffer",
    "SharedWeights",
    "SlotsHeld",
    "SnapshotBusy",
    "SnapshotMismatch",
    "SnapshotNotFound",
    "SnapshotStatus",
    "StepWriter",
    "TransitionRows",
    "VectorTransitions",
    "WeightsVersion",
    "attach",
    "create_before_add_func",
    "create_buffer",
    "create_env_dict",
    "from_fields",
    "restore",
    "schema_from",
    "sequence_priorities",
    "to_fields",
    "train",
]

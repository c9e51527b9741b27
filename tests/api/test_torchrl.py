"""Buffers for TorchRL: TensorDicts in and out, in its trainers and across processes."""

import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tensordict = pytest.importorskip("tensordict")

from tensordict import TensorDict  # noqa: E402

from mpbuffer.adapters import torchrl as ours  # noqa: E402
from mpbuffer.errors import EmptyBuffer  # noqa: E402


def steps(count, start=0):
    at = torch.arange(start, start + count)
    following = {"observation": torch.stack([at + 1.0, -at - 1.0], 1), "reward": at[:, None] / 2}
    following |= {"done": at[:, None] % 5 == 4}
    return TensorDict(
        {
            "observation": torch.stack([at + 0.0, -at - 0.0], 1),
            "action": at % 3,
            "frames": at[:, None, None].expand(-1, 2, 2).to(torch.uint8),
            "next": following,
        },
        [count],
    )


def assert_rows(sample):
    expected = steps(1_000)[sample["observation"][:, 0].long()]
    for key, value in expected.items(include_nested=True, leaves_only=True):
        assert sample[key].dtype == value.dtype and sample[key].shape == value.shape, key
        assert torch.equal(sample[key], value), key


@pytest.mark.parametrize("prefetch", [0, 2])
def test_tensordicts_come_back_whole(prefetch):
    buffer = ours.ReplayBuffer(20, batch_size=6, prefetch=prefetch, seed=1)
    with pytest.raises(EmptyBuffer):
        buffer.sample()
    assert len(buffer) == buffer.write_count == 0
    assert buffer.extend(steps(15)).tolist() == list(range(15))
    assert buffer.extend(steps(8, 15)).tolist() == [15, 16, 17, 18, 19, 0, 1, 2]
    assert buffer.add(steps(1, 23)[0]) == 3
    assert len(buffer) == 20 and buffer.write_count == 24
    drawn = set()
    for sample, _ in zip(buffer, range(60), strict=False):
        assert sample.batch_size == (6,)
        assert_rows(sample)
        assert torch.equal(sample["observation"][:, 0].long() % 20, sample["index"])
        drawn |= set(sample["index"].tolist())
    assert drawn == set(range(20))
    assert_rows(buffer.sample(33))
    buffer.extend(buffer.sample(4))  # its index is no entry
    buffer.empty()
    assert len(buffer) == 0
    buffer.close()


def test_a_batch_that_is_kept_stays_as_it_is():
    buffer = ours.ReplayBuffer(20, batch_size=8)
    buffer.extend(steps(20))
    kept = [buffer.sample() for _ in range(5)]
    copies = [each.clone() for each in kept]
    for _ in range(20):
        buffer.sample()
    assert all((one == other).all() for one, other in zip(kept, copies, strict=True))
    buffer.close()


def test_rows_of_many_dimensions_are_flattened():
    buffer = ours.ReplayBuffer(20, batch_size=8, example=steps(1))
    assert len(buffer) == 0
    buffer.extend(steps(12).reshape(3, 4))
    assert len(buffer) == 12
    assert_rows(buffer.sample())
    buffer.close()


def test_priorities_weigh_and_are_updated():
    buffer = ours.PrioritizedReplayBuffer(20, alpha=1.0, beta=1.0, eps=0.0, batch_size=20)
    buffer.extend(steps(20))
    sample = buffer.sample()
    assert sorted(sample["index"].tolist()) == list(range(20))
    assert torch.all(sample["priority_weight"] == 1)
    sample["td_error"] = -(sample["index"] + 1.0)
    buffer.update_tensordict_priority(sample)
    sample = buffer.sample(400)
    torch.testing.assert_close(sample["priority_weight"], 1 / (sample["index"] + 1.0))
    assert_rows(sample)
    buffer.extend(steps(20, 20))
    sample["td_error"] = torch.full((400,), 1e6)
    buffer.update_tensordict_priority(sample.clone())
    assert buffer.rows.get_max_priority() < 1e6  # all of these rows were overwritten
    buffer.close()


@pytest.mark.parametrize("created", [True, False])
def test_state_dicts_hold_the_rows(created, tmp_path):
    buffer = ours.PrioritizedReplayBuffer(20, alpha=1.0, beta=1.0, batch_size=4)
    buffer.extend(steps(20))
    buffer.extend(steps(7, 20))
    buffer.update_priority(buffer.sample(20)["index"], np.arange(20) + 1.0)
    torch.save(buffer.state_dict(), tmp_path / "state")
    example = steps(1) if created else None
    loaded = ours.PrioritizedReplayBuffer(20, alpha=1.0, beta=1.0, example=example)
    loaded.load_state_dict(torch.load(tmp_path / "state", weights_only=False))
    pickled = pickle.loads(pickle.dumps(buffer))
    for each in (loaded, pickled):
        assert_rows(each.sample(4))
        np.testing.assert_array_equal(
            each.rows.get_priorities(np.arange(20)), buffer.rows.get_priorities(np.arange(20))
        )
        each.close()
    empty = ours.ReplayBuffer(20)
    empty.load_state_dict(ours.ReplayBuffer(20).state_dict())
    assert len(empty) == 0
    buffer.close()


def add_elsewhere(buffer):
    buffer.extend(steps(7, 100))


def test_other_processes_add(context):
    buffer = ours.ReplayBuffer(20, batch_size=50, example=steps(1))
    buffer.extend(steps(2))
    buffer.sample()
    process = context.Process(target=add_elsewhere, args=(buffer,))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and len(buffer) == buffer.write_count == 9
    assert_rows(buffer.sample())
    buffer.close()


def test_it_refuses_what_cannot_be_stored():
    buffer = ours.ReplayBuffer(20)
    with pytest.raises(TypeError, match="'text'"):
        buffer.extend(TensorDict({"text": tensordict.NonTensorData("x", [3])}, [3]))
    with pytest.raises(TypeError, match="'half'"):
        buffer.extend(TensorDict({"half": torch.zeros(3, dtype=torch.bfloat16)}, [3]))
    with pytest.raises(ValueError, match=r"'a\.b'"):
        buffer.extend(TensorDict({"a.b": torch.zeros(3), "a": {"b": torch.zeros(3)}}, [3]))
    buffer.extend(steps(3))
    with pytest.raises(KeyError):
        buffer.extend(steps(3).exclude("action"))
    with pytest.raises(ValueError, match="batch_size"):
        buffer.sample()
    assert len(buffer) == 3
    buffer.close()


def dqn_trainer(buffer, frames, seed=1):
    """A DQNTrainer of TorchRL's on CartPole, with this buffer."""
    pytest.importorskip("torchrl")
    pytest.importorskip("gymnasium")
    from torchrl.collectors import Collector
    from torchrl.envs import GymEnv, StepCounter, TransformedEnv
    from torchrl.modules import MLP, EGreedyModule, QValueActor
    from torchrl.objectives import DQNLoss, SoftUpdate
    from torchrl.trainers import Trainer
    from torchrl.trainers.trainers import ReplayBufferTrainer, TargetNetUpdaterHook

    torch.manual_seed(seed)
    env = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), StepCounter())
    net = MLP(in_features=4, out_features=2, num_cells=[64, 64])
    actor = QValueActor(net, in_keys=["observation"], spec=env.action_spec)
    explore = EGreedyModule(env.action_spec, annealing_num_steps=frames // 2, eps_end=0.05)
    policy = tensordict.nn.TensorDictSequential(actor, explore)
    collector = Collector(env, policy, frames_per_batch=50, total_frames=frames)
    loss = DQNLoss(actor, action_space="categorical", delay_value=True)
    loss.make_value_estimator(gamma=0.99)
    trainer = Trainer(
        collector=collector,
        total_frames=frames,
        frame_skip=1,
        optim_steps_per_batch=20,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), 1e-3),
        progress_bar=False,
    )
    ReplayBufferTrainer(buffer, batch_size=64, flatten_tensordicts=True).register(trainer)
    TargetNetUpdaterHook(SoftUpdate(loss, eps=0.98)).register(trainer, "target")
    trainer.register_op("post_steps", lambda: explore.step(50))
    return trainer, actor, env


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prioritized", [False, True])
def test_a_trainer_trains(prioritized):
    if prioritized:
        buffer = ours.PrioritizedReplayBuffer(2_000, alpha=0.6, beta=0.4)
    else:
        buffer = ours.ReplayBuffer(2_000)
    trainer, actor, env = dqn_trainer(buffer, 200)
    first = [value.clone() for value in actor.parameters()]
    trainer.train()
    assert len(buffer) == 200
    assert any(not torch.equal(a, b) for a, b in zip(first, actor.parameters(), strict=True))
    if prioritized:
        assert buffer.rows.learner_status().updates > 0
    env.close()
    buffer.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1800)
def test_a_trainer_solves_cartpole():
    buffer = ours.ReplayBuffer(50_000, prefetch=1)
    trainer, actor, env = dqn_trainer(buffer, 60_000)
    trainer.train()
    with torch.no_grad():
        lengths = [len(env.rollout(500, actor)) for _ in range(20)]
    assert np.mean(lengths) > 450, lengths
    env.close()
    buffer.close()

"""Checkpoints: every bit comes back, or the file is refused by name."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from algorithms.core.records import digest
from engine.store.checkpoint import Checkpoint, CheckpointError, Keep, after, latest, load, save

ALL = Keep(last=100)


@dataclass(frozen=True)
class Prototype:
    label: int
    centre: torch.Tensor


@dataclass(frozen=True)
class State:
    net: str
    model: dict[str, torch.Tensor]
    experts: dict[int, dict[str, torch.Tensor]]
    prototypes: tuple[Prototype, ...]
    losses: list[float]
    teacher: torch.Tensor | None
    warm: bool


DTYPES = (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64)


@st.composite
def tensors(draw):
    """Any bits at all, so NaNs of every payload as well, in any shape, empty and 0-d ones included."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape)
    if dtype is torch.bool:
        return torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=dtype).reshape(shape)
    raw = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
    return torch.tensor(list(raw), dtype=torch.uint8).view(dtype).reshape(shape)


names = st.text(st.characters(codec="utf-8", exclude_characters="/$"), min_size=1, max_size=8)
dicts = st.dictionaries(names, tensors(), max_size=3)
states = st.builds(
    State,
    net=st.text(max_size=5),
    model=dicts,
    experts=st.dictionaries(st.integers(0, 200), dicts, max_size=3),
    prototypes=st.lists(st.builds(Prototype, st.integers(), tensors()), max_size=3).map(tuple),
    losses=st.lists(st.floats(), max_size=3),
    teacher=st.none() | tensors(),
    warm=st.booleans(),
)
memories = st.dictionaries(
    st.integers(0, 10_000),
    st.dictionaries(
        st.text(min_size=1, max_size=8), tensors() | st.integers() | st.floats(allow_nan=False), max_size=3
    ),
    max_size=3,
)


def small(value: float = 1.0) -> State:
    return State("mlp", {"weight": torch.tensor([value, 2.0])}, {}, (), [], None, False)


def numbers(folder: Path) -> list[int]:
    return sorted(int(p.name.split("-")[0]) for p in folder.glob("*.safetensors"))


def fill(folder: Path, rounds: int) -> list[Path]:
    return [save(folder, Checkpoint(n, small(n), {}), ALL) for n in range(1, rounds + 1)]


@example(state=small(), kept={0: {"$": 0, "$tensor": 1}}, done=0)
@given(state=states, kept=memories, done=st.integers(0, 2_000_000))
@settings(max_examples=60, deadline=None)
def test_every_state_and_memory_comes_back_to_the_bit(tmp_path_factory, state, kept, done):
    extra = {"mlflow": "abc", "seconds": 1.5}
    path = save(tmp_path_factory.mktemp("run"), Checkpoint(done, state, kept, extra), ALL)
    back = load(path, State)
    assert (back.done, back.extra) == (done, extra)
    assert type(back.state) is State
    assert digest(back.state) == digest(state)
    assert digest(dict(back.memories)) == digest(kept)
    assert list(back.memories) == list(kept)


def test_types_that_json_does_not_know_come_back_as_they_were(tmp_path):
    state = State("mlp", {}, {3: {"w": torch.zeros(1)}}, (Prototype(1, torch.ones(2)),), [math.inf], None, True)
    back = load(save(tmp_path, Checkpoint(1, state, {7: {"position": 4, "rate": 0.5}}), ALL), State)
    assert list(back.state.experts) == [3]
    assert isinstance(back.state.prototypes, tuple)
    assert isinstance(back.state.prototypes[0], Prototype)
    assert back.state.losses == [math.inf]
    assert back.memories == {7: {"position": 4, "rate": 0.5}}
    assert isinstance(back.memories[7]["position"], int)


def test_views_and_shared_memory_are_saved_as_tensors_of_their_own(tmp_path):
    grid = torch.arange(6.0).reshape(2, 3)
    state = State("mlp", {"grid": grid, "same": grid, "column": grid[:, 1], "turned": grid.T}, {}, (), [], None, False)
    model = load(save(tmp_path, Checkpoint(1, state, {}), ALL), State).state.model
    assert model["column"].tolist() == [1, 4]
    assert model["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    model["grid"].zero_()
    assert model["same"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_same_state_gives_the_same_file(tmp_path):
    one, other = (save(tmp_path / name, Checkpoint(4, small(), {1: {"n": 2}}), ALL) for name in "ab")
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()


def test_nothing_but_the_checkpoint_is_left_in_the_folder(tmp_path):
    path = save(tmp_path / "checkpoints", Checkpoint(1, small(), {}), ALL)
    assert list(path.parent.iterdir()) == [path]


def cut(data: bytes) -> bytes:
    return data[:-1]


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_file_is_refused_and_the_one_before_it_taken(tmp_path, damage):
    *_, before, newest = fill(tmp_path, 3)
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.raises(CheckpointError, match=f"{newest.name} was cut short or changed"):
        load(newest, State)
    told = []
    found = latest(tmp_path, State, told.append)
    assert (found.done, digest(found.state)) == (2, digest(load(before, State).state))
    assert [newest.name in str(error) for error in told] == [True]


def test_the_newest_of_sound_checkpoints_is_taken_and_nothing_said(tmp_path):
    fill(tmp_path, 11)
    told = []
    assert latest(tmp_path, State, told.append).done == 11
    assert told == []


def test_a_folder_without_checkpoints_has_no_latest(tmp_path):
    (tmp_path / ".checkpoint.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert latest(tmp_path, State, pytest.fail) is None
    assert latest(tmp_path / "nowhere", State, pytest.fail) is None


def test_where_every_checkpoint_is_damaged_the_run_must_start_anew(tmp_path):
    for path in fill(tmp_path, 2):
        path.write_bytes(b"")
    told = []
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        latest(tmp_path, State, told.append)
    assert len(told) == 2


@dataclass(frozen=True)
class Newer:
    net: str
    centres: torch.Tensor


def test_a_state_of_another_version_is_refused_by_name(tmp_path):
    path = save(tmp_path, Checkpoint(1, small(), {}), ALL)
    with pytest.raises(CheckpointError, match=r"does not hold a .*\.Newer"):
        load(path, Newer)


def test_another_file_is_not_taken_for_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is not the name of a checkpoint"):
        load(tmp_path / "model.safetensors", State)


def test_the_last_two_and_every_fifth_stay(tmp_path):
    assert Keep(last=2, every=5).of(range(1, 13)) == (5, 10, 11, 12)
    assert Keep(last=2, every=5).of(range(1, 13), best=7) == (5, 7, 10, 11, 12)
    for n in range(1, 13):
        save(tmp_path, Checkpoint(n, small(n), {}), Keep(last=2, every=5))
    assert numbers(tmp_path) == [5, 10, 11, 12]


def test_the_best_rounds_checkpoint_stays_until_another_one_is_best(tmp_path):
    for n, best in [(1, 1), (2, 2), (3, 2), (4, 2)]:
        save(tmp_path, Checkpoint(n, small(n), {}), Keep(last=1), best)
    assert numbers(tmp_path) == [2, 4]
    assert after(tmp_path, 2, State).done == 2
    assert after(tmp_path, 3, State) is None
    save(tmp_path, Checkpoint(5, small(5), {}), Keep(last=1), best=5)
    assert numbers(tmp_path) == [5]


@given(st.lists(st.integers(0, 60), max_size=20), st.integers(1, 5), st.none() | st.integers(1, 7))
def test_a_policy_keeps_the_newest_and_the_multiples_and_nothing_else(done, last, every):
    kept = Keep(last, every).of(done)
    older = sorted(set(done))[:-last]
    assert list(kept) == sorted(set(done) - {n for n in older if every is None or n % every})


def test_a_policy_is_stable_as_rounds_pass():
    """What a later round wants kept was not removed by an earlier one."""
    policy, there = Keep(last=3, every=4), set()
    for n in range(1, 40):
        there = set(policy.of(there | {n}))
        assert there == set(policy.of(range(1, n + 1)))


@pytest.mark.parametrize("wrong", [{"last": 0}, {"every": 0}])
def test_a_policy_that_keeps_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        Keep(**wrong)


def test_a_round_saved_again_replaces_its_checkpoint(tmp_path):
    fill(tmp_path, 2)
    path = save(tmp_path, Checkpoint(2, small(9.0), {}), ALL)
    assert numbers(tmp_path) == [1, 2]
    assert latest(tmp_path, State, pytest.fail).state.model["weight"].tolist() == [9.0, 2.0]
    assert path.exists()

"""Seeds depend on (run, round, phase, client, purpose) and on nothing else."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.core.seeds import SERVER, Seed, torch_seeded

SEEDS = st.builds(
    Seed,
    run=st.integers(0, 2**40),
    round=st.integers(-1, 1000),
    phase=st.sampled_from(["train", "server", ""]),
    client=st.integers(-1, 1000),
)


@given(SEEDS, st.sampled_from(["order", "augment"]))
def test_a_number_is_repeatable_and_fits_torch(seed, purpose):
    assert seed.number(purpose) == Seed(seed.run, seed.round, seed.phase, seed.client).number(purpose)
    assert 0 <= seed.number(purpose) < 2**63


@given(SEEDS, SEEDS)
def test_different_coordinates_give_different_numbers(one, other):
    assert (one == other) == (one.number("order") == other.number("order"))


def test_purposes_and_indices_are_told_apart():
    seed = Seed(7, round=1, phase="train", client=3)
    numbers = [seed.number(purpose, index) for purpose in ("order", "augment") for index in range(3)]
    assert len(set(numbers)) == 6


def test_a_known_number_stays_what_it_is():
    """Digests published with a run must mean the same in every later version."""
    assert Seed(0, round=0, phase="train", client=0).number("order") == KNOWN
    assert Seed(0).client == SERVER


def test_seeded_blocks_leave_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with torch_seeded(5):
        inside = torch.rand(3)
    with torch_seeded(5):
        assert torch.equal(inside, torch.rand(3))
    assert torch.equal(expected, torch.rand(3))


KNOWN = 3400932064488416193

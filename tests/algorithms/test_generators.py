"""The lean generators and the mixture of several clients' generators."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.core.seeds import Seed
from algorithms.methods.mosaic.generators import CellConfig, Mixture
from algorithms.methods.mosaic.generators.cells import Cells, summarise
from algorithms.methods.mosaic.generators.mixed import beside
from algorithms.methods.mosaic.generators.mixture import OWNER
from tests.support import tiny_task

SEED = Seed(1)


def two_blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """Class 0 around 0 with all its spread along the first axis; class 4 around 10 without any."""
    draws = torch.Generator().manual_seed(0)
    first = torch.zeros(200, 3)
    first[:, 0] = 2 * torch.randn(200, generator=draws)
    return torch.cat([first, torch.full((50, 3), 10.0)]), torch.tensor([0] * 200 + [4] * 50)


def drawn(statistics, count: int = 2000, **changes) -> tuple[torch.Tensor, torch.Tensor]:
    cells = Cells(statistics, (3,), **changes)
    return cells.samples(cells.latents(count, SEED.torch("draws")))


def test_points_drawn_from_cells_have_the_mean_and_the_spread_of_their_class():
    points, labels = two_blobs()
    made, of_class = drawn(summarise(points, labels, CellConfig(cells=1, directions=2), SEED))
    mine = made[of_class == 0]
    assert mine.mean(0).tolist() == pytest.approx(points[:200].mean(0).tolist(), abs=0.2)
    assert mine.std(0).tolist() == pytest.approx([2.0, 0.0, 0.0], abs=0.2)
    assert torch.allclose(made[of_class == 4], torch.tensor(10.0), atol=1e-5)


def test_classes_are_drawn_as_often_as_the_client_holds_them():
    points, labels = two_blobs()
    _, of_class = drawn(summarise(points, labels, CellConfig(), SEED))
    assert float((of_class == 4).float().mean()) == pytest.approx(50 / 250, abs=0.03)


def test_a_class_with_fewer_examples_than_a_cell_must_have_is_left_out():
    points, labels = two_blobs()
    assert summarise(points, labels, CellConfig(least_in_cell=51), SEED)["label"].unique().tolist() == [0]
    assert len(summarise(points, labels, CellConfig(least_in_cell=201), SEED)["label"]) == 0


@given(least=st.integers(1, 30), cells=st.integers(1, 5))
def test_every_cell_stands_for_its_least_number_of_examples(least, cells):
    points, labels = two_blobs()
    counts = summarise(points, labels, CellConfig(cells=cells, least_in_cell=least), SEED)["count"]
    assert int(counts.min()) >= least
    assert int(counts.sum()) == len(points)


def test_a_single_example_is_its_own_mean_without_spread():
    statistics = summarise(torch.tensor([[1.0, 2.0]]), torch.tensor([3]), CellConfig(least_in_cell=1), SEED)
    assert statistics["mean"].tolist() == [[1.0, 2.0]]
    assert float(statistics["loadings"].abs().sum()) == 0


def test_an_outlier_counts_no_more_than_the_clipping_distance():
    points = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [8.0, 0.0]])
    rule = CellConfig(cells=1, directions=1, least_in_cell=1, clip=3.0)
    statistics = summarise(points, torch.zeros(4, dtype=torch.int64), rule, SEED)
    pulled = torch.tensor([-2.0, -2.0, -2.0, 3.0])
    assert statistics["mean"][0, 0].item() == pytest.approx(2.0 + pulled.mean().item())
    assert statistics["loadings"][0].norm().item() == pytest.approx((pulled**2).mean().sqrt().item())


def test_noise_shrinks_with_the_number_of_examples():
    def moved(count: int) -> float:
        points, labels = torch.zeros(count, 500), torch.zeros(count, dtype=torch.int64)
        rule = CellConfig(cells=1, directions=1, clip=1.0, noise=2.0)
        return float(summarise(points, labels, rule, SEED)["mean"].std())

    assert moved(10) == pytest.approx(2.0 / 10, rel=0.1)
    assert moved(100) == pytest.approx(2.0 / 100, rel=0.1)


def test_samples_keep_to_their_limits():
    points, labels = two_blobs()
    made, _ = drawn(summarise(points, labels, CellConfig(), SEED), limits=(-1.0, 1.0))
    assert float(made.min()) >= -1
    assert float(made.max()) <= 1


def one_point(label: int, value: float) -> Cells:
    """Always makes the same point of one class."""
    statistics = {
        "mean": torch.full((1, 1), value),
        "loadings": torch.zeros(1, 1, 1),
        "label": torch.tensor([label]),
        "count": torch.tensor([1]),
    }
    return Cells(statistics, (1,))


def mixture(shares: tuple[float, ...], batch: int) -> Mixture:
    parts = {3 * k: one_point(label=k, value=float(k)) for k in range(len(shares))}
    return Mixture(parts, shares, batch, SEED, torch.Tensor.neg)


def counts(source: Mixture, index: int) -> list[int]:
    return torch.bincount(source.latents(index)[OWNER], minlength=len(source.parts)).tolist()


def test_equal_shares_give_each_generator_the_same_number_of_images():
    assert counts(mixture((1.0, 1.0, 1.0), batch=96), index=5) == [32, 32, 32]


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=8), st.integers(1, 40), st.integers(0, 100))
def test_a_batch_is_always_full_and_within_one_image_of_every_share(shares, batch, index):
    found = counts(mixture(tuple(shares), batch), index)
    assert sum(found) == batch
    assert all(abs(n - batch * share / sum(shares)) < 1 + 1e-9 for n, share in zip(found, shares, strict=True))


def test_over_many_batches_more_generators_than_images_all_have_their_turn():
    source = mixture((1.0, 1.0, 2.0, 1.0), batch=2)
    total = np.sum([counts(source, index) for index in range(500)], axis=0)
    assert total.tolist() == pytest.approx([200, 200, 400, 200], rel=0.15)


def test_images_come_with_the_labels_of_their_makers_mapped_to_inputs():
    source = mixture((1.0, 3.0), batch=8)
    images, labels = source.inputs(source.latents(0))
    assert labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert images.flatten().tolist() == [-float(label) for label in labels]


def spread(seed: Seed = SEED, clients: tuple[int, ...] = (0, 1)) -> Mixture:
    points, labels = two_blobs()
    statistics = summarise(points, labels, CellConfig(), SEED)
    return Mixture({k: Cells(statistics, (3,)) for k in clients}, (1.0,) * len(clients), 8, seed, torch.Tensor.neg)


def test_a_batch_depends_on_its_index_and_on_the_seed_alone():
    first = spread().latents(4)
    spread().latents(9)
    assert all(torch.equal(first[name], value) for name, value in spread().latents(4).items())
    assert not torch.equal(first["z"], spread().latents(5)["z"])
    assert not torch.equal(first["z"], spread(Seed(2)).latents(4)["z"])


def test_what_a_client_contributes_depends_on_its_number_and_not_on_its_place():
    first, second = spread(clients=(1, 2)).latents(0), spread(clients=(0, 1)).latents(0)
    assert torch.equal(first["z"][first[OWNER] == 0], second["z"][second[OWNER] == 1])


def test_each_batch_is_mixed_with_as_many_generated_samples_each_used_once():
    task, seen = tiny_task(), []

    class Watch(torch.nn.Module):
        def forward(self, inputs):
            seen.append(inputs.flatten().tolist())
            return torch.zeros(len(inputs), 3, requires_grad=True)

    made = torch.arange(10.0, 20.0).view(10, 1, 1, 1)
    objective = beside(task.loss, made, torch.zeros(10, dtype=torch.int64), SEED.torch("order"))
    for count in (4, 3):
        objective(Watch(), torch.zeros(count, 1, 1, 1), torch.zeros(count, dtype=torch.int64))
    assert [len(row) for row in seen] == [8, 6]
    generated = seen[0][4:] + seen[1][3:]
    assert len(set(generated)) == 7
    assert min(generated) >= 10

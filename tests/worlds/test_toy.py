"""Toy models of superposition: right loss and gradient, known geometry, and how often training finds it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rkcnn_lib.worlds.toy import (
    INIT_NORM,
    ParallelToyModel,
    ToyModel,
    dimensionality,
    polygon,
    represented,
    true_directions,
)


def regular(n: int, start: float = 0.3) -> torch.Tensor:
    """Corners of a regular polygon on the unit circle, (n, 2)."""
    angles = start + 2 * math.pi * torch.arange(n) / n
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def slow_loss(W: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The loss of one instance, feature by feature and row by row."""
    total = torch.zeros(())
    for row in x:
        h = sum(row[i] * W[i] for i in range(len(W)))
        for i in range(len(W)):
            total = total + (row[i] - torch.relu(h @ W[i] + b[i])) ** 2
    return total / len(x)


def test_batched_loss_and_gradient_equal_a_slow_twin_per_instance():
    models = ParallelToyModel(3, 4, 2, 0.5, random_state=1)
    models.b += 0.1 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    x = models.data.sample(6)
    models.W.requires_grad_(True)
    losses = models.loss(x)
    (gradient,) = torch.autograd.grad(losses.sum(), models.W)
    for k in range(3):
        W = models.W[k].detach().clone().requires_grad_(True)
        slow = slow_loss(W, models.b[k], x[k])
        slow.backward()
        assert losses[k].item() == pytest.approx(slow.item(), rel=1e-5)
        assert torch.allclose(gradient[k], W.grad, atol=1e-6)


def test_training_one_instance_is_not_touched_by_its_neighbours():
    crowd = ParallelToyModel(3, 5, 2, [0.05, 0.3, 0.9], random_state=0)
    alone = ParallelToyModel(1, 5, 2, 0.05, random_state=0)
    alone.W = crowd.W[:1].clone()
    rows = [crowd.data.sample(64) for _ in range(20)]
    for models, batches in ((crowd, iter(rows)), (alone, iter([x[:1] for x in rows]))):
        models.data.sample = lambda n, batches=batches: next(batches)
        models.train(20, 64, progress=False)
    assert torch.allclose(crowd.W[:1], alone.W, atol=1e-5)


@pytest.mark.parametrize("n_instances", [1, 10, 400])
def test_initial_scale_is_independent_of_the_number_of_instances(n_instances):
    seeds = range(400 // n_instances)
    W = torch.cat([ParallelToyModel(n_instances, 8, 4, random_state=s).W for s in seeds])
    assert W.square().sum(-1).mean().sqrt() == pytest.approx(INIT_NORM, rel=0.03)
    # randn, not rand: directions fill all orthants
    assert (W > 0).float().mean() == pytest.approx(0.5, abs=0.03)


def test_biases_start_at_zero_and_hidden_is_x_times_w():
    models = ParallelToyModel(2, 5, 3)
    assert not models.b.any()
    x = models.data.sample(7)
    assert models.hidden(x).shape == (2, 7, 3)
    assert torch.allclose(models.hidden(x)[1], x[1] @ models.W[1])
    shared = models.hidden(x[0])
    assert shared.shape == (2, 7, 3) and torch.allclose(shared[1], x[0] @ models.W[1])


def test_single_model_is_one_instance_of_the_parallel_one():
    single, batch = ToyModel(5, 2, 0.1, random_state=4), ParallelToyModel(1, 5, 2, 0.1, random_state=4)
    single.train(30, progress=False)
    batch.train(30, progress=False)
    assert torch.equal(single.W, batch.W[0]) and torch.equal(single.b, batch.b[0])
    x = single.sample(9)
    assert x.shape == (9, 5) and single.hidden(x).shape == (9, 2) and single(x).shape == (9, 5)
    assert single.loss(x) == pytest.approx(batch.loss(x)[0].item())


def test_seeds_reproduce_training():
    W = [ToyModel(5, 2, 0.1, random_state=s).train(20, progress=False) for s in (3, 3, 4)]
    assert np.array_equal(W[0], W[1]) and not np.array_equal(W[0], W[2])


def test_history_has_a_loss_per_instance_that_falls():
    losses = ParallelToyModel(4, 5, 2, 0.05).train(250, progress=False)  # after 100, 200 and 250 steps
    assert losses.shape == (3, 4) and (losses[-1] < losses[0]).all()


def test_pentagon_in_at_least_19_of_20_instances_at_p_002():
    models = ParallelToyModel(20, 5, 2, 0.02, random_state=11)
    models.train(progress=False)
    assert sum(polygon(W) == "pentagon" for W in models.W) >= 19


def test_twenty_features_in_five_dimensions_are_mostly_represented():
    models = ParallelToyModel(3, 20, 5, 0.1, random_state=11)
    models.train(1000, progress=False)
    assert ((represented(models.W).sum(1) >= 15) & (represented(models.W).sum(1) <= 20)).all()


def test_dimensionality_of_an_antipodal_pair_is_one_half_and_of_a_pentagon_two_fifths():
    assert torch.allclose(dimensionality(regular(2)), torch.full((2,), 0.5))
    assert torch.allclose(dimensionality(regular(5)), torch.full((5,), 0.4))
    assert torch.allclose(dimensionality(torch.eye(3)), torch.ones(3))


def test_dimensionality_is_scale_free_and_survives_dropped_features():
    W = torch.cat([2 * regular(2), torch.zeros(1, 2)])
    assert dimensionality(W).tolist() == pytest.approx([0.5, 0.5, 0])
    assert dimensionality(W.expand(4, 3, 2)).shape == (4, 3)


def test_true_directions_are_the_unit_rows_of_represented_features():
    W = torch.tensor([[3.0, 4.0], [0.3, 0.3], [0.0, -0.6]])
    assert represented(W).tolist() == [True, False, True]
    assert torch.allclose(true_directions(W), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
    assert true_directions(0.2 * W).shape == (1, 2) and true_directions(0.01 * W).shape == (0, 2)


@pytest.mark.parametrize(
    ("W", "name"),
    [
        (regular(2), "digon"),
        (regular(3), "triangle"),
        (regular(4), "square"),
        (regular(5), "pentagon"),
        (torch.cat([regular(4), torch.zeros(1, 2)]), "square"),
        (regular(5)[:4], "irregular 4"),
        (regular(5)[[0, 0, 1, 2, 3, 4]], "irregular 6"),
        (regular(5)[:1], "single"),
        (0.1 * regular(5), "empty"),
        (torch.eye(2), "irregular 2"),
    ],
)
def test_polygons_are_named_by_their_angles(W, name):
    assert polygon(W[torch.randperm(len(W), generator=torch.Generator().manual_seed(0))]) == name


def test_a_polygon_may_be_bent_by_ten_degrees():
    def bent(degrees):
        W = regular(2, start=0.0)
        angle = math.radians(180 - degrees)
        W[1] = torch.tensor([math.cos(angle), math.sin(angle)])
        return W

    assert polygon(bent(9)) == "digon" and polygon(bent(11)) == "irregular 2"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParallelToyModel(0, 5, 2), "n_instances"),
        (lambda: ParallelToyModel(3, 5, 2, [0.1, 0.2]), "probabilities"),
        (lambda: ParallelToyModel(3, 5, 2, 2.0), "probability"),
        (lambda: ToyModel(5, 2, [[0.1] * 5]), "one model"),
        (lambda: ToyModel(5, 2).train(0), "steps"),
        (lambda: ToyModel(5, 2).train(5, lr=0.0), "lr"),
        (lambda: ToyModel(5, 2).hidden(torch.ones(3, 4)), "x must be"),
        (lambda: ParallelToyModel(3, 5, 2).hidden(torch.ones(2, 4, 5)), "x must be"),
    ],
)
def test_misuse_is_refused_with_a_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from rkcnn_lib.measure import recovery_rate
from rkcnn_lib.measure.recovery import match
from rkcnn_lib.probe import METHODS, mine
from tests.probe.planted import sparse_world

G = torch.Generator().manual_seed(1)
X, TRUTH = sparse_world(40, 20, 0.03, 6000, 0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_unit_seeded_directions_in_the_kind_given(method: str) -> None:
    D = mine(method, X[:2000], 24, random_state=1)
    assert isinstance(D, torch.Tensor) and D.dtype == torch.float32 and len(D) <= 24 and D.shape[1] == 20
    torch.testing.assert_close(D.norm(dim=1), torch.ones(len(D)))
    assert torch.equal(D, mine(method, X[:2000], 24, random_state=1))
    array = mine(method, X[:2000].numpy(), 24, random_state=1)
    assert isinstance(array, np.ndarray)
    np.testing.assert_allclose(array, D.numpy(), atol=1e-5)


CENTRED = (X[:1500] - X[:1500].mean(0)).double()
SAME = {
    "offset in one dimension": CENTRED + 1e5 * torch.eye(20)[3],
    "offset in all dimensions": CENTRED + 1e5,
    "tiny": CENTRED * 1e-12,
    "huge": CENTRED * 1e37,
    "array of reversed columns and back": CENTRED.numpy()[:, ::-1].copy()[:, ::-1],
    "every row upside down in memory": CENTRED.numpy()[::-1].copy()[::-1],
    "DataFrame": pd.DataFrame(CENTRED.numpy()),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore")
def test_neither_offset_nor_scale_nor_kind_of_the_rows_matters_to_any_method(method: str) -> None:
    plain = torch.as_tensor(mine(method, CENTRED, 24))
    for name, given in SAME.items():
        D = torch.as_tensor(np.asarray(mine(method, given, 24)))
        assert D.shape == plain.shape, name
        cosine = match(D, plain).cosines.mean()
        assert cosine > 0.98, (name, cosine)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore")
def test_constant_columns_and_duplicate_rows_do_no_harm_and_complex_rows_are_refused(method: str) -> None:
    wide = torch.cat([CENTRED, torch.full((len(CENTRED), 1), 7.0)], dim=1)
    for given in (wide, torch.cat([CENTRED, CENTRED[:300]])):
        D = mine(method, given, 24)
        assert 0 < len(D) <= 24 and torch.isfinite(D).all()
        torch.testing.assert_close(D.norm(dim=1), torch.ones(len(D), dtype=D.dtype))
    for given in (CENTRED.to(torch.complex64), CENTRED.numpy().astype(complex)):
        with pytest.raises(ValueError, match="complex"):
            mine(method, given, 24)
    with pytest.raises(ValueError, match="numbers are needed"):
        mine(method, np.array([["a", "b"], ["c", "d"]]), 2)


def test_ica_finds_the_same_features_wherever_the_rows_lie() -> None:
    S = (torch.rand(4000, 12, generator=G) < 0.1).float() * torch.rand(4000, 12, generator=G)
    mixing = normalize(torch.randn(12, 12, generator=G), dim=1)
    rows = (S @ mixing).double()
    found = []
    for offset in (0.0, 1e3 * torch.eye(12)[0], 1e5 * torch.eye(12)[0], 1e5):
        D = torch.as_tensor(mine("ica", rows + offset, 24)).float()
        found.append(float((D @ mixing.T).amax(0).mean()))
    assert found[0] > 0.95 and max(found) - min(found) < 0.02, found


def test_directions_of_the_covariance_have_it_and_nothing_more() -> None:
    scales = torch.linspace(0.1, 3, 20)
    D = mine("covariance", torch.randn(4000, 20, generator=G) * scales + 5.0, 6000)
    share = D.square().mean(0)
    torch.testing.assert_close(share, scales.square() / scales.square().sum(), rtol=0.2, atol=0.004)


def test_directions_of_the_active_subspace_fill_it_evenly_and_leave_it_nowhere() -> None:
    """Three dimensions, in a basis of their own, hold 99 % of the variance, one of them most."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(20, 20, generator=generator)).Q
    spread = torch.cat([torch.tensor([10.0, 2.0, 2.0]), torch.full((17,), 0.02)])
    X = torch.randn(4000, 20, generator=generator) * spread @ basis.T
    inside = {
        method: (mine(method, X, 400) @ basis[:, :3]).square().mean(0) for method in ("active_subspace", "covariance")
    }
    torch.testing.assert_close(inside["active_subspace"], torch.full((3,), 1 / 3), atol=0.05, rtol=0)
    assert (mine("active_subspace", X, 400) @ basis[:, 3:]).abs().max() < 0.02
    assert inside["covariance"][0] > 0.7, "draws from the covariance lie where the variance is"


def test_options_out_of_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="lift"):
        mine("rkcnn", X, 3, lift="no")
    for cosine in (float("nan"), 0.0, 1.5):
        with pytest.raises(ValueError, match="merge_cosine"):
            mine("rkcnn", X, 3, merge_cosine=cosine)


def test_lift_recovers_what_coordinates_null_and_random_do_not() -> None:
    found = {m: recovery_rate(mine(m, X, 80), TRUTH) for m in ("rkcnn", "rkcnn_coordinate", "rkcnn_null", "random")}
    assert found.pop("rkcnn") >= 0.9
    assert max(found.values()) <= 0.05, found


@pytest.mark.parametrize("method", ["pca", "ica"])
def test_both_signs_are_given_and_no_more_than_twice_the_dimension(method: str) -> None:
    D = mine(method, X[:2000], 100)
    assert len(D) == 40
    torch.testing.assert_close(D[::2], -D[1::2])


def test_ica_finds_independent_features() -> None:
    S = (torch.rand(5000, 6, generator=G) < 0.1).float()
    mixing = normalize(torch.randn(6, 6, generator=G), dim=1)
    assert (mine("ica", S @ mixing, 12) @ mixing.T).amax(0).min() > 0.95


def test_datapoints_are_centred_rows_and_no_row_twice() -> None:
    noise = torch.randn(30, 20, generator=G)
    rows = normalize(noise - noise.mean(0), dim=1)
    D = mine("datapoint", noise, 50)
    torch.testing.assert_close((D @ rows.T).amax(1), torch.ones(len(D)))
    assert len(D) == len(torch.unique((D @ rows.T).argmax(1)))


def test_kmeans_finds_planted_directions_of_clusters() -> None:
    centres = torch.eye(8)[torch.arange(4000) % 8] * 5 + 0.3 * torch.randn(4000, 8, generator=G)
    expected = normalize(torch.eye(8) - 1 / 8, dim=1)
    assert (mine("kmeans", centres, 32) @ expected.T).amax(0).min() > 0.95


def test_controls_spend_the_same_starts_and_differ_only_in_the_choice() -> None:
    best, other, bottom = (mine(m, X, 10, n_stages=1) for m in ("rkcnn", "rkcnn_unscored", "rkcnn_worst"))
    assert not torch.equal(best, other) and not torch.equal(best, bottom)


def test_fewer_rows_than_directions_still_work() -> None:
    for method in METHODS:
        D = mine(method, X[X.norm(dim=1) > 0][:12], 30)
        assert torch.isfinite(D).all() and 0 < len(D) <= 30, method


def test_unknown_methods_options_and_data_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown"):
        mine("magic", X, 3)
    with pytest.raises(ValueError, match="options"):
        mine("pca", X, 3, colour="red")
    with pytest.raises(ValueError, match="options"):
        mine("rkcnn", X, 3, colour="red")
    with pytest.raises(ValueError, match="NaN"):
        mine("pca", X * torch.nan, 3)
    with pytest.raises(ValueError, match="shape"):
        mine("pca", X[0], 3)
    with pytest.raises(ValueError, match="n_directions"):
        mine("pca", X, 0)

from __future__ import annotations

import numpy as np
import pytest
import torch

from rkcnn_lib.probe import Surrogate, permute_labels, surrogate


def _heavy_tailed(n: int = 20000) -> torch.Tensor:
    rng = np.random.RandomState(0)
    X = rng.standard_normal((n, 4)) @ rng.standard_normal((4, 4)) * np.exp(0.5 * rng.standard_normal((n, 1)))
    return torch.as_tensor(X + 3.0, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["gaussian", "elliptical"])
def test_surrogates_keep_mean_and_covariance(kind: str) -> None:
    X = _heavy_tailed()
    S = surrogate(X, kind, random_state=1)
    scale = X.std()
    torch.testing.assert_close(S.mean(0) / scale, X.mean(0) / scale, atol=0.05, rtol=0)
    torch.testing.assert_close(S.T.cov() / scale**2, X.T.cov() / scale**2, atol=0.1, rtol=0.05)
    assert not torch.allclose(S, surrogate(X, kind, random_state=2))


def test_elliptical_surrogate_keeps_every_mahalanobis_norm_and_gaussian_does_not() -> None:
    X = _heavy_tailed(2000)
    inverse = torch.linalg.inv(X.double().T.cov(correction=0))

    def norms(A: torch.Tensor) -> torch.Tensor:
        centred = A.double() - X.double().mean(0)
        return ((centred @ inverse) * centred).sum(1).sqrt()

    torch.testing.assert_close(norms(surrogate(X, "elliptical")), norms(X), atol=1e-3, rtol=1e-3)
    assert (norms(surrogate(X, "gaussian")) - norms(X)).abs().max() > 1


def test_rank_deficient_data_give_finite_surrogates() -> None:
    X = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 5)
    assert torch.isfinite(surrogate(X)).all()


def test_labels_of_a_group_stay_together() -> None:
    groups = np.repeat([3, 1, 2, 9], [5, 2, 4, 3])
    y = np.repeat(["a", "b", "a", "c"], [5, 2, 4, 3])
    permuted = permute_labels(y, groups, 1)
    assert all(len(set(permuted[groups == g])) == 1 for g in set(groups))
    assert len({tuple(permute_labels(y, groups, s)) for s in range(20)}) > 3


def test_sequences_within_groups_survive_and_no_label_is_lost() -> None:
    groups = np.repeat(np.arange(20), 6)
    y = np.tile([0, 0, 0, 1, 1, 2], 20)
    permuted = permute_labels(y, groups, 0)
    assert (permuted.reshape(20, 6) == [0, 0, 0, 1, 1, 2]).all()
    assert sorted(permute_labels(y, None, 0)) == sorted(y)
    assert (permute_labels(y, None, 0) != y).any()


def test_unknown_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown"):
        Surrogate(torch.zeros(3, 2), "cauchy")

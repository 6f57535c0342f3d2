"""Sparse autoencoders: ReLU with L1, TopK, BatchTopK and JumpReLU.

All four share ``z = act((x - b_dec) @ W_enc + b_enc)`` and ``x_hat = z @ W_dec + b_dec``, in the units of x, with
unit decoder rows; an architecture supplies only its activation function. ReLU + L1: Bricken et al. 2023, "Towards
Monosemanticity". TopK and AuxK: Gao et al. 2024, arXiv:2406.04093. BatchTopK: Bussmann, Leask & Nanda 2024,
arXiv:2412.06410. JumpReLU: Rajamanoharan et al. 2024, arXiv:2407.14435.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from rkcnn_lib.sae.sparse import Codes, decode_sparse, encode_sparse, select_batchtopk, select_topk
from rkcnn_lib.tensors import number, one_of, whole

USES = {"relu": ("l1",), "topk": ("k", "aux_k"), "batchtopk": ("k", "aux_k"), "jumprelu": ()}  # settings of each
ARCHITECTURES = tuple(USES)


@dataclass(frozen=True)
class SAEConfig:
    """What an SAE is, apart from its weights; ValueError for a value outside its range or that has no use."""

    d_in: int
    """Width of the activations."""
    d_sae: int
    """Number of latents."""
    architecture: str = "topk"
    """One of `ARCHITECTURES`."""
    k: int | None = None
    """Active latents a token, 1 to d_sae (topk), or on average over a batch (batchtopk)."""
    l1: float | None = None
    """Coefficient of the L1 penalty, summed over latents, for inputs of mean norm sqrt(d_in) (relu); 0 or more."""
    aux_k: int | None = None
    """Switch for the dead-latent remedy AuxK (topk and batchtopk): the number of dead latents that model the residual
    of each token. None is off."""
    aux_coefficient: float = 1 / 32
    """Weight of AuxK's squared error, as in Gao et al. 2024; positive."""

    def __post_init__(self) -> None:
        one_of("architecture", self.architecture, ARCHITECTURES)
        keep(self, whole, "d_in", "d_sae")
        keep(self, number, "aux_coefficient", interval="(0, inf)")
        for name in ("k", "aux_k", "l1"):
            value = getattr(self, name)
            if name in USES[self.architecture]:
                if name == "l1":
                    keep(self, number, name, interval="[0, inf)")
                elif name == "k" or value is not None:
                    keep(self, whole, name, most=self.d_sae)
            elif value is not None:
                raise ValueError(f"{name}={value} has no meaning for architecture={self.architecture!r}; leave it None")

    @property
    def uses_topk(self) -> bool:
        """Whether a fixed number of latents is active, so that training is sparse."""
        return "k" in USES[self.architecture]

    @property
    def n_active(self) -> int:
        """`k`; 0 where the architecture has none."""
        return self.k or 0


def keep(config: Any, check: Callable[..., Any], *names: str, **bounds: Any) -> None:
    """Keep settings of a frozen configuration as `check` returns them, Python's own numbers."""
    for name in names:
        object.__setattr__(config, name, check(name, getattr(config, name), **bounds))


def random_directions(n: int, d: int, random_state: int = 0) -> Tensor:
    """(n, d) unit rows, uniform on the sphere."""
    generator = torch.Generator().manual_seed(index(random_state))
    return nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)


class SAE(nn.Module):
    """A sparse autoencoder in raw units: activations go in and come out as they are.

    `random_state` seeds the random unit decoder rows; the encoder is tied to them at the start (``W_enc = W_dec^T``).

    Attributes
    ----------
    W_enc : (d_in, d_sae), W_dec : (d_sae, d_in) with unit rows, b_enc : (d_sae,), b_dec : (d_in,)
    threshold : (d_sae,)
        A pre-activation must exceed it for the latent to fire at inference (batchtopk and jumprelu).
        BatchTopK's, the same for all latents, is estimated at its start and at its end; it is 0, plain ReLU, before.
    history : list of dict
        What training logged: step, tokens, loss, explained_variance, l0, dead.
    snapshots : {step: (d_sae, d_in) copy of W_dec}
    """

    threshold: Tensor

    def __init__(self, config: SAEConfig, random_state: int = 0) -> None:
        super().__init__()
        self.config = config
        W_dec = random_directions(config.d_sae, config.d_in, random_state)
        self.W_dec = nn.Parameter(W_dec)
        # Column-major, so that its gradient, a sum of rows for each latent, needs no transposing copy.
        self.W_enc = nn.Parameter(W_dec.clone().t())
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        self.register_buffer("threshold", torch.zeros(config.d_sae))
        self.history: list[dict[str, float]] = []
        self.snapshots: dict[int, Tensor] = {}

    def pre_activations(self, x: Tensor) -> Tensor:
        """(x - b_dec) @ W_enc + b_enc: (..., d_in) to (..., d_sae)."""
        self._check_width(x)
        return (x.to(self.W_enc.dtype) - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Latent activations as at inference: (..., d_in) to (..., d_sae), non-negative; BatchTopK by its threshold."""
        pre = self.pre_activations(x)
        if self.config.architecture == "relu":
            return pre.relu()
        if self.config.architecture == "topk":
            flat = select_topk(pre.flatten(0, -2) if pre.ndim > 1 else pre[None], self.config.n_active)
            return torch.zeros_like(pre).flatten().index_copy(0, flat, pre.flatten()[flat].relu()).view_as(pre)
        return pre.relu() * (pre > self.threshold)

    def encode_batch(self, x: Tensor) -> Codes:
        """Sparse codes of x (n, d_in) as in training (topk and batchtopk), with sparse gradients."""
        self._check_width(x)
        select = select_topk if self.config.architecture == "topk" else select_batchtopk
        return encode_sparse(x.to(self.W_enc.dtype), self.W_enc, self.b_enc, self.b_dec, select, self.config.n_active)

    def decode(self, z: Tensor) -> Tensor:
        """Reconstructions: (..., d_sae) to (..., d_in)."""
        if z.shape[-1] != self.config.d_sae:
            raise ValueError(f"z has {z.shape[-1]} latents; this SAE has d_sae={self.config.d_sae}")
        return z @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``decode(encode(x))`` of x (n, d_in) by way of the active latents alone, without gradients.

        Returns x_hat (n, d_in), and the rows and latents (n_active,) of what is active, ordered by row.
        """
        is_topk = self.config.architecture == "topk"
        codes = self.encode_batch(x) if is_topk else Codes.from_dense(self.encode(x))
        # with many active latents a row, as an untrained relu has, gathering rows costs more than the product
        gather = len(codes.values) < 0.1 * codes.n_tokens * codes.n_latents
        written = decode_sparse(codes, self.W_dec) if gather else codes.dense() @ self.W_dec
        active = codes.values > 0
        return written + self.b_dec, codes.tokens[active], codes.latents[active]

    @torch.no_grad()
    def normalise_decoder_(self) -> None:
        """Give every decoder row norm 1; a zero row stays zero."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def scale_inputs_(self, scale: float) -> None:
        """Convert to inputs multiplied by `scale` > 0, and z and x_hat with them: exact for homogeneous functions."""
        for tensor in (self.b_enc, self.b_dec, self.threshold):
            tensor.mul_(scale)

    def _check_width(self, x: Tensor) -> None:
        if x.shape[-1] != self.config.d_in:
            raise ValueError(f"x has width {x.shape[-1]}; this SAE reads d_in={self.config.d_in}")

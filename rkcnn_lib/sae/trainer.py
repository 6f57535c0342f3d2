"""One SAE and its optimiser: a training step, and nothing about where batches come from.

Inputs are scaled to mean norm sqrt(d_in), so that a learning rate means the same on every model and layer; the
scale is folded back into the biases at the end.
"""

from __future__ import annotations

import copy
import math
import sys
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from rkcnn_lib.sae.architectures import SAE, keep
from rkcnn_lib.sae.inits import batch_threshold
from rkcnn_lib.sae.sparse import decode_sparse
from rkcnn_lib.tensors import number, switch, whole


@dataclass(frozen=True)
class TrainConfig:
    """How an SAE is trained; numpy's numbers are kept as Python's. ValueError for a value outside its range."""

    steps: int
    """Updates in all. The learning-rate schedule depends on it: a quarter of a run is not a shorter run."""
    batch_size: int = 1024
    """Tokens a step."""
    lr: float = 1e-3
    """Peak learning rate of Adam (betas 0.9 and 0.999), positive."""
    seed: int = 0
    """Decides the order of the data, a store's mine/train split, and the random start when none is given."""
    warmup: float = 0.05
    """Share of the steps over which the rate climbs linearly to lr."""
    decay: float = 0.2
    """Share of the steps over which the rate falls linearly towards 0 at the end."""
    cosine: bool = False
    """After the warm-up the rate falls to 0 along half a cosine, in place of `decay`."""
    twin_weight: float = 0.0
    """Weight of the consistency penalty: one less the mean cosine of decoder rows with the nearest row of a twin."""
    l1_warmup: float = 0.05
    """Share of the steps over which the L1 coefficient climbs linearly (relu)."""
    clip: float | None = None
    """Largest gradient norm, over all parameters. None is no clipping."""
    dead_tokens: int = 100_000
    """A latent counts as dead, in the history and for AuxK, once it has been silent for this many tokens."""
    log_every: int = 50
    """Steps between entries of the history."""
    snapshot_steps: tuple[int, ...] = ()
    """After how many updates (0 is the start) to keep a copy of W_dec."""
    checkpoint_every: int = 500
    """Steps between checkpoints, where a folder is given; the last step is always kept."""
    train_decoder: bool = True
    """False keeps the decoder rows where they start (a reference: what training the rest alone achieves)."""
    autocast: bool | None = None
    """bfloat16 for dense products. None is yes on CUDA and no elsewhere."""

    def __post_init__(self) -> None:
        keep(self, whole, "steps", "batch_size", "dead_tokens", "log_every", "checkpoint_every")
        keep(self, whole, "seed", least=0, most=2**63 - 1)
        keep(self, number, "lr", interval="(0, inf)")
        keep(self, number, "warmup", "decay", "l1_warmup", interval="[0, 1]")
        keep(self, number, "twin_weight", interval="[0, inf)")
        keep(self, switch, "train_decoder", "cosine")
        if self.clip is not None:
            keep(self, number, "clip", interval="(0, inf)")
        if self.autocast is not None:
            keep(self, switch, "autocast")
        shown = tuple(whole("snapshot_steps", step, 0, self.steps) for step in self.snapshot_steps)
        object.__setattr__(self, "snapshot_steps", shown)

    def lr_at(self, step: int) -> float:
        """Learning rate of update number `step`, 0 to steps - 1."""
        climb = (step + 1) / max(1.0, self.warmup * self.steps)
        if self.cosine:
            done = max(0.0, step / self.steps - self.warmup) / max(1 - self.warmup, 1 / self.steps)
            return self.lr * min(1.0, climb, (1 + math.cos(math.pi * done)) / 2)
        fall = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.lr * min(1.0, climb, fall)

    def l1_share_at(self, step: int) -> float:
        """Share of the L1 coefficient in force at update number `step`."""
        return min(1.0, (step + 1) / max(1.0, self.l1_warmup * self.steps))


class Output(NamedTuple):
    """What one forward pass in training gives."""

    loss: Tensor  # scalar, to be minimised
    x_hat: Tensor  # (batch, d_in) reconstruction
    fired: Tensor  # (d_sae,) bool, latents active on any token of the batch
    l0: Tensor  # scalar, mean number of active latents a token


def training_output(sae: SAE, x: Tensor, dead: Tensor | None = None, l1_share: float = 1.0) -> Output:
    """Loss and reconstruction of a batch x (n, d_in), in the units in which `sae` stands.

    The loss is the squared error, summed over dimensions and averaged over tokens; for relu plus the L1 penalty
    summed over latents (an average over latents would shrink it d_sae-fold and leave the code dense); with AuxK
    plus its squared error, `dead` (d_sae,) bool naming the latents that it revives.
    """
    if not sae.config.uses_topk:
        z = sae.pre_activations(x).relu()
        x_hat = sae.decode(z)
        loss = (x - x_hat).square().sum(1).mean() + l1_share * (sae.config.l1 or 0.0) * z.sum(1).mean()
        active = z > 0
        return Output(loss, x_hat, active.any(0), active.sum(1).float().mean())
    codes = sae.encode_batch(x)
    x_hat = decode_sparse(codes, sae.W_dec) + sae.b_dec
    loss = (x - x_hat).square().sum(1).mean()
    if sae.config.aux_k is not None and dead is not None and bool(dead.any()):
        loss = loss + sae.config.aux_coefficient * auxk_error(sae, x, (x - x_hat).detach(), dead)
    return Output(loss, x_hat, codes.active_latents(), (codes.values.detach() > 0).sum() / len(x))


def auxk_error(sae: SAE, x: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
    """Squared error of modelling `residual` (n, d_in) with each token's aux_k strongest dead latents.

    Minimising it pulls dead latents towards what the live ones miss (Gao et al. 2024, section 2.4 and appendix
    A.2). Only weights of dead latents get a gradient: `residual` and b_dec are constants here.
    """
    which = dead.nonzero().squeeze(1)
    pre = (x - sae.b_dec.detach()) @ sae.W_enc[:, which] + sae.b_enc[which]
    top = pre.topk(min(sae.config.aux_k or 0, len(which)), dim=1)
    z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    return (residual - z @ sae.W_dec[which]).square().sum(1).mean()


def twin_distance(W_dec: Tensor, twin: Tensor) -> Tensor:
    """One less the mean, over the unit rows of W_dec (d_sae, d_in), of the cosine with the nearest row of `twin`."""
    return 1 - (W_dec @ twin.T).amax(1).mean()


class Trainer:
    """An SAE in training: `train_step` until `step` reaches the configuration's `steps`, then `finished`.

    `init` is in raw units, and copied; `scale` is what raw inputs are multiplied by. `twin` (n, d_in) are the unit rows
    that `twin_weight` draws the decoder towards.
    """

    def __init__(self, init: SAE, config: TrainConfig, scale: float, twin: Tensor | None = None) -> None:
        if init.config.architecture == "jumprelu":
            raise ValueError("jumprelu is not trained here yet; train batchtopk, which is a JumpReLU at inference")
        self.sae = copy.deepcopy(init)
        self.sae.history, self.sae.snapshots = [], {}
        self.sae.requires_grad_(True)
        self.sae.normalise_decoder_()
        self.sae.scale_inputs_(scale)
        self.config = config
        self.scale = scale
        self.step = 0
        self.device = self.sae.W_dec.device
        self.twin = None if twin is None else twin.to(self.device)
        self.silent_tokens = torch.zeros(init.config.d_sae, dtype=torch.int64, device=self.device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=config.lr, fused=True)
        for parameter in self.sae.parameters():
            step = torch.zeros((), dtype=torch.float32, device=self.device)
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": step} | moments
        self.rows_at_once = sys.maxsize  # halved, from a batch's size on, whenever memory runs out
        self._take_snapshot()

    @property
    def done(self) -> bool:
        """Whether all steps are made."""
        return self.step >= self.config.steps

    def train_step(self, batch: Tensor) -> None:
        """One update on a batch (n, d_in) of raw activations; raises FloatingPointError on a non-finite loss.

        Where memory runs out, half as many tokens are worked on at a time, from then on, with a warning.
        """
        x = batch.to(self.device, torch.float32) * self.scale
        out = None
        while out is None:
            try:
                out = self._gradients(x)
            except torch.OutOfMemoryError as error:
                if self.sae.config.architecture == "batchtopk":
                    error.add_note("A part of a batch has other active latents than the whole: lower batch_size.")
                    raise
                if min(len(x), self.rows_at_once) == 1:
                    raise
                self.rows_at_once = math.ceil(min(len(x), self.rows_at_once) / 2)
            if out is None:  # outside the handler, which holds on to what filled the memory
                self.optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                warnings.warn(
                    f"out of memory: {self.rows_at_once} tokens at a time from step {self.step} on, their gradients "
                    "added up to those of the whole batch",
                    stacklevel=2,
                )
        self._update()
        self.silent_tokens += len(x)
        self.silent_tokens[out.fired] = 0
        self.step += 1
        if self.step == 1 or self.step % self.config.log_every == 0 or self.done:
            self._log(x, out)
        self._take_snapshot()

    def _gradients(self, x: Tensor) -> Output:
        """Fill in the gradients of a scaled batch, `rows_at_once` tokens at a time; returns what came out for it."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.twin is not None:
            (self.config.twin_weight * twin_distance(self.sae.W_dec, self.twin)).backward()
        kind, asked, dead, parts = self.device.type, self.config.autocast, self.dead_latents(), []
        for rows in x.split(min(len(x), self.rows_at_once)):
            with torch.autocast(kind, torch.bfloat16, kind == "cuda" if asked is None else asked):
                out = training_output(self.sae, rows, dead, l1_share=self.config.l1_share_at(self.step))
            loss = out.loss.item()
            if not math.isfinite(loss):
                raise FloatingPointError(f"loss is {loss} at step {self.step}")
            share = len(rows) / len(x)
            (out.loss if share == 1 else out.loss * share).backward()
            parts.append(out._replace(loss=out.loss.detach() * share, x_hat=out.x_hat.detach(), l0=out.l0 * share))
        if len(parts) == 1:
            return parts[0]
        loss, x_hat, fired, l0 = zip(*parts, strict=True)
        return Output(torch.stack(loss).sum(), torch.cat(x_hat), torch.stack(fired).any(0), torch.stack(l0).sum())

    def dead_latents(self) -> Tensor:
        """(d_sae,) bool: silent for at least `dead_tokens` tokens of training."""
        return self.silent_tokens >= self.config.dead_tokens

    def finished(self, rows: Tensor) -> SAE:
        """The SAE itself, brought back to raw units, which ends its training.

        BatchTopK's threshold at inference is the one that lets k latents a token through on `rows` (n, d_in) of
        training, in raw units: one that runs along lags behind the weights, far behind in a short training.
        """
        self.sae.zero_grad(set_to_none=True)
        self.sae.scale_inputs_(1 / self.scale)
        if self.sae.config.architecture == "batchtopk":
            n = min(1024, self.config.batch_size)
            self.sae.threshold.fill_(batch_threshold(self.sae, rows.to(self.device), n))
        return self.sae

    @torch.no_grad()
    def _update(self) -> None:
        """Adam, with decoder rows kept on the unit sphere: no gradient along a row, then renormalised."""
        gradient, rows = self.sae.W_dec.grad, self.sae.W_dec
        assert gradient is not None  # a batch has just been worked on
        if self.config.train_decoder:
            gradient.addcmul_(rows, torch.linalg.vecdot(gradient, rows)[:, None], value=-1)
        else:
            gradient.zero_()  # Adam then leaves the rows where they are
        if self.config.clip is not None:
            clip_grad_norm_(self.sae.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        self.optimizer.step()
        self.sae.normalise_decoder_()

    @torch.no_grad()
    def _log(self, x: Tensor, out: Output) -> None:
        """Add an entry about the batch just used, as it was before the update."""
        variance = (x - x.mean(0)).square().sum()
        entry = {"step": self.step, "tokens": self.step * self.config.batch_size, "loss": out.loss.item()}
        entry["explained_variance"] = float(1 - (x - out.x_hat).square().sum() / variance)
        entry |= {"l0": float(out.l0), "dead": float(self.dead_latents().float().mean())}
        self.sae.history.append(entry)

    def _take_snapshot(self) -> None:
        if self.step in self.config.snapshot_steps:
            self.sae.snapshots[self.step] = self.sae.W_dec.detach().cpu().clone()

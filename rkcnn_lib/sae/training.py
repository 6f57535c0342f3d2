"""Train one or several SAEs over one stream of activations, with checkpoints that resume (see `disk`)."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rkcnn_lib.files import plain_name
from rkcnn_lib.sae.architectures import SAE, SAEConfig
from rkcnn_lib.sae.disk import resume_checkpoint, save_checkpoint, sketch
from rkcnn_lib.sae.inits import ROWS, init_from_directions, sample_rows
from rkcnn_lib.sae.trainer import TrainConfig, Trainer
from rkcnn_lib.tensors import fingerprint, rows_or_store

Init = SAE | Callable[[int], SAE] | None


def train_sae(
    X: Any,
    config: SAEConfig,
    train_config: TrainConfig,
    init: SAE | None = None,
    *,
    twin: Tensor | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    split: str = "train",
    device: str | torch.device | None = None,
) -> SAE:
    """Train a sparse autoencoder.

    Parameters
    ----------
    X : (n, d_in) tensor or array, or an activation store
        Raw activations. A tensor is drawn in a new random order each epoch, whole batches only; a store through
        ``X.batches(batch_size, seed=, split=, start=)``, from the part that `split` names.
    init : SAE, optional
        Where to start, in raw units (`init_from_directions`); not changed. None is a random start.
    twin : (n, d_in) tensor of unit rows, optional
        Another seed's decoder, which `twin_weight`, above 0, draws this one towards.
    checkpoint : folder, optional
        Saved every `checkpoint_every` steps, and resumed when it holds a state; on the processor the result is the same
        to the bit as without the interruption.
    progress : bool
        Show loss, L0, dead latents and tokens a second.
    device : optional
        None is where `init` lives, or else where X's rows are.

    Returns
    -------
    SAE
        In raw units, with ``history`` (step, tokens, loss in scaled units, and of that step's batch explained_variance
        and l0; dead by the count of `dead_tokens`) and ``snapshots``.

    Raises
    ------
    ValueError
        On X that is empty, misshapen, not finite or shorter than a batch; an `init`, a twin or a checkpoint that does
        not fit; jumprelu.
    FloatingPointError
        When the loss or a weight is not finite; the message gives the step and the last good checkpoint.
    """
    X = rows_or_store(X)
    return _train([_Run(X, config, train_config, init, checkpoint, split, device, twin)], X, split, progress)[0]


def train_many(
    X: Any,
    arms: Mapping[str, tuple[SAEConfig, Init]],
    train_config: TrainConfig,
    seeds: Sequence[int] = (0,),
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    split: str = "train",
    device: str | torch.device | None = None,
) -> dict[tuple[str, int], SAE]:
    """Train several SAEs for several seeds, {(name, seed): SAE}; those of a seed see the same batches, each read once.

    An arm's result is what `train_sae` gives with the same seed, whatever else is trained beside it. All arms of a seed
    are in memory at once, about 12 bytes a parameter.

    Parameters
    ----------
    X, train_config, progress, split, device
        As for `train_sae`; the configuration's own seed is replaced.
    arms : {name: (SAEConfig, init)}
        init is an SAE, a function of the seed that gives one, or None for a random start.
    checkpoint : folder, optional
        Each run has ``NAME-seedN`` in it, so names must be those of folders, apart in more than their case.
    """
    seeds = list(seeds)
    if not arms or not seeds:
        raise ValueError("give at least one arm and one seed")
    if checkpoint is not None:
        folders = [plain_name(name, "arm").casefold() for name in arms]
        if len(set(folders)) < len(folders):
            raise ValueError(f"arms {', '.join(map(str, arms))}: two share a folder for their checkpoints; rename one")
    X, trained = rows_or_store(X), {}
    for seed in seeds:
        seeded, runs = replace(train_config, seed=seed), []
        for name, (config, init) in arms.items():
            start = init(seeded.seed) if callable(init) and not isinstance(init, SAE) else init
            folder = None if checkpoint is None else Path(checkpoint) / f"{name}-seed{seed}"
            runs.append(_Run(X, config, seeded, start, folder, split, device))
        saes = _train(runs, X, split, progress)
        trained |= {(name, seed): sae for name, sae in zip(arms, saes, strict=True)}
    return trained


def input_scale(rows: Tensor) -> float:
    """What brings rows (n, d) to mean norm sqrt(d)."""
    mean_norm = float(rows.double().norm(dim=1).mean())
    if mean_norm == 0:
        raise ValueError("X holds only zeros; there is nothing to learn")
    return math.sqrt(rows.shape[1]) / mean_norm


def batches(X: Any, batch_size: int, seed: int, split: str = "train", start: int = 0) -> Iterator[Tensor]:
    """Endless batches (batch_size, d_in), a function of the seed alone; `start` skips that many, cheaply.

    Epoch e of a tensor is a permutation drawn from (seed, e), so any position is reached without replaying.
    """
    if not isinstance(X, Tensor):
        yield from X.batches(batch_size, seed=seed, split=split, start=start)
        return
    per_epoch = len(X) // batch_size
    step, order = start, None
    while True:
        epoch, i = divmod(step, per_epoch)
        if order is None or i == 0:
            state = np.random.SeedSequence([seed, epoch]).generate_state(1)[0]
            order = torch.randperm(len(X), generator=torch.Generator().manual_seed(int(state))).to(X.device)
        yield X[order[i * batch_size : (i + 1) * batch_size]]
        step += 1


class _Run(Trainer):
    """A trainer with its checkpoint folder, validated and resumed."""

    def __init__(
        self,
        X: Any,
        config: SAEConfig,
        train_config: TrainConfig,
        init: SAE | None,
        checkpoint: str | os.PathLike[str] | None,
        split: str,
        device: str | torch.device | None,
        twin: Tensor | None = None,
    ) -> None:
        self.rows = sample_rows(X, ROWS, train_config.seed, split, d_in=config.d_in)
        if isinstance(X, Tensor) and len(X) < train_config.batch_size:
            raise ValueError(f"X has {len(X)} rows; batch_size={train_config.batch_size} needs at least that many")
        if init is None:
            init = init_from_directions(config, X=self.rows, random_state=train_config.seed)
        elif init.config != config:
            raise ValueError(f"init was made for {init.config}, training asks for {config}")
        for name, tensor in init.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"init holds NaN or infinite values in {name}")
        if (twin is None) != (train_config.twin_weight == 0):
            raise ValueError(f"twin_weight={train_config.twin_weight}: a twin goes with a weight above 0")
        if twin is not None and twin.shape[1:] != (config.d_in,):
            raise ValueError(f"twin has shape {tuple(twin.shape)}; expected (n, {config.d_in})")
        if device is not None:
            init = copy.deepcopy(init).to(device)
        super().__init__(init, train_config, input_scale(self.rows), twin)
        self.folder = None if checkpoint is None else Path(checkpoint)
        # The rows are read; the start was computed, and another device computes it a little differently.
        start = {f"init {name}": sketch(tensor) for name, tensor in init.state_dict().items()}
        self.identity = {"data": fingerprint(self.rows)} | start | ({} if twin is None else {"twin": sketch(twin)})
        if self.folder is not None:
            resume_checkpoint(self, self.folder, self.identity)
        self.saved_step = self.step or None

    def train_step(self, batch: Tensor) -> None:
        try:
            super().train_step(batch)
            due = self.done or self.step % self.config.checkpoint_every == 0
            if due and not all(torch.isfinite(parameter).all() for parameter in self.sae.parameters()):
                raise FloatingPointError(f"weights are not finite after step {self.step}")
        except FloatingPointError as error:
            good = "none was kept" if self.saved_step is None else f"step {self.saved_step} in {self.folder}"
            raise FloatingPointError(f"{error}; last good checkpoint: {good}. Try a lower lr or clip=1.0") from error
        if due and self.folder is not None:
            save_checkpoint(self, self.folder, self.identity)
            self.saved_step = self.step


def _train(runs: list[_Run], X: Any, split: str, progress: bool) -> list[SAE]:
    """Feed every run the same batches; one that resumed further on waits for the others. Returns what came of each."""
    config, start, began = runs[0].config, min(run.step for run in runs), time.perf_counter()
    stream = batches(X, config.batch_size, config.seed, split, start)
    hidden = not progress or start == config.steps
    with tqdm(total=config.steps, initial=start, disable=hidden, unit="step", mininterval=1.0) as bar:
        for step in range(start, config.steps):
            batch = next(stream, None)
            if batch is None:
                raise ValueError(f"the data ended after {step} batches; steps={config.steps} needs an endless stream")
            for run in runs:
                if run.step == step:
                    run.train_step(batch)
            bar.update()
            last = [run.sae.history[-1] for run in runs]
            if last[-1]["step"] == step + 1:
                loss, l0, dead = (sum(entry[name] for entry in last) / len(last) for name in ("loss", "l0", "dead"))
                speed = (step + 1 - start) * config.batch_size / (time.perf_counter() - began)
                bar.set_postfix_str(f"loss {loss:.4g}, L0 {l0:.1f}, dead {dead:.1%}, {speed:,.0f} tokens/s")
    return [run.finished(run.rows) for run in runs]

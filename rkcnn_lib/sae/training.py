"""Train one or several SAEs over one stream of activations, with checkpoints that resume (see `disk`)."""

from __future__ import annotations

import copy
import inspect
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rkcnn_lib.files import plain_name
from rkcnn_lib.sae.architectures import SAE, SAEConfig
from rkcnn_lib.sae.disk import resume_checkpoint, save_checkpoint, sketch
from rkcnn_lib.sae.inits import init_from_directions, sample_rows
from rkcnn_lib.sae.trainer import TrainConfig, Trainer
from rkcnn_lib.tensors import fingerprint, rows_or_store

SCALE_ROWS = 8192

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
        ``X.batches(batch_size, seed=, split=)``.
    config : SAEConfig
    train_config : TrainConfig
    init : SAE, optional
        Where to start, in raw units (`init_from_directions`); not changed. None is a random start.
    twin : (n, d_in) tensor of unit rows, optional
        Another seed's decoder, which `twin_weight`, above 0, draws this one towards.
    checkpoint : folder, optional
        Saved every `checkpoint_every` steps, and resumed when it holds a state; on the processor the result is
        the same to the bit as without the interruption.
    progress : bool
        Show loss, L0, dead latents and tokens a second.
    split : str
        Part of a store to train on.
    device : optional
        None is where `init` lives, or else where X's rows are.

    Returns
    -------
    SAE
        In raw units, with ``history`` (step, tokens, loss in scaled units, and of that step's batch
        explained_variance and l0; dead by the count of `dead_tokens`) and ``snapshots``.

    Raises
    ------
    ValueError
        On X that is empty, misshapen, not finite or shorter than a batch; an `init`, a twin or a checkpoint that does
        not fit; jumprelu.
    FloatingPointError
        When the loss or a weight is not finite; the message gives the step and the last good checkpoint.
    """
    X = rows_or_store(X)
    run = _Run(X, config, train_config, init, checkpoint, split, device, twin)
    _train([run], X, train_config, split, progress)
    return run.trainer.finished(run.rows)


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
    seeds : sequence of int
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
        seeded = replace(train_config, seed=seed)
        runs = {}
        for name, (config, init) in arms.items():
            start = init(seeded.seed) if callable(init) and not isinstance(init, SAE) else init
            folder = None if checkpoint is None else Path(checkpoint) / f"{name}-seed{seed}"
            runs[name] = _Run(X, config, seeded, start, folder, split, device)
        _train(list(runs.values()), X, seeded, split, progress)
        trained |= {(name, seed): run.trainer.finished(run.rows) for name, run in runs.items()}
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
        if "start" in inspect.signature(X.batches).parameters:
            yield from X.batches(batch_size, seed=seed, split=split, start=start)
        else:
            yield from islice(X.batches(batch_size, seed=seed, split=split), start, None)
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


class _Run:
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
        rows = sample_rows(X, SCALE_ROWS, train_config.seed, split, d_in=config.d_in)
        if isinstance(X, Tensor) and len(X) < train_config.batch_size:
            raise ValueError(f"X has {len(X)} rows; batch_size={train_config.batch_size} needs at least that many")
        if init is None:
            init = init_from_directions(config, X=rows, random_state=train_config.seed)
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
        self.trainer = Trainer(init, train_config, input_scale(rows), twin)
        self.folder = None if checkpoint is None else Path(checkpoint)
        # The rows are read; the start was computed, and another device computes it a little differently.
        start = {f"init {name}": sketch(tensor) for name, tensor in init.state_dict().items()}
        self.identity = {"data": fingerprint(rows)} | start | ({} if twin is None else {"twin": sketch(twin)})
        self.rows = rows
        self.saved_step: int | None = None
        if self.folder is not None:
            resume_checkpoint(self.trainer, self.folder, self.identity)
            self.saved_step = self.trainer.step or None

    def train_step(self, batch: Tensor) -> None:
        try:
            self.trainer.train_step(batch)
            due = self.trainer.done or self.trainer.step % self.trainer.config.checkpoint_every == 0
            if due and not all(torch.isfinite(parameter).all() for parameter in self.trainer.sae.parameters()):
                raise FloatingPointError(f"weights are not finite after step {self.trainer.step}")
        except FloatingPointError as error:
            good = "none was kept" if self.saved_step is None else f"step {self.saved_step} in {self.folder}"
            raise FloatingPointError(f"{error}; last good checkpoint: {good}. Try a lower lr or clip=1.0") from error
        if due and self.folder is not None:
            save_checkpoint(self.trainer, self.folder, self.identity)
            self.saved_step = self.trainer.step


def _train(runs: list[_Run], X: Any, config: TrainConfig, split: str, progress: bool) -> None:
    """Feed every run the same batches; one that resumed further on waits for the others."""
    start = min(run.trainer.step for run in runs)
    if start >= config.steps:
        return
    stream = batches(X, config.batch_size, config.seed, split, start)
    began = time.perf_counter()
    with tqdm(total=config.steps, initial=start, disable=not progress, unit="step", mininterval=1.0) as bar:
        for step in range(start, config.steps):
            batch = next(stream, None)
            if batch is None:
                raise ValueError(f"the data ended after {step} batches; steps={config.steps} needs an endless stream")
            for run in runs:
                if run.trainer.step == step:
                    run.train_step(batch)
            bar.update()
            if runs[-1].trainer.history and runs[-1].trainer.history[-1]["step"] == step + 1:
                seconds = time.perf_counter() - began
                _show(bar, runs, (step + 1 - start) * config.batch_size / seconds)


def _show(bar: tqdm, runs: list[_Run], tokens_per_second: float) -> None:
    """Loss, L0 and dead latents, averaged over the arms trained side by side."""
    last = [run.trainer.history[-1] for run in runs]
    mean = {name: sum(entry[name] for entry in last) / len(last) for name in ("loss", "l0", "dead")}
    bar.set_postfix_str(
        f"loss {mean['loss']:.4g}, L0 {mean['l0']:.1f}, dead {mean['dead']:.1%}, {tokens_per_second:,.0f} tokens/s"
    )

"""Training the modular-addition transformer to grokking, with checkpoints along the way.

Setting of Nanda et al. 2023 ("Progress measures for grokking via mechanistic interpretability", section 3 and
appendix A): one block without layer norm, full-batch AdamW (lr 1e-3, weight decay 1 on every weight, betas 0.9 and
0.98, ten steps of warm-up), cross-entropy in float64 at the ``=`` only. The pairs trained on are drawn from those
that no activation store holds out (:func:`rkcnn_lib.worlds.models.modadd.held_out_pairs`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from rkcnn_lib.files import read_json, whole_folder, write_json, write_whole
from rkcnn_lib.measure.fourier import circuit
from rkcnn_lib.worlds.models import modadd
from rkcnn_lib.worlds.models.modadd import training_pairs

MEASURE_EVERY = 100


@dataclass(frozen=True)
class Settings:
    """What a training run is made of; a checkpoint made with other settings is refused.

    Attributes
    ----------
    p : modulus; tokens 0 to p - 1 are numbers, token p is ``=``.
    d_model, n_heads, d_mlp : sizes of the block.
    train_share : share of the p * p pairs that is trained on; they are drawn under ``seed``.
    steps, seed, lr, weight_decay, warmup : of the optimiser. The seed also draws the first weights.
    checkpoint_every : steps between checkpoints.
    """

    p: int = 113
    d_model: int = 128
    n_heads: int = 4
    d_mlp: int = 512
    train_share: float = 0.3
    steps: int = 15_000
    seed: int = 0
    lr: float = 1e-3
    weight_decay: float = 1.0
    warmup: int = 10
    checkpoint_every: int = 1000


def _check_settings(s: Settings) -> None:
    """Raise ValueError for settings that cannot work."""
    if s.p < 5 or s.d_model % s.n_heads or s.steps < 1 or not 0 < s.train_share <= 0.8:
        raise ValueError(
            f"p = {s.p}, d_model = {s.d_model}, n_heads = {s.n_heads}, steps = {s.steps}, "
            f"train_share = {s.train_share}: expected p >= 5, d_model a multiple of n_heads, steps >= 1, "
            "0 < train_share <= 0.8"
        )


def initial_weights(settings: Settings) -> dict[str, Tensor]:
    """Return Gaussian first weights of standard deviation 1 / sqrt(d_model), those of W_U 1 / sqrt(vocabulary)."""
    generator = torch.Generator().manual_seed(settings.seed)
    d, vocabulary = settings.d_model, settings.p + 1
    shapes = {
        "W_E": (vocabulary, d), "W_pos": (3, d), "W_Q": (d, d), "W_K": (d, d), "W_V": (d, d), "W_O": (d, d),
        "W_in": (d, settings.d_mlp), "W_out": (settings.d_mlp, d), "W_U": (d, vocabulary),
    }  # fmt: skip
    weights = {
        name: torch.randn(shape, generator=generator) / (vocabulary if name == "W_U" else d) ** 0.5
        for name, shape in shapes.items()
    }
    return weights | {"b_in": torch.zeros(settings.d_mlp), "b_out": torch.zeros(d)}


def at_equals(weights: dict[str, Tensor], a: Tensor, b: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    """Return (n, d_mlp) neurons and (n, p + 1) logits at the ``=`` of the inputs (a, b, =), a and b (n,) numbers.

    The full model's, computed faster: keys and values depend on token and position alone, so that 2 p + 1 rows of
    them serve all pairs, and nothing is computed at the positions that no loss reads.
    """
    W_E, W_pos, d = weights["W_E"], weights["W_pos"], weights["W_E"].shape[1]
    p = len(W_E) - 1
    x = torch.cat([W_E[:p] + W_pos[0], W_E[:p] + W_pos[1], W_E[p:] + W_pos[2]])  # (2 p + 1, d): a, b, =
    query = (x[-1:] @ weights["W_Q"]).view(n_heads, -1)
    keys, values = ((x @ weights[name]).view(len(x), n_heads, -1) for name in ("W_K", "W_V"))
    scores = torch.einsum("hc,nhc->nh", query, keys) / (d // n_heads) ** 0.5
    pattern = torch.stack([scores[a], scores[p + b], scores[-1].expand(len(a), n_heads)]).softmax(0)[..., None]
    mixed = pattern[0] * values[a] + pattern[1] * values[p + b] + pattern[2] * values[-1]  # (n, heads, d_head)
    resid = x[-1] + mixed.flatten(1) @ weights["W_O"]
    neurons = F.relu(resid @ weights["W_in"] + weights["b_in"])
    return neurons, (resid + neurons @ weights["W_out"] + weights["b_out"]) @ weights["W_U"]


@torch.no_grad()
def loss_and_accuracy(weights: dict[str, Tensor], pairs: Tensor, n_heads: int) -> tuple[float, float]:
    """Return mean cross-entropy in nats (computed in float64) and the share of pairs answered rightly."""
    a, b = pairs.T
    logits = at_equals(weights, a, b, n_heads)[1].double()
    answer = (a + b) % (len(weights["W_E"]) - 1)
    return F.cross_entropy(logits, answer).item(), (logits.argmax(1) == answer).double().mean().item()


def train(
    out: Path,
    settings: Settings | None = None,
    device: str | torch.device = "cpu",
    stop_at: int | None = None,
    progress: bool = True,
) -> Path:
    """Train the model and write its folder; an interrupted run goes on where it stopped.

    Parameters
    ----------
    out : folder to write: ``config.json``, ``model.safetensors``, ``history.json`` (loss and accuracy
        on trained and untrained pairs every 100 steps), and ``checkpoint-STEP`` with the weights then.
    settings : sizes, seed and steps; those of the embedded model by default.
    device : where to train. Same settings, device and thread count: same weights.
    stop_at : leave after this many steps with a checkpoint, as an interrupted run would.

    Returns
    -------
    out

    Raises
    ------
    ValueError : settings that cannot work, or a checkpoint in ``out`` that belongs to other settings.
    """
    settings = settings or Settings()
    _check_settings(settings)
    weights = {name: value.to(device).requires_grad_() for name, value in initial_weights(settings).items()}
    optimizer = torch.optim.AdamW(
        weights.values(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    done, history = _resume(out, settings, weights, optimizer)
    pairs = training_pairs(settings.p, settings.train_share, settings.seed).to(device)
    unseen = modadd.all_pairs(settings.p)[modadd.untrained(settings.p, pairs.cpu())].to(device)
    a, b = pairs.T
    answer = (a + b) % settings.p
    bar = tqdm(total=settings.steps, initial=done, desc="modadd", unit="step", disable=not progress)
    for step in range(done, min(settings.steps, stop_at or settings.steps)):
        optimizer.param_groups[0]["lr"] = settings.lr * min(1.0, (step + 1) / settings.warmup)
        loss = F.cross_entropy(at_equals(weights, a, b, settings.n_heads)[1].double(), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.update()
        if (step + 1) % MEASURE_EVERY == 0 or step + 1 == settings.steps:
            history.append(_measure(step + 1, weights, pairs, unseen, settings.n_heads))
            bar.set_postfix({name: f"{value:.3g}" for name, value in history[-1].items() if name != "step"})
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 in (stop_at, settings.steps):
            _save_checkpoint(out, step + 1, settings, weights, optimizer, history)
    bar.close()
    if not stop_at:
        _write_folder(out, settings, weights, history)
    return out


def _measure(step: int, weights: dict[str, Tensor], pairs: Tensor, unseen: Tensor, n_heads: int) -> dict[str, Any]:
    trained, held_out = (loss_and_accuracy(weights, some, n_heads) for some in (pairs, unseen))
    return {
        "step": step, "train_loss": trained[0], "train_accuracy": trained[1], "held_out_loss": held_out[0],
        "held_out_accuracy": held_out[1],
    }  # fmt: skip


def _save_checkpoint(
    out: Path, step: int, settings: Settings, weights: dict[str, Tensor], optimizer: Any, history: list[dict[str, Any]]
) -> None:
    """Write a folder that gets its name when whole; only the newest keeps the optimiser's state."""
    state = {
        f"{i}.{name}": value.cpu().contiguous()
        for i, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    final = out / f"checkpoint-{step:06d}"
    shutil.rmtree(final, ignore_errors=True)
    with whole_folder(final) as part:
        save_file(_plain(weights), part / "weights.safetensors")
        save_file(state, part / "optimizer.safetensors")
        about = {"step": step, "settings": asdict(settings), "history": history}
        write_json(part / "state.json", about, indent=None)
    for old in out.glob("checkpoint-??????"):
        if old != final:
            (old / "optimizer.safetensors").unlink(missing_ok=True)


def _resume(
    out: Path, settings: Settings, weights: dict[str, Tensor], optimizer: Any
) -> tuple[int, list[dict[str, Any]]]:
    """Load the newest whole checkpoint; return the number of steps done and the history (0, [] without one)."""
    found = sorted(path.parent for path in out.glob("checkpoint-??????/optimizer.safetensors"))
    if not found:
        return 0, []
    state = read_json(found[-1] / "state.json")
    if state["settings"] != asdict(settings):
        raise ValueError(f"{found[-1]} was made with other settings: delete it, or choose another --out")
    stored = load_file(found[-1] / "weights.safetensors")
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(stored[name])
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(found[-1] / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return state["step"], state["history"]


def _write_config(folder: Path, settings: dict[str, Any]) -> None:
    """Write ``config.json``: sizes by the names that language models use, and the settings of the training."""
    config = {
        "model_type": modadd.MODEL_TYPE, "num_hidden_layers": 1, "hidden_size": settings["d_model"],
        "intermediate_size": settings["d_mlp"], "num_attention_heads": settings["n_heads"],
        "max_position_embeddings": modadd.N_TOKENS, "vocab_size": settings["p"] + 1, "training": settings,
    }  # fmt: skip
    write_json(folder / "config.json", config)


def _write_folder(out: Path, settings: Settings, weights: dict[str, Tensor], history: list[dict[str, Any]]) -> None:
    """Write what :func:`rkcnn_lib.worlds.load_model` reads; the weights last, since they say that it is whole."""
    _write_config(out, asdict(settings))
    write_json(out / "history.json", history, indent=None)
    write_whole(out / "model.safetensors", lambda new: save_file(_plain(weights), new))


def _plain(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}


@torch.no_grad()
def check(folder: Path) -> dict[str, str]:
    """Measure a trained folder: when it fitted and when it grokked, and whether it is the Fourier circuit.

    Accuracy and losses are those of the pairs it was never trained on.

    Raises
    ------
    ValueError : the folder holds no trained modular-addition model.
    """
    weights = modadd.read_weights(folder)
    settings = Settings(**modadd.read_config(folder)["training"])
    p, pairs = settings.p, modadd.all_pairs(settings.p)
    neurons, logits = at_equals(weights, *pairs.T, settings.n_heads)
    found = circuit(
        weights["W_E"][:p],
        neurons,
        logits[:, :p],
        modadd.untrained(p, training_pairs(settings.p, settings.train_share, settings.seed)),
    )
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    shown = {
        f"first step with {kind.replace('_', ' ')} > 99.9 %": str(
            next((row["step"] for row in history if row[kind] > 0.999), "never")
        )
        for kind in ("train_accuracy", "held_out_accuracy")
    }
    shown |= {"steps": str(settings.steps), "key frequencies": ", ".join(map(str, found.frequencies))}
    for name, value in found.figures.items():
        level = found.chance.get(name)
        shown[name.replace("_", " ")] = f"{value:.6f}" + (f"   (chance {level.mean:.4f})" if level else "")
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: ``train`` makes the weights, ``check`` measures those of a folder."""
    standard = Settings()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedded.modadd", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("train", help="train from a seed; goes on where it was interrupted")
    making.add_argument("--out", type=Path, default=Path("outputs/modadd"), help="folder to write")
    making.add_argument("--p", type=int, default=standard.p, help="modulus")
    making.add_argument("--steps", type=int, default=standard.steps, help="training steps")
    making.add_argument("--seed", type=int, default=standard.seed)
    making.add_argument("--device", default="cpu")
    measuring = commands.add_parser("check", help="accuracy, key frequencies and their losses of a trained folder")
    measuring.add_argument("--model", type=Path, default=modadd.FOLDER, help="folder to measure")
    given = parser.parse_args(arguments)
    try:
        folder = given.model if given.command == "check" else given.out
        if given.command == "train":
            settings = Settings(p=given.p, steps=given.steps, seed=given.seed)
            train(given.out, settings, device=given.device)
            print(f"trained model written to {given.out}")
        for name, value in check(folder).items():
            print(f"{name:58s} {value}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

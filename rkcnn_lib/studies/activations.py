"""The study behind 03, and the activations that 04 and 06 open: one store, what it is, whether it is right."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import display
from scipy import stats

from rkcnn_lib import worlds
from rkcnn_lib.probe.nulls import surrogate
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import Cache
from rkcnn_lib.studies.toy import train_space
from rkcnn_lib.tensors import chance_level, chunks
from rkcnn_lib.worlds.toy import INVENTED_MODELS, PLANTED, TOY

# Rows captured again must equal the stored ones but for the rounding of the stored type.
STORED_PRECISION = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-5}


def open_store(run: Run) -> Any:
    """Open the activations that a run's parameters name, or capture them, and record what they are."""
    store = opened(run.p, run.device)
    run.note(data=store.manifest)
    return store


def opened(p: Any, device: str) -> Any:
    """Open the activations that parameters of one layer name, or capture them."""
    (store,) = opened_layers(p, [p.layer], [p.hook], device).values()
    return store


def opened_layers(p: Any, layers: list[int] | None, hooks: list[str], device: str) -> dict[tuple[int, str], Any]:
    """Open the activations at some layers (None: all) and hooks, or capture them in one pass, by layer and hook."""
    if p.model in INVENTED_MODELS:
        return {(0, hook): invented_store(p.model, p.n_tokens) for hook in hooks}
    facts = worlds.model_facts(p.model, p.revision)
    blocks = range(facts.n_layers) if layers is None else sorted({worlds.check_layer(facts, at) for at in layers})
    how = {"text": p.text, "context_size": p.context_size, "device": device, "revision": p.revision}
    return worlds.capture_layers(p.model, blocks, hooks, p.n_tokens, **how)


def invented_store(model: str, n_rows: int) -> worlds.MemoryStore:
    """Return activations made here, whose true directions are known (``store.truth``)."""
    if model in PLANTED:
        world = worlds.PlantedDictionary(**PLANTED[model], random_state=0)
        store = worlds.MemoryStore(world.sample(n_rows)[0], name=model, truth=world.directions, **PLANTED[model])
        store.rates = world.rates  # of each true direction, for recovery by rate
        return store
    toy = train_space(**TOY, seed=0)
    return worlds.MemoryStore(toy.draw(n_rows, seed=1)[1], name="toy", truth=toy.truth, **TOY)


def describe(store: Any) -> None:
    """Show what a store holds: model, hook, text (and which sources failed before it), sizes, loss."""
    manifest = store.manifest
    if "hook_name" not in manifest:  # invented activations: no model, no text
        shown = {name: value for name, value in manifest.items() if name not in ("format", "key")}
    else:
        text, first = manifest["text"], manifest.get("first_position", 1)
        left_out = "position 0" if first == 1 else f"positions 0 to {first - 1}"
        shown = {
            "model": f"{manifest['title']} ({manifest['identity'][:19]}...)",
            "activations": f"{manifest['hook_name']}, {store.d_in} wide, stored as {manifest['dtype']}",
            "text": text["name"],
            "sources that failed before it": "; ".join(text["failed_before"]) or "none",
            "tokens": f"{len(store):,} in {manifest['n_contexts']:,} contexts of {manifest['context_size']}",
            "documents": f"{manifest['n_documents']:,}, of which {manifest['n_documents_held_out']:,} held out",
            "left out everywhere": f"{left_out} and special tokens: {int((~store.mask).sum()):,} rows",
            "model's loss": "{nats:.3f} nats a token on {n_tokens:,} held-out tokens".format(**manifest["loss"]),
            "notes": "; ".join(manifest["notes"]) or "none",
        }
    with pd.option_context("display.max_colwidth", None):
        display(pd.DataFrame({"": shown.keys(), "value": map(str, shown.values())}).set_index(""))


def checks(store: Any, run: Run) -> list[Check]:
    """Return the checks of 03's gate: width, checksums, rows captured again, the model's loss on the text."""
    p, dtype, whole = run.p, store.manifest["dtype"], "equal"
    facts = worlds.model_facts(p.model, p.revision)
    width = worlds.hook_width(facts, p.hook)
    try:
        store.verify()
    except Exception as error:  # the gate reports what is wrong with the files instead of ending the notebook
        whole = str(error)
    difference, allowed = _recapture_error(store, run), STORED_PRECISION[dtype]
    nats, most = store.manifest["loss"]["nats"], math.log(facts.vocab_size) + 0.5
    return [
        Check("width of the activations", store.d_in, f"= {width}, {p.hook} of {p.model}", store.d_in == width),
        Check("checksums of the shards", whole, "equal", whole == "equal"),
        Check("rows captured again, largest relative difference", difference, f"<= {allowed} ({dtype})",
              difference <= allowed),
        Check("loss on held-out text, nats a token", nats, f"<= ln(vocabulary) + 0.5 = {most:.2f}", nats <= most,
              chance=f"token frequencies {token_entropy(store):.2f}"),
    ]  # fmt: skip


def _recapture_error(store: Any, run: Run) -> float:
    p, size = run.p, store.manifest["context_size"]
    lm = worlds.load_model(p.model, revision=p.revision, device=run.device)
    tokens = torch.as_tensor(store.tokens[: 4 * size]).long().view(4, size)
    again = worlds.capture(lm, tokens, layer=store.manifest["layer"], hook=p.hook).float().cpu()
    return float(((again - store[: len(again)]).norm(dim=1) / again.norm(dim=1).clamp_min(1e-6)).max())


def token_entropy(store: Any) -> float:
    """Return the entropy of the token frequencies in nats: the loss of a model that knows only those."""
    return float(stats.entropy(np.unique(np.asarray(store.tokens), return_counts=True)[1]))


def norms_by_position(store: Any, p: Cache) -> pd.DataFrame:
    """Return quantiles of the row norm at each position (position, q10, median, q90)."""
    size = store.manifest["context_size"]
    n_rows = min(len(store), p.n_statistics // size * size)
    norms = torch.cat([store[rows].norm(dim=1) for rows in chunks(n_rows, store.d_in)])
    quantiles = np.quantile(norms.view(-1, size).numpy(), [0.1, 0.5, 0.9], axis=0)
    return pd.DataFrame(quantiles.T, columns=["q10", "median", "q90"]).rename_axis("position").reset_index()


def norm_title(norms: pd.DataFrame) -> str:
    ratio = norms["median"].iloc[0] / norms["median"].iloc[1:].median()
    return f"The first position's norm is {ratio:.1f} times that of the others"


@dataclass(frozen=True)
class DimensionStatistics:
    """Per-dimension variance and kurtosis, the covariance's spectrum, and the anisotropy gamma = ||mu||/||sigma||."""

    table: pd.DataFrame
    spectra: dict[str, np.ndarray]
    gamma: float
    half: int  # dimensions that carry half of the variance

    @property
    def title(self) -> str:
        return f"Half of the variance lies in {self.half} of {len(self.table)} dimensions; gamma = {self.gamma:.2f}"

    @property
    def spectrum_title(self) -> str:
        values = self.spectra["activations"]
        return f"The covariance has {values.sum() ** 2 / (values**2).sum():.0f} effective dimensions of {len(values)}"


def sample(store: Any, n_rows: int) -> torch.Tensor:
    """Return rows of a store that SAEs are trained on, drawn at random; fewer where it has no more."""
    return store.matrix("train", seed=0, n_rows=min(n_rows, len(store.rows("train", seed=0))))


def concentration(variance: torch.Tensor, mean: torch.Tensor) -> tuple[float, int]:
    """Return gamma = ||mu|| / ||sigma||, and how many dimensions carry half of the variance."""
    share = (variance / variance.sum()).sort(descending=True).values
    return float(mean.norm() / variance.sum().sqrt()), int((share.cumsum(0) < 0.5).sum()) + 1


def dimension_statistics(store: Any, p: Cache) -> DimensionStatistics:
    """Measure variance, kurtosis and covariance on a sample of usable rows."""
    X = sample(store, p.n_statistics).double()
    variance, kurtosis = X.var(0), stats.kurtosis(X.numpy(), axis=0)
    table = pd.DataFrame({"share": (variance / variance.sum()).numpy(), "kurtosis": kurtosis})
    table = table.iloc[variance.argsort(descending=True).numpy()].rename_axis("dimension").reset_index()
    clouds = {"activations": X, "Gaussian surrogate": surrogate(X.float(), "gaussian", random_state=0).double()}
    spectra = {name: torch.linalg.eigvalsh(torch.cov(cloud.T)).flip(0).numpy() for name, cloud in clouds.items()}
    return DimensionStatistics(table, spectra, *concentration(variance, X.mean(0)))


@dataclass(frozen=True)
class RandomDirectionKurtosis:
    """Excess kurtosis along random directions, of the activations and of two surrogates."""

    scores: dict[str, np.ndarray]

    @property
    def beyond(self) -> float:
        """The share of directions beyond the elliptical surrogate's 95 % point (chance: 0.05)."""
        return float((self.scores["activations"] > chance_level(self.scores["elliptical"])[1]).mean())

    @property
    def title(self) -> str:
        return f"{self.beyond:.0%} of random directions are heavier-tailed than the elliptical surrogate's 95 % point"


def kurtosis_of_random_directions(store: Any, p: Cache) -> RandomDirectionKurtosis:
    """Project activations and their surrogates on the same 500 random unit directions."""
    X = sample(store, p.n_statistics)[:20_000]
    directions = torch.randn(500, X.shape[1], generator=torch.Generator().manual_seed(0))
    directions /= directions.norm(dim=1, keepdim=True)
    clouds = {"activations": X} | {kind: surrogate(X, kind, random_state=1) for kind in ("gaussian", "elliptical")}
    projected = {name: ((cloud - cloud.mean(0)) @ directions.T).numpy() for name, cloud in clouds.items()}
    return RandomDirectionKurtosis({name: stats.kurtosis(values, axis=0) for name, values in projected.items()})


def tidy(store: Any, statistics: DimensionStatistics, kurtosis: RandomDirectionKurtosis) -> pd.DataFrame:
    """Return 03's numbers as metric, value, chance."""
    rows = [
        ("loss", store.manifest["loss"]["nats"], token_entropy(store)),
        ("tokens", len(store), None),
        ("gamma", statistics.gamma, None),
        ("dimensions_with_half_the_variance", statistics.half, None),
        ("share_of_directions_beyond_null", kurtosis.beyond, 0.05),
    ]
    return pd.DataFrame(rows, columns=["metric", "value", "chance_mean"])


def headline(statistics: DimensionStatistics, kurtosis: RandomDirectionKurtosis) -> str:
    half, _, _ = statistics.title.partition(";")
    return f"{half}; {kurtosis.beyond:.0%} of random directions are heavier-tailed than the 95 % point of an ellipse."

"""What parameters ask for, held against the model, the text and this machine's memory before a kernel starts.

`rkcnn_lib.runs.schemas` refuses what needs neither. What passes both may still fail on what only the data tell: a
model that knows no fact, a text that ends early, a search with too few distinct candidates.
"""

from typing import Any

import psutil

from rkcnn_lib.runs import schemas
from rkcnn_lib.runs.fields import ParameterError, require
from rkcnn_lib.runs.published import open_published
from rkcnn_lib.worlds import ModelFacts, atlas, hook_width, model_facts, prompts
from rkcnn_lib.worlds.activations.capture import check_sizes
from rkcnn_lib.worlds.models import modadd
from rkcnn_lib.worlds.models.load import check_layer
from rkcnn_lib.worlds.text import TextUnavailable, check_text
from rkcnn_lib.worlds.toy import INVENTED_MODELS, WIDTHS

SAE_BATCH = 1024  # rows a step of the SAE of 06
ATLAS_CONTEXT = 128  # tokens of a labelled context of 02
FROZEN_ROWS = 512  # coded at once in the frozen-dictionary test


def check(p: schemas.Parameters) -> ModelFacts | None:
    """Return what is known of the model that parameters name; None where they name none, or one made here.

    Raises ParameterError if model, text or memory cannot give what is asked for; ModelUnavailable if no model is found.
    """
    try:
        facts = _facts(p)
        if facts is not None:
            _check_layers(p, facts)
            _check_text(p, facts)
        widths = _widths(p, facts)
        _check_sizes(p, min(widths), _rows(p, facts))
        if isinstance(p, schemas.CausalChecks):
            _check_relations(p, facts)
        if isinstance(p, schemas.SaeCompare) and p.published:
            open_published(p, widths[0])
        _check_memory(p, max(widths))
    except (ValueError, OSError, TextUnavailable) as error:
        raise ParameterError(str(error)) from None
    return facts


def _facts(p: schemas.Parameters) -> ModelFacts | None:
    model = "atlas" if isinstance(p, schemas.ProbeValidation) else getattr(p, "model", None)
    return None if model is None or model in INVENTED_MODELS else model_facts(model, getattr(p, "revision", None))


def _adds(facts: ModelFacts | None) -> bool:
    return facts is not None and facts.task == "modular addition"


def _check_layers(p: Any, facts: ModelFacts) -> None:
    for name in ("layer", "atlas_layer", "layers", "das_layers"):
        try:
            blocks = [check_layer(facts, layer) for layer in _values(p, name)]
        except ValueError as error:
            raise ValueError(str(error).replace("layer", name, 1)) from None
        require(len(set(blocks)) == len(blocks), p, name, f"two of them are the same of {facts.n_layers} blocks")


def _values(p: Any, *names: str) -> list[Any]:
    """Return the values of parameters each of which is one, several, None or not this notebook's."""
    asked = [getattr(p, name, None) for name in names]
    return [value for given in asked for value in (given if isinstance(given, list) else [given]) if value is not None]


def _check_text(p: Any, facts: ModelFacts) -> None:
    """Refuse contexts that the model cannot read, hooks at which a model of sums shows nothing, and a text likewise."""
    if isinstance(p, schemas.ProbeValidation):
        return
    check_sizes(facts, p.n_tokens, p.context_size)
    if _adds(facts):
        modadd.check_hooks(_values(p, "hook", "more_hooks"))
        modadd.source(facts.vocab_size - 1, p.text)
    else:
        check_text(p.text)


def _widths(p: Any, facts: ModelFacts | None) -> list[int]:
    """Return how wide the activations are at each hook (01: the hidden states), the first hook first."""
    if isinstance(p, schemas.ToySuperposition):
        return [p.n_hidden]
    if isinstance(p, schemas.ProbeValidation):
        return [hook_width(facts, p.atlas_hook), p.n_hidden]
    return [hook_width(facts, hook) for hook in _values(p, "hook", "more_hooks")] if facts else [WIDTHS[p.model]]


def _rows(p: Any, facts: ModelFacts | None) -> int:
    """Return about how many rows are captured that count: position 0 does not, and of a sum only the ``=`` does."""
    if not hasattr(p, "n_tokens"):
        return 0
    if facts is None:
        return p.n_tokens
    contexts = p.n_tokens // p.context_size
    return min(contexts, (facts.vocab_size - 1) ** 2) if _adds(facts) else contexts * (p.context_size - 1)


def _check_sizes(p: Any, d: int, rows: int) -> None:
    """Refuse what the width ``d`` and the number of rows cannot give."""
    if isinstance(p, schemas.Mining):
        require((p.subset_size or 0) <= d, p, "subset_size", f"the activations have {d} dimensions")
        most = getattr(p, "mining_rows", p.subset_size or 0)
        require((p.subset_size or 0) <= most, p, "subset_size", f"at most mining_rows = {most}")
    if isinstance(p, schemas.Comparison):
        latents = round(p.expansion * d)
        size = f"expansion = {p.expansion:g} gives {latents} latents at width {d}"
        require(latents >= 1, p, "expansion", size)
        why = f"{size}, and the score selects nothing from fewer than 3 subsets for each"
        require(p.n_subsets is None or p.n_subsets >= 3 * latents, p, "n_subsets expansion", why)
        for name in ("k", "front_k", "frozen_k"):
            most = max(_values(p, name), default=0)
            require(most <= latents or (name == "k" and p.l1 is not None), p, name, size)
        require(p.batch_size <= rows // 2, p, "batch_size n_tokens", f"at most half of about {rows} rows")
    if isinstance(p, schemas.CausalChecks):
        most, latents = max(p.ranks), round(p.sae_expansion * d)
        require(most <= d, p, "ranks", f"the activations have {d} dimensions")
        require(most <= p.n_directions, p, "ranks", f"at most n_directions = {p.n_directions}")
        if p.sae_steps:
            size = f"sae_expansion = {p.sae_expansion:g} gives {latents} latents at width {d}"
            require(p.sae_k <= latents, p, "sae_k", size)
            require(most <= latents, p, "ranks", size)
            why = f"about {rows} rows; the SAE is trained on batches of {SAE_BATCH}, at most half of them"
            require(rows // 2 >= SAE_BATCH, p, "n_tokens", why)


def _check_relations(p: schemas.CausalChecks, facts: ModelFacts | None) -> None:
    """Refuse a relation that no prompt asks for, and a second one that is asked of other entities."""
    why = f"a model of modular addition is asked for the relation {prompts.SUM!r}, and no other model is"
    require(_adds(facts) == (p.relation == prompts.SUM), p, "model relation", why)
    if p.relation == prompts.SUM:
        require(p.positions == "last", p, "positions", "of a pair only the = carries the sum; choose last")
        tables, others = {prompts.SUM: {}}, ()
    elif p.model == "atlas":
        tables, others = {name: atlas.facts(name) for name in atlas.RELATIONS}, ("agreement",)
    else:
        tables, others = {name: table for name, (table, *_) in prompts.RELATIONS.items()}, ("agreement", "ioi")
    known = (*tables, *others)
    require(p.relation in known, p, "relation", f"known for {p.model} are {', '.join(known)}")
    entities = set(tables.get(p.relation, ()))
    partners = [name for name, table in tables.items() if name != p.relation and entities & set(table)]
    why = f"of the entities of {p.relation}, {p.model} can be asked {', '.join(partners) or 'nothing else: give None'}"
    require(p.isolated is None or p.isolated in partners, p, "isolated", why)


def _check_memory(p: schemas.Parameters, d: int) -> None:
    """Refuse what would take more memory than this machine has, if nothing else took any."""
    total = psutil.virtual_memory().total
    for names, needed in _bytes(p, d).items():
        why = f"about {needed / 2**30:,.0f} GiB of memory, and this machine has {total / 2**30:,.0f}"
        require(needed <= total, p, names, why)


def _bytes(p: Any, d: int) -> dict[str, float]:
    """Return about how many bytes one process takes at width ``d``, by the parameters that decide it."""
    needs: dict[str, float] = {}
    if isinstance(p, schemas.ToySuperposition | schemas.ProbeValidation):
        n, f, seeds, h = p.n_samples, p.n_features, 1, p.n_hidden
        if isinstance(p, schemas.ToySuperposition):
            n, f, seeds = max(n, *p.curve_n_samples, 0), max(f, *p.curve_features, 0), p.curve_seeds
            models = p.plane_instances * len(p.plane_probabilities)
            needs["plane_instances"] = 4.0 * 256 * 20 * models  # 256 rows a step, a few copies of 5 features
        needs["n_features n_hidden"] = 16.0 * seeds * f * (256 + h) + 24.0 * h**2
        needs["n_samples n_features n_hidden"] = 4.0 * n * (2 * f + 4 * h)
    if isinstance(p, schemas.ProbeValidation):
        needs["n_contexts"] = 1.0 * ATLAS_CONTEXT * p.n_contexts * (150 + 12 * d)
    if isinstance(p, schemas.Mining):
        drawn = p.subsets_for(round(p.expansion * d)) if isinstance(p, schemas.Comparison) else p.n_subsets
        h, m = max(drawn, *getattr(p, "curve_n_subsets", []), 0), p.subset_size or round(d**0.5)
        basis = 12.0 * m * d if p.subsets == "rotated" else 8.0 * m
        needs["n_subsets subset_size"] = h * (basis + 8 * d + 300)
    if hasattr(p, "n_tokens"):
        needs["n_tokens"] = p.n_tokens * (16.0 * d if p.model in INVENTED_MODELS else 24.0)
        for name in {"n_statistics", "mining_rows", "heldout_rows"} & set(type(p).model_fields):
            needs[name] = 16.0 * d * min(getattr(p, name), p.n_tokens)
    if isinstance(p, schemas.Comparison):
        latents = p.expansion * d
        needs["expansion batch_size"] = 32.0 * d * latents + 12.0 * p.batch_size * latents
    if isinstance(p, schemas.SaeCompare):
        needs["frozen_k"] = 8.0 * FROZEN_ROWS * max(p.frozen_k) * d
    if isinstance(p, schemas.CausalChecks) and p.sae_steps:
        needs["sae_expansion"] = p.sae_expansion * d * (32.0 * d + 12.0 * SAE_BATCH)
    return needs

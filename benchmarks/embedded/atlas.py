"""Training and measuring Atlas: tokenizer, model, training loop with checkpoints, checks."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.embedded.scorer import log_probabilities
from rkcnn_lib.files import read_json, whole_folder, write_json
from rkcnn_lib.worlds import atlas
from rkcnn_lib.worlds.atlas import packed
from rkcnn_lib.worlds.atlas.grammar import BOS, BOS_ID, PAD, UNK
from rkcnn_lib.worlds.prompts import Prompt, atlas_fact_prompts

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

STEPS = 3000


@dataclass(frozen=True)
class Settings:
    """What a training run is made of; a checkpoint made with other settings is refused."""

    steps: int = STEPS
    seed: int = 0
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    context_size: int = 128
    batch_size: int = 16
    lr: float = 3e-3
    warmup: int = 200
    weight_decay: float = 0.01
    checkpoint_every: int = 250


@cache
def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer of the grammar's vocabulary.

    Words are split at spaces and before punctuation; names of several words ("Eiffel Tower") stay whole. A
    ``<bos>`` is put in front, and a text's ids are those of the document that it came from.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = atlas.grammar()
    names = sorted((word for word in known.ids if " " in word), key=len, reverse=True)
    pattern = rf"({'|'.join(names)})(?!\w)|\w+|[^\w\s]"
    tokenizer = Tokenizer(models.WordLevel(known.ids, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    # As in GPT-2 one token opens a document and thereby closes the one before it.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        unk_token=UNK,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        add_bos_token=True,
    )


def build_model(settings: Settings) -> GPT2LMHeadModel:
    """An untrained Atlas; its weights depend on the seed only."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(settings.seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(atlas.grammar().vocabulary),
            n_positions=settings.context_size,
            n_embd=settings.d_model,
            n_layer=settings.n_layers,
            n_head=settings.n_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=BOS_ID,
            eos_token_id=BOS_ID,
            pad_token_id=0,
            use_cache=False,
        )
    )


def _batch(settings: Settings, step: int) -> torch.Tensor:
    """The contexts of a step, (batch, context): a function of seed and step, so a resumed run sees the same."""
    contexts = islice(packed(f"train/{settings.seed}/{step}", settings.context_size), settings.batch_size)
    rows = [[i for _, document in context for i in document.ids][: settings.context_size] for context in contexts]
    return torch.tensor(rows)


def _learning_rate(settings: Settings, step: int) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


def _save_checkpoint(folder: Path, step: int, settings: Settings, model: Any, optimizer: Any) -> None:
    """Weights, optimiser and settings; the folder gets its name only when it is whole."""
    from safetensors.torch import save_file

    state = {
        f"{i}.{name}": value.cpu().contiguous()
        for i, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    with whole_folder(folder / f"checkpoint-{step:06d}") as part:
        save_file({name: p.detach().cpu() for name, p in model.named_parameters()}, part / "weights.safetensors")
        save_file(state, part / "optimizer.safetensors")
        write_json(part / "state.json", {"step": step, "settings": asdict(settings)})
    for old in sorted(folder.glob("checkpoint-??????"))[:-1]:
        shutil.rmtree(old)


def _resume(folder: Path, settings: Settings, model: Any, optimizer: Any) -> int:
    """Load the last whole checkpoint; returns the number of steps already done (0 when there is none)."""
    from safetensors.torch import load_file

    found = sorted(folder.glob("checkpoint-??????"))
    if not found:
        return 0
    state = read_json(found[-1] / "state.json")
    if state["settings"] != asdict(settings):
        raise ValueError(f"{found[-1]} was made with other settings: delete it, or choose another --out")
    model.load_state_dict(load_file(found[-1] / "weights.safetensors"), strict=False)  # the tied head is not stored
    groups = optimizer.state_dict()["param_groups"]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(found[-1] / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return state["step"]


def train(
    out: Path,
    steps: int = STEPS,
    seed: int = 0,
    device: str | torch.device = "cpu",
    settings: Settings | None = None,
    stop_at: int | None = None,
    progress: bool = True,
) -> Path:
    """Train Atlas and write its Hugging Face folder; an interrupted run goes on where it stopped.

    Parameters
    ----------
    out : folder to write; checkpoints lie in it until the run is done.
    steps, seed : of the run. Same seed, same device and thread count: same weights.
    device : where to train.
    settings : replaces steps and seed together with sizes and rates (for tests).
    stop_at : leave after this many steps with a checkpoint, as an interrupted run would.

    Returns
    -------
    out

    Raises
    ------
    ValueError : steps below 1, or a checkpoint in ``out`` that belongs to other settings.
    """
    settings = settings or Settings(steps=steps, seed=seed)
    if settings.steps < 1:
        raise ValueError(f"steps is {settings.steps}: train for at least 1")
    model = build_model(settings).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    done = _resume(out, settings, model, optimizer)
    bar = tqdm(total=settings.steps, initial=done, desc="atlas", unit="step", disable=not progress)
    for step in range(done, min(settings.steps, stop_at or settings.steps)):
        optimizer.param_groups[0]["lr"] = _learning_rate(settings, step)
        ids = _batch(settings, step).to(device)
        logits = model(ids).logits[:, :-1]  # (batch, context - 1, vocabulary)
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.update()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == stop_at:
            _save_checkpoint(out, step + 1, settings, model, optimizer)
    bar.close()
    if not stop_at:
        model.cpu().save_pretrained(out)
        build_tokenizer().save_pretrained(out)
        for left in out.glob("checkpoint-*"):
            shutil.rmtree(left)
    return out


def load(folder: Path) -> GPT2LMHeadModel:
    """A trained folder as a Hugging Face model in evaluation mode."""
    from transformers import GPT2LMHeadModel

    if not (folder / "model.safetensors").exists():
        raise ValueError(
            f"{folder} holds no trained model: run `python -m benchmarks.embedded.atlas train --out {folder}`"
        )
    return GPT2LMHeadModel.from_pretrained(folder).eval()


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, n_documents: int = 300, seed: int = 0) -> tuple[float, float]:
    """Loss of a model on held-out documents, and the grammar's own on the very same tokens.

    The documents are packed as in training; every token behind the first of a context counts, also the ``<bos>``
    that closes a document.

    Returns
    -------
    loss, entropy : nats a token.
    """
    size = model.config.n_positions
    rows, logs, n = [], [], 0
    for context in packed(seed, size, held_out=True):
        rows.append([i for _, document in context for i in document.ids][:size])
        exact: list[float] = []
        for _, document in context:
            exact += log_probabilities(document)
        logs.append(exact[: size - 1])
        n += len(context)
        if n >= n_documents:
            break
    ids = torch.tensor(rows)
    total = 0.0
    for batch in ids.split(32):
        logits = model(batch).logits[:, :-1]
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return total / ids[:, 1:].numel(), -torch.tensor(logs, dtype=torch.float64).mean().item()


def fact_prompts(relation: str, held_out: bool = True) -> list[Prompt]:
    """Prompts of a relation with the grammar's token ids."""
    return atlas_fact_prompts(build_tokenizer(), relation, held_out)


@torch.no_grad()
def fact_accuracy(model: GPT2LMHeadModel, relation: str, held_out: bool = True) -> float:
    """Share of a relation's prompts whose answer the model puts first among all tokens."""
    prompts = fact_prompts(relation, held_out)
    right = 0
    for length in {len(p.ids) for p in prompts}:
        same = [p for p in prompts if len(p.ids) == length]
        best = model(torch.tensor([p.ids for p in same])).logits[:, -1].argmax(-1).tolist()
        right += sum(b in p.answer_ids for b, p in zip(best, same, strict=True))
    return right / len(prompts)


def bigram_accuracy(n_documents: int = 10_000, seed: int = 0) -> float:
    """Share of all held-out prompts that a bigram model of the corpus answers: the most frequent next word."""
    after: dict[int, Counter[int]] = {}
    for document in islice(atlas.document_stream(seed), n_documents):
        for word, following in zip(document.ids, document.ids[1:], strict=False):
            after.setdefault(word, Counter())[following] += 1
    prompts = [p for relation in atlas.RELATIONS for p in fact_prompts(relation)]
    return sum(after[p.ids[-1]].most_common(1)[0][0] in p.answer_ids for p in prompts) / len(prompts)


def check(folder: Path, n_documents: int = 300) -> dict[str, float]:
    """Measure a trained folder: losses in nats a token, the rest shares in [0, 1].

    ``guessing`` is what one gets by always naming the most frequent answer of the relation.
    """
    model = load(folder)
    loss, exact = held_out_loss(model, n_documents)
    figures = {"held-out loss": loss, "grammar entropy": exact, "gap": loss - exact}
    counts = {r: len(fact_prompts(r)) for r in atlas.RELATIONS}
    total = sum(counts.values())
    for name, held_out in (("held-out", True), ("written", False)):
        by_relation = {r: fact_accuracy(model, r, held_out) for r in counts}
        figures[f"{name} facts"] = sum(by_relation[r] * n for r, n in counts.items()) / total
        figures |= {f"{name} facts, {r}": value for r, value in by_relation.items()}
    figures["bigram on held-out facts"] = bigram_accuracy()
    commonest = {r: Counter(atlas.facts(r).values()).most_common(1)[0][1] for r in counts}
    figures["guessing on held-out facts"] = sum(commonest.values()) / total
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: ``train`` makes the weights, ``check`` measures those of a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedded.atlas", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("train", help="train from a seed; goes on where it was interrupted")
    making.add_argument("--out", type=Path, default=Path("outputs/atlas"), help="folder to write")
    making.add_argument("--steps", type=int, default=STEPS, help="training steps")
    making.add_argument("--seed", type=int, default=0)
    making.add_argument("--device", default="cpu")
    measuring = commands.add_parser("check", help="held-out loss, entropy and facts of a trained folder")
    measuring.add_argument("--model", type=Path, default=atlas.FOLDER, help="folder to measure")
    given = parser.parse_args(arguments)
    try:
        if given.command == "train":
            train(given.out, steps=given.steps, seed=given.seed, device=given.device)
            print(f"trained model written to {given.out}")
            folder = given.out
        else:
            folder = given.model
        for name, value in check(folder).items():
            print(f"{name:40s} {value:.4f}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One prompt typed by a reader: what the model says, and says once a subspace is kept, exchanged or steered along.

The subspaces are those that 06 measured; nothing is learnt here, an answer is a handful of forward passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from rkcnn_lib.measure import causal
from rkcnn_lib.runs.schemas import CausalChecks
from rkcnn_lib.strings import readable, token_text, unknown_words
from rkcnn_lib.studies.causal import Measured
from rkcnn_lib.studies.causal_subspaces import Prompts
from rkcnn_lib.worlds import hook_name

CLEAN, KEEP, ABLATE, STEER = RUNS = ("as it is", "keep", "ablate", "steer")
WHOLE = "the whole activation"
N_TOP = 4  # most likely next tokens of each run that are shown


@dataclass(frozen=True)
class Answers:
    """What the four runs say."""

    table: pd.DataFrame  # token, run, probability
    answer: str  # the prompt's own
    foil: str  # the donor's
    differences: dict[str, float]  # of each run, the logit of the answer minus that of the foil
    remarks: list[str]  # sentences that tell what was exchanged


class PromptBox:
    """Answers prompts with the subspaces of one run of 06."""

    def __init__(self, lm: Any, p: CausalChecks, measured: Measured, prompts: Prompts) -> None:
        self.lm, self.p, self.measured = lm, p, measured
        self.example = tuple(prompt.text for prompt in prompts.judged.drawn[0])
        self.subspaces = [*dict.fromkeys(name for name, _ in measured.subspaces), WHOLE]
        self.n_layers = lm.cfg.n_layers
        self.layer = p.layer % self.n_layers

    def ids(self, text: str, which: str) -> list[int]:
        """Return the token ids of a typed prompt; ValueError if the model cannot read it, with the reason."""
        if not text.strip():
            raise ValueError(f"The {which} is empty: type the beginning of a sentence.")
        unknown = ", ".join(map(readable, unknown_words(self.lm, text)))
        if unknown:
            raise ValueError(f"The {which} has words that this model does not know: {unknown}.")
        ids = self.lm.tokenizer.encode(text.strip())
        if len(ids) > self.lm.cfg.n_ctx:
            raise ValueError(f"The {which} has {len(ids)} tokens; this model reads {self.lm.cfg.n_ctx} at most.")
        return ids

    def part(self, subspace: str, rank: int) -> causal.Part:
        """Return a measured subspace (its first seed) at a rank, or everything."""
        if subspace == WHOLE:
            return torch.eye(self.measured.ground.donated.shape[-1])
        return self.measured.subspaces[subspace, 0].part(rank)

    def ask(self, prompt: str, donor: str, layer: int, subspace: str, rank: int, strength: float) -> Answers:
        """Run a prompt four times: as it is; all but the subspace exchanged; the subspace exchanged; steered.

        Steering adds ``strength`` times what the subspace holds of (donor - prompt) at every token but the first.
        ValueError for a prompt that cannot be used (see `ids`), or a donor that is the prompt itself.
        """
        base, other = self.ids(prompt, "prompt"), self.ids(donor, "donor prompt")
        if base == other:
            raise ValueError("Prompt and donor are the same: nothing would be exchanged. Change one of them.")
        A, hook = self.part(subspace, rank), hook_name(self.p.hook, layer)
        ours, theirs, where = places(base, other, self.p.positions)
        device = next(self.lm.parameters()).device
        own, donated = torch.tensor([base], device=device), torch.tensor([other], device=device)
        x = causal.read_activations(self.lm, own, hook, torch.tensor([ours]))
        r = causal.read_activations(self.lm, donated, hook, torch.tensor([theirs]))
        push = strength * (causal.share_in(r, A) - causal.share_in(x, A)).mean(1, keepdim=True)
        pairs = _alone(own, torch.tensor([ours]))
        everywhere = pairs.at(torch.arange(min(1, len(base) - 1), len(base))[None])
        with torch.no_grad():
            steered = causal.edited_logits(self.lm, everywhere, hook, lambda clean, _: clean + push.to(clean))
        logits = {
            CLEAN: causal.clean_logits(self.lm, pairs)[0],
            KEEP: causal.patched_logits(self.lm, pairs, hook, A, KEEP, r)[0],
            ABLATE: causal.patched_logits(self.lm, pairs, hook, A, ABLATE, r)[0],
            STEER: steered[0],
        }
        foil = int(causal.clean_logits(self.lm, _alone(donated))[0].argmax())
        remarks = [where]
        if layer != self.layer and subspace != WHOLE:
            remarks.append(f"The subspace was found at layer {self.layer}; here it is used at another.")
        return self._answers(logits, foil, remarks)

    def _answers(self, logits: dict[str, torch.Tensor], foil: int, remarks: list[str]) -> Answers:
        answer = int(logits[CLEAN].argmax())
        probabilities = {run: row.double().softmax(-1) for run, row in logits.items()}
        tops = {int(token) for row in probabilities.values() for token in row.topk(N_TOP).indices}
        shown = sorted({*tops, answer, foil}, key=lambda token: -float(probabilities[CLEAN][token]))
        text = {token: readable(token_text(self.lm, token)) for token in shown}
        table = pd.DataFrame([
            {"token": text[token], "run": run, "probability": float(row[token])}
            for token in shown for run, row in probabilities.items()
        ])  # fmt: skip
        differences = {run: float(row[answer] - row[foil]) for run, row in logits.items()}
        if answer == foil:
            told = "The donor is continued by the same token: there is no difference of answers to look at."
            remarks = [*remarks, told]
        return Answers(table, text[answer], text[foil], differences, remarks)


def _alone(prompt: torch.Tensor, positions: torch.Tensor | int = -1) -> causal.PromptPairs:
    """One prompt (1, length) that is its own donor; which tokens would be answers plays no part here."""
    return causal.PromptPairs(prompt, prompt, prompt[:, 0], prompt[:, 0], positions)


def places(base: list[int], donor: list[int], positions: str) -> tuple[list[int], list[int], str]:
    """Return where activations are exchanged in prompt and donor, and a sentence that says so.

    Where both have as many tokens: at those that differ, at the last one, or at both (as ``positions`` of 06 asks).
    Else only the last ones correspond.
    """
    last = [len(base) - 1], [len(donor) - 1]
    if len(base) != len(donor):
        return *last, f"Exchanged at the last token alone: the prompt has {len(base)} tokens, the donor {len(donor)}."
    differ = [i for i, (a, b) in enumerate(zip(base, donor, strict=True)) if a != b]
    if positions == "last":
        return *last, "Exchanged at the last token."
    if positions == "entity":
        return differ, differ, f"Exchanged at the {len(differ)} tokens that differ."
    both = sorted({*differ, *last[0]})
    return both, both, f"Exchanged at the tokens that differ ({len(differ)}) and at the last one."


def title(answers: Answers) -> str:
    """Return the finding of the figure of next tokens."""
    best = answers.table.loc[answers.table.groupby("run")["probability"].idxmax()].set_index("run")["token"]
    return "Most likely next token: " + ", ".join(f"{run} “{best[run]}”" for run in RUNS)

"""Which of a round's directions are kept: near-copies are merged, then one of three rules ranks what is left.

Within a round all rules and their controls ("random", "worst") choose from one pool, in which no score has a say. From
the second round on a pool comes from what the rule's own earlier choices leave unexplained.
"""

from __future__ import annotations

import numpy as np
import torch

from rkcnn_lib.probe.parameters import SearchOptions
from rkcnn_lib.tensors import chunks

BLOCK = 256  # directions compared among themselves at once
REFRESHED = 128  # candidates whose gain the lazy greedy search computes anew at once
FOUND_AGAIN = 0.8  # cosine from which another ensemble's direction is the same one
N_ENSEMBLES = 6  # of subsets, each with half of the rows


def choose(
    scores: torch.Tensor,
    directions: torch.Tensor,
    options: SearchOptions,
    places: int,
    stage: int = 0,
    kept: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, int]:
    """Choose at most `places` of the distinct directions that subsets lead to: the best, the worst or random ones.

    `scores` (h,) are those of the subsets, `directions` (h, d) the unit ones that they lead to. Near-copies are merged
    first, and the first drawn stays; its score is the mean over all subsets that lead to it: one subset's is noisy.
    What lies near a direction that earlier rounds `kept` (s, d) is no candidate. `rows` (n, d), of norm 1 and not
    searched, are what ``rule="cover"`` covers. Returns rows of `directions` (r,) int64, best (or worst) first, random
    ones as drawn; and how many candidates there were.
    """
    kept = directions[:0] if kept is None else kept
    joined = torch.cat([kept, directions])
    first = distinct(joined, -torch.arange(len(joined), device=joined.device), options.merge_cosine)
    candidates = first[first >= len(kept)] - len(kept)
    if options.select == "random":
        picked = np.random.RandomState([options.seed, stage]).permutation(len(candidates))[:places]
        return candidates[torch.as_tensor(np.sort(picked), device=candidates.device)], len(candidates)
    if options.rule == "cover" and rows is not None:
        picked = cover(directions[candidates], kept, rows, places, worst=options.select == "worst")
    else:
        scores = scores.double().nan_to_num().clamp(-1e300, 1e300)
        value = scores[candidates]
        for part in chunks(len(candidates), len(directions)):
            own = candidates[part]
            near = directions[own] @ directions.T > options.merge_cosine
            near[torch.arange(len(own), device=near.device), own] = True
            near = near.double()
            value[part] = (near @ scores) / near.sum(1)
        picked = value.argsort(descending=options.select == "best", stable=True)[:places]
    return candidates[picked], len(candidates)


def votes(directions: torch.Tensor, ensemble: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """In how many other ensembles each direction is found again, (h,) float64; of as many votes the score decides.

    `directions` (h, d), unit rows; `ensemble` (h,) int64, which of them come from one independent search; `scores`
    (h,), whose rank adds less than a vote.
    """
    found = torch.zeros(len(directions), dtype=torch.float64, device=directions.device)
    for part in chunks(len(directions), len(directions)):
        near = directions[part] @ directions.T >= FOUND_AGAIN
        for name in ensemble.unique():
            found[part] += near[:, ensemble == name].any(1) & (ensemble[part] != name)
    return found + scores.argsort().argsort().double() / len(scores)


def cover(
    candidates: torch.Tensor, kept: torch.Tensor, rows: torch.Tensor, places: int, worst: bool = False
) -> torch.Tensor:
    """Choose so that every row has a direction near it: greedy facility location, (places,) int64, first chosen first.

    What is raised is the sum over the unit `rows` (n, d) of the largest squared one-sided cosine with any direction
    chosen, or of `kept`: submodular, so that greedy choices reach 1 - 1/e of the best (Nemhauser, Wolsey & Fisher 1978)
    and only candidates whose last gain leads are looked at again (Minoux 1978). `worst` takes those that add least to
    `kept`, each alone.
    """
    covered = torch.zeros(len(rows), device=rows.device)
    if len(kept):
        covered = (kept.to(rows) @ rows.T).clamp_min_(0).square_().amax(0)
    nearness = (candidates.to(rows) @ rows.T).clamp_min_(0).square_()  # (c, n)
    gains = torch.cat([(part - covered).clamp_min_(0).sum(1) for part in nearness.split(BLOCK)])
    places = min(places, len(candidates))
    if worst:
        return gains.argsort(stable=True)[:places]
    chosen = []
    while len(chosen) < places:
        bounds, look = gains.topk(min(REFRESHED + 1, len(gains)))
        look = look[:REFRESHED]
        fresh = (nearness[look] - covered).clamp_min_(0).sum(1)
        gains[look] = fresh
        best = int(fresh.argmax())
        if len(bounds) > REFRESHED and fresh[best] < bounds[-1]:
            continue  # one that was not looked at may gain more
        chosen.append(int(look[best]))
        gains[look[best]] = -1.0
        covered = torch.maximum(covered, nearness[look[best]])
    return torch.tensor(chosen, dtype=torch.long, device=rows.device)


def distinct(
    directions: torch.Tensor, scores: torch.Tensor, cosine: float = 0.9, limit: int | None = None
) -> torch.Tensor:
    """Rows to keep so that no kept pair of unit directions (s, d) has a signed cosine above `cosine`.

    Greedy: the best score first, everything near it merged into it. Returns indices, best first, `limit` at most.
    """
    limit = len(directions) if limit is None else limit
    kept = scores.argsort(descending=True, stable=True)[:0]
    for block in scores.argsort(descending=True, stable=True).split(BLOCK):
        near = directions[block] @ directions[kept].T > cosine
        block = block[~near.any(1)]
        close = (directions[block] @ directions[block].T > cosine).cpu().numpy()
        merged = np.zeros(len(block), dtype=bool)
        for i in range(len(block)):
            if not merged[i]:
                merged[i + 1 :] |= close[i, i + 1 :]
        kept = torch.cat([kept, block[torch.as_tensor(~merged, device=block.device)]])
        if len(kept) >= limit:
            break
    return kept[:limit]

"""The tasks that a model can be asked, by name."""

from __future__ import annotations

from typing import Any

from rkcnn_lib.worlds.prompts import agreement, facts, indirect_object, sums
from rkcnn_lib.worlds.prompts.base import ROLES, Prompt, Sides


def task_prompts(model: str, tokenizer: Any, task: str, sides: Sides | None = None) -> list[Prompt]:
    """Return a task's prompts for a model, in all three roles, before screening.

    Parameters
    ----------
    model : str
        ``"atlas"`` has facts, sentences and verbs of its own; every other model gets the written ones.
    tokenizer
        The model's tokenizer: words that are not one token where one is needed are left out.
    task : str
        A relation of facts, ``"agreement"`` (a verb owes its subject a number, across a noun of the other number),
        ``"ioi"`` (indirect-object identification; not for atlas) or ``"sum"`` (modular addition; for its models only).
    sides : pair of sets, optional
        The entities to choose and to judge on, for a second relation of the same entities; facts only.

    Raises
    ------
    ValueError
        For an unknown task (the message lists the known ones), or one without a prompt for this tokenizer.
    """
    if task == sums.TASK:
        prompts = sums.prompts(tokenizer)
    elif task == "agreement":
        prompts = agreement.prompts(model, tokenizer)
    elif task == "ioi" and model != "atlas":
        prompts = indirect_object.prompts(tokenizer)
    else:
        prompts = facts.prompts(model, tokenizer, task, sides)
    if {p.role for p in prompts} != set(ROLES):
        raise ValueError(f"task {task!r}: {model}'s tokenizer leaves no prompt in some role; choose another task")
    if len({p.text for p in prompts}) < len(prompts):
        raise AssertionError(f"task {task!r}: screening, selection and evaluation prompts overlap")
    return prompts

"""What a model's configuration and files say about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelFacts:
    """What a model's configuration and files say about it, without its weights being loaded.

    Attributes
    ----------
    name : str
        As given to :func:`load_model`.
    title : str
        For headings and provenance cards.
    source : {"hub", "folder", "embedded"}
        Where the files come from (``gemma``, built once on this machine, counts as a folder).
    identity : str
        ``commit:...`` for a hub model, else ``sha256:...`` over its configuration, weights and tokenizer files.
    n_layers, d_model, d_mlp, n_ctx, vocab_size : int
        Blocks, residual width, MLP width, longest context and vocabulary size.
    task : {"next token", "modular addition"}
        What the model was trained on; a modular-addition model reads its own pairs and nothing else.
    n_experts : int
        Experts of a mixture, 0 for a model whose blocks have one MLP each.
    """

    name: str
    title: str
    source: str
    identity: str
    n_layers: int
    d_model: int
    d_mlp: int
    n_ctx: int
    vocab_size: int
    task: str = "next token"
    n_experts: int = 0

"""Tokens as text that can be shown anywhere: nothing in them acts, whatever a corpus or a vocabulary holds."""

from __future__ import annotations

import unicodedata
from typing import Any

LONGEST = 64  # characters of a token that are shown
NAMED = {"\n": "↵", "\t": "⇥", "\r": "␍"}
ACTING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, direction marks, surrogates, what has no glyph


def token_text(lm: Any, token: int) -> str:
    """Return one token's text as the tokenizer gives it, or its number where the model has no tokenizer."""
    return f"<{token}>" if lm.tokenizer is None else lm.tokenizer.decode([token])


def readable(text: str) -> str:
    """Return text in which nothing acts: controls and direction marks as visible escapes, a long text visibly cut.

    Markup stays as it is: whoever draws the text escapes it, or sets it as text.
    """
    cut = text[:LONGEST]
    shown = "".join(NAMED.get(c) or (f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in ACTING else c) for c in cut)
    return shown if len(text) <= LONGEST else f"{shown}… ({len(text):,} characters)"


def unknown_words(lm: Any, text: str) -> list[str]:
    """Return the words of a text that the model's tokenizer has no token for, in order; mostly none."""
    unknown = lm.tokenizer.unk_token_id
    if unknown is None:
        return []
    read = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)  # a name of two words may be one
    spans = zip(read["input_ids"], read["offset_mapping"], strict=True)
    return list(dict.fromkeys(text[start:end] for token, (start, end) in spans if token == unknown))


def one_token(lm: Any, text: str) -> int:
    """Return the token that a typed word stands for, with the space before it where the vocabulary has that.

    Raises ValueError if the word is no token of the model, or several; the message says which.
    """
    word = text.strip()
    if lm is None:
        raise ValueError("These rows are no tokens: choose a latent by its number.")
    if not word:
        raise ValueError("Type a word.")
    if lm.tokenizer is None:
        if not word.isdigit():
            raise ValueError("This model's tokens are numbers: type one.")
        return int(word)
    cut = [lm.tokenizer.encode(form, add_special_tokens=False) for form in (f" {word}", word)]
    for ids in cut:
        if len(ids) == 1 and ids[0] != lm.tokenizer.unk_token_id:
            return ids[0]
    if unknown_words(lm, word):
        raise ValueError(f"“{readable(word)}” is not in this model's vocabulary.")
    parts = ", ".join(f"“{readable(token_text(lm, token))}”" for token in cut[0])
    raise ValueError(f"“{readable(word)}” is {len(cut[0])} tokens for this model ({parts}): type one of them.")

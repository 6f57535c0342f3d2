"""Strings and tokens from data made fit for a page: nothing in them acts, whatever a corpus or a vocabulary holds."""

import json
import math
import re
import unicodedata
from typing import Any

# Marks that change the direction of the text after them, other control characters, and halves of surrogate
# pairs, which no UTF-8 file can hold. Tabs and line ends stay.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LABEL = 80  # characters that an axis, a legend or a menu has room for
ECHOED = 200  # characters of a value that a message repeats
HOVER = 600  # characters of one text shown on hover
LONGEST = 64  # characters of a token that are shown
NAMED = {"\n": "↵", "\t": "⇥", "\r": "␍"}
ACTING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, direction marks, surrogates, what has no glyph
_LABELS = {"name", "legendgroup", "label", "ticktext", "x", "y", "prefix", "labels"}


def visible(text: str) -> str:
    """Return ``text`` with control characters spelled out, and those as ``⟨U+202E⟩`` that turn round what follows."""
    return _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def cut(text: str, length: int = ECHOED) -> str:
    """Return ``text`` at most ``length`` characters long (and a note of its own length), whole if it is short.

    Both ends are kept, and neither an entity nor a tag is cut through.
    """
    if len(text) <= length:
        return text
    head = re.sub(r"(&[^;\s]{0,8}|<[^>]*)$", "", text[: length * 2 // 3])
    tail = re.sub(r"^([^<>&\s]{0,40}>|[a-z#0-9]{0,6};)", "", text[-(length // 6) :])
    return f"{head} … {tail} ({len(text):,} characters)"


def duration(seconds: Any) -> str:
    """Return a length of time as text, in the unit that suits it; "unknown" for what is no finite number."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def script_json(value: Any) -> str:
    """Return JSON to stand in a script element, where only "<" could end the element or open a comment."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")


def fit_figure(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a figure's data, layout, frames and config with its strings made visible and cut to their room.

    What is drawn binary (``bdata``) is left as it is; so are templates of the hover, whose fields fill later.
    """

    def fit(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: fit(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [fit(inner, key) for inner in value]
        if not isinstance(value, str) or key == "bdata":
            return value
        return cut(value, LABEL if key in _LABELS else HOVER)

    return fit(json.loads(visible(json.dumps(spec, ensure_ascii=False))), "")


# ---------------------------------------------------------------- tokens


def token_text(lm: Any, token: int) -> str:
    """Return one token's text as the tokenizer gives it."""
    return lm.tokenizer.decode([token])


def readable(text: str) -> str:
    """Return text in which nothing acts: controls and direction marks as visible escapes, a long text visibly cut.

    Markup stays as it is: whoever draws the text escapes it, or sets it as text.
    """
    first = text[:LONGEST]
    shown = "".join(NAMED.get(c) or (f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in ACTING else c) for c in first)
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
    forms = [lm.tokenizer.encode(form, add_special_tokens=False) for form in (f" {word}", word)]
    for ids in forms:
        if len(ids) == 1 and ids[0] != lm.tokenizer.unk_token_id:
            return ids[0]
    if unknown_words(lm, word):
        raise ValueError(f"“{readable(word)}” is not in this model's vocabulary.")
    parts = ", ".join(f"“{readable(token_text(lm, token))}”" for token in forms[0])
    raise ValueError(f"“{readable(word)}” is {len(forms[0])} tokens for this model ({parts}): type one of them.")

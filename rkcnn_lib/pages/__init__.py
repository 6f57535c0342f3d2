"""Executed notebooks to pages, their index and comparison; cards and explorers."""

from functools import cache
from pathlib import Path
from typing import Any

import jinja2

ASSETS = Path(__file__).parent / "assets"
CARDS = "application/vnd.rkcnn.cards+json"  # an output's mime type: the record that book.py describes


def templates() -> jinja2.Environment:
    """Return the templates in ``assets``, which escape whatever is put into them."""
    loader = jinja2.FileSystemLoader(ASSETS)
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


@cache
def blocks() -> Any:
    """Return the macros of ``assets/blocks.html.j2``: HTML that stands in notebooks and on pages alike."""
    return templates().get_template("blocks.html.j2").module

"""The glossary: one file of terms, a page of it, and links to it from the first use of a term on each page."""

import re
from functools import cache
from typing import NamedTuple

from bs4 import BeautifulSoup, NavigableString
from nbconvert.filters import markdown2html

from rkcnn_lib.pages import ASSETS

PAGE = "glossary.html"
NOT_INSIDE = ("a", "code", "pre", "h1", "h2", "h3", "h4", "h5", "h6")


class Term(NamedTuple):
    """One entry: its name, the id of its place on the page, and its meaning as text and as HTML."""

    name: str
    anchor: str
    meaning: str
    html: str


@cache
def terms() -> tuple[Term, ...]:
    """Return the entries of ``assets/glossary.md``, a heading and a paragraph each, in its (alphabetical) order."""
    entries = []
    for part in (ASSETS / "glossary.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        name, _, meaning = part.partition("\n")
        meaning = " ".join(meaning.split())
        anchor = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        entries.append(Term(name, anchor, re.sub(r"[`*]", "", meaning), markdown2html(meaning)))
    return tuple(entries)


@cache
def _pattern() -> tuple[re.Pattern[str], dict[str, Term]]:
    """One pattern for every form of every term, longest first, and the term of each form."""
    forms = {}
    for term in terms():
        plural = term.name[:-1] + "ies" if term.name.endswith("y") else term.name + "s"
        forms |= {form: term for name in (term.name, plural) for form in (name, name[0].upper() + name[1:])}
    longest_first = sorted(forms, key=len, reverse=True)
    return re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])"), forms


def link_first_uses(soup: BeautifulSoup) -> None:
    """Turn the first use of each term in the prose into a link that explains on hover; changes ``soup``."""
    pattern, forms = _pattern()
    seen: set[str] = set()
    for string in [one for place in soup.select("section.prose") for one in place.find_all(string=True)]:
        if string.find_parent(NOT_INSIDE) is not None:
            continue
        pieces, done = [], 0
        for match in pattern.finditer(string):
            term = forms[match[1]]
            if term.name not in seen:
                seen.add(term.name)
                address = {"class": "term", "href": f"{PAGE}#{term.anchor}", "title": term.meaning}
                link = soup.new_tag("a", attrs=address)
                link.string = match[1]
                pieces += [NavigableString(string[done : match.start()]), link]
                done = match.end()
        if pieces:
            string.replace_with(*pieces, NavigableString(string[done:]))

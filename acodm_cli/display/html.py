"""Schedules as one HTML page. The script of page.html draws charts and tables out of the numbers embedded in the page.

What is in a schedule comes from strangers. It enters the page as JSON that cannot end its script element, and the
script never makes anything but text of it. The page's content security policy forbids the page to load anything.
"""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from acodm_cli.display.evidence import evidence_lines
from acodm_cli.display.facts import json_value
from acodm_cli.display.inspect import episodes_text, evaluation_text
from acodm_cli.display.series import Series
from acodm_cli.display.style import PALETTE, human_count, joined, printable
from acodm_cli.schedule.info import RunInfo

LONGEST_FACT = 400
# Significant digits. A picture does not show more.
DIGITS = 6
_DOMAIN_FACTS = (
    "start", "end", "mean", "min", "max", "samples", "epochs", "first_validation_loss", "last_validation_loss",
)  # fmt: skip


@dataclass(frozen=True)
class PageEntry:
    """A schedule on the page. name: as people know it. run: what its metadata say. facts: what `facts.describe` returns
    for it. series: its curves, at most one of a kind. distance: the L1 part of `facts.distances` to the first schedule of the
    page, None for that one."""

    name: str
    run: RunInfo
    facts: dict[str, Any]
    series: list[Series]
    distance: dict[str, Any] | None = None


def page(title: str, entries: list[PageEntry]) -> str:
    """Returns one HTML document that needs nothing else: no network, no other files. Several schedules are compared
    with the first."""
    content = {
        "title": _printable(title),
        "palette": PALETTE,
        "runs": [
            {
                "name": _printable(entry.name),
                "facts": _facts(entry.run, entry.facts),
                "steps": entry.facts["steps"],
                "domains": [
                    {key: json_value(domain[key], DIGITS) for key in _DOMAIN_FACTS}
                    | {"name": _printable(domain["name"])}
                    for domain in entry.facts["domains"]
                ],
                "series": [_curves(series) for series in entry.series],
                "distance": json_value(entry.distance, DIGITS),
            }
            for entry in entries
        ],
    }
    template = files("acodm_cli.display").joinpath("page.html").read_text(encoding="utf-8")
    # The template is split first, since a title may hold the other placeholder.
    head, tail = template.split("{{content}}")
    return head.replace("{{title}}", html.escape(_printable(title))) + _embedded(content) + tail


def _printable(text: str) -> str:
    return printable(text, instead="\ufffd")


def _embedded(content: dict[str, Any]) -> str:
    """Returns JSON for a script element, in ASCII. Nothing in it can end the element, or a line of script."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _curves(series: Series) -> dict[str, Any]:
    """Returns a plot's curves as JSON values. Its values and band are ordered by curve, then by point."""
    columns = [series.values_RN] if series.band_RN is None else [series.values_RN, series.band_RN]
    values, *band = [json_value(array_RN.T.tolist(), DIGITS) for array_RN in columns]
    return {
        "what": series.what,
        "title": series.title,
        "unit": series.unit,
        "of_domains": series.of_domains,
        "names": [_printable(name) for name in series.names],
        "step": series.step_R.tolist(),
        "tokens": series.tokens_R.tolist(),
        "values": values,
        "band": band[0] if band else None,
    }


def _facts(run: RunInfo, facts: dict[str, Any]) -> list[dict[str, str]]:
    """Returns what is known of a schedule, in order: labels, texts and, for a source on the web, its link."""
    domains, steps = len(facts["domains"]), facts["steps"]
    budget = f"{steps:,} of {run.batch:,} × {run.seq_len:,} tokens" if run.batch and run.seq_len else f"{steps:,}"
    tokens = sum(run.tokens.values())
    known = {
        "evidence": joined(" · ", *evidence_lines(run.evidence)),
        "title": run.title,
        "model": joined(" · ", run.model, run.parameters and f"{human_count(run.parameters)} parameters"),
        "corpus": joined(" · ", run.corpus, f"{domains} domains", tokens > 0 and f"{human_count(tokens)} tokens"),
        "tokenizer": joined(" · ", run.tokenizer, run.vocab_size and f"{run.vocab_size:,} entries"),
        "mixer": run.mixer,
        "steps": "static mixture" if steps == 1 else budget,
        "tokens": human_count(facts["tokens"]) if facts["tokens"] > 0 else "",
        "seed": ", ".join(map(str, run.seeds)),
        "policy": "in the file" if facts["has_policy"] else "none",
        "effective domains": _effective_domains(facts["entropy"], domains),
        "episodes": episodes_text(run),
        "evaluated": evaluation_text(run),
        "composed": joined(" · ", *run.composed),
        "made by": joined(" · ", run.command, f"acodm {run.acodm_version}".strip()),
        "paper": run.paper,
        "source": run.source,
        "caveat": run.caveat,
    }
    shown = [{"label": label, "text": _printable(_cut(text))} for label, text in known.items() if text]
    for fact in shown:
        # Other schemes than http and https can run scripts or open files.
        if fact["label"] == "source" and re.match(r"https?://[^\s/]", fact["text"]):
            fact["href"] = fact["text"].replace(" ", "%20")
    return shown


def _effective_domains(entropy: dict[str, Any], domains: int) -> str:
    """Returns exp(entropy), at the start and at the end, as text."""
    start, end = (f"{math.exp(entropy[name]):.1f}" if entropy[name] < 100 else "?" for name in ("start", "end"))
    return f"{start if start == end else f'{start} → {end}'} of {domains}"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_FACT else text[: LONGEST_FACT - 1] + "…"

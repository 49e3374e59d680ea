"""Schedules as one HTML page: its charts and tables are drawn by page.html's script out of the numbers embedded in it.

What is in a schedule comes from strangers. It enters the page as JSON that cannot end its script element, and the script only ever
makes text of it; the page's content security policy forbids it to load anything.
"""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from acodm_cli.display.series import Series
from acodm_cli.display.style import PALETTE, human_count, mapping

LONGEST_FACT = 400
_DOMAIN_FACTS = (
    "start", "end", "mean", "min", "max", "samples", "epochs", "first_validation_loss", "last_validation_loss",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """name: as people know it. facts: what `facts.facts` says of it. series: its curves, at most one of a kind."""

    name: str
    facts: dict[str, Any]
    series: list[Series]


def page(title: str, runs: list[Run]) -> str:
    """One HTML document that needs nothing else: no network, no other files. Several runs are compared with the first."""
    content = {
        "title": _printable(title),
        "palette": PALETTE,
        "runs": [
            {
                "name": _printable(run.name),
                "facts": _facts(run.facts),
                "steps": run.facts["steps"],
                "domains": [
                    {key: _clean(domain[key]) for key in _DOMAIN_FACTS} | {"name": _printable(domain["name"])}
                    for domain in run.facts["domains"]
                ],
                "series": [_curves(series) for series in run.series],
            }
            for run in runs
        ],
    }
    template = files("acodm_cli.display").joinpath("page.html").read_text(encoding="utf-8")
    # Split first: a title may hold the other placeholder.
    head, tail = template.split("{{content}}")
    return head.replace("{{title}}", html.escape(_printable(title))) + _embedded(content) + tail


def _printable(text: str) -> str:
    """Without what is not to be seen, such as marks that turn the direction of a text, and what no encoding can write."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _embedded(content: dict[str, Any]) -> str:
    """JSON for a script element, in ASCII: nothing in it ends the element, nor a line of script."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _clean(value: Any) -> Any:
    """JSON has no NaN and no infinities: null. Six digits are more than a picture shows."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _curves(series: Series) -> dict[str, Any]:
    """values, band: by curve, then by point."""
    columns = [series.values_RN] if series.band_RN is None else [series.values_RN, series.band_RN]
    values, *band = [[[_clean(value) for value in curve] for curve in array_RN.T.tolist()] for array_RN in columns]
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


def _facts(facts: dict[str, Any]) -> list[dict[str, str]]:
    """What is known of a run, in order, each with a label, a text and, of a source on the web, its link."""
    info = facts["info"]
    corpus, tokenizer, mixer = (mapping(info.get(name)) for name in ("corpus", "tokenizer", "mixer"))
    domains, steps = len(facts["domains"]), facts["steps"]
    batch, length = (_count(info.get(name), exact=True) for name in ("batch", "seq_len"))
    budget = f"{steps:,} of {batch} × {length} tokens" if batch and length else f"{steps:,}"
    seeds = info.get("seeds") if isinstance(info.get("seeds"), list) else [info.get("seed")]
    composed = info.get("composed")
    known = {
        "title": _text(info.get("title")),
        "model": _joined(_text(info.get("model")), _count(info.get("parameters"), " parameters")),
        "corpus": _joined(
            _text(corpus.get("name")),
            f"{domains} domains",
            _count(sum(filter(_is_number, mapping(corpus.get("tokens")).values())), " tokens"),
        ),
        "tokenizer": _joined(_text(tokenizer.get("name")), _count(tokenizer.get("vocab_size"), " entries", exact=True)),
        "mixer": _text(mixer.get("name")),
        "steps": "static mixture" if steps == 1 else budget,
        "tokens": _count(facts["tokens"]),
        "seed": ", ".join(filter(None, map(_text, seeds))),
        "policy": "in the file" if facts["has_policy"] else "none",
        "effective domains": _effective_domains(facts["entropy"], domains),
        "composed": _joined(*map(_text, composed)) if isinstance(composed, list) else "",
        "made by": _joined(_text(info.get("command")), f"acodm {_text(info.get('acodm_version'))}".strip()),
        "paper": _text(info.get("paper")),
        "source": _text(info.get("source")),
        "caveat": _text(info.get("caveat")),
    }
    shown = [{"label": label, "text": _printable(_cut(text))} for label, text in known.items() if text]
    for fact in shown:
        # Other schemes than these run scripts or open files.
        if fact["label"] == "source" and re.match(r"https?://[^\s/]", fact["text"]):
            fact["href"] = fact["text"].replace(" ", "%20")
    return shown


def _effective_domains(entropy: dict[str, Any], domains: int) -> str:
    """exp(entropy), at the start and at the end."""
    start, end = (f"{math.exp(entropy[name]):.1f}" if entropy[name] < 100 else "?" for name in ("start", "end"))
    return f"{start if start == end else f'{start} → {end}'} of {domains}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e18


def _count(value: Any, unit: str = "", exact: bool = False) -> str:
    """Empty if it is not a number that can count something."""
    if not _is_number(value):
        return ""
    return (f"{int(value):,}" if exact else human_count(value)) + unit


def _text(value: Any) -> str:
    """Empty for what is no text and no number."""
    return str(value) if isinstance(value, str) or _is_number(value) or (value == 0 and value is not False) else ""


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_FACT else text[: LONGEST_FACT - 1] + "…"


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)

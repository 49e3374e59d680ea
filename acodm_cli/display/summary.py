"""What a training command prints first and last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.holding_out import HOLD_OUT_EVERY
from acodm_cli.corpus.preflight import DomainUse
from acodm_cli.display.facts import validation_rows
from acodm_cli.display.inspect import View, domain_table, episodes_text, how_measured, repetition_text, target_line
from acodm_cli.display.style import cut, human_count, in_colour, measured, printable
from acodm_cli.mixing.domain_map import DomainMap
from acodm_cli.schedule.info import Evaluation
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.writing import few

if TYPE_CHECKING:
    from acodm_cli.runs.efficiency import Efficiency

WIDE = 96
NARROW = 80
MOST_DOMAINS = 60
MOST_SAID = 8


def print_title(console: Console, info: dict[str, Any], device: str) -> None:
    """Prints what a training command is about to do: model, mixer, corpus and budget. info: the metadata of the run."""
    corpus = info["corpus"]
    tokens = sum(corpus["tokens"].values())
    episodes = info["episodes"]["number"] if "episodes" in info else 1
    console.print(
        Text(info["command"], style="bold"),
        f" {info['model']} ({human_count(info['parameters'])} parameters) on {device}  "
        f"mixer {info['mixer']['name']}\n"
        f"corpus {corpus['name']}: {len(corpus['tokens'])} domains, {human_count(tokens)} tokens  "
        f"run: {f'{episodes} episodes of ' if episodes > 1 else ''}{info['steps']} steps of {info['batch']} x {info['seq_len']} = "
        f"{human_count(episodes * info['token_budget'])} tokens"
        + (
            f"\ngoes on with trained weights; learning rate: warmed up again, to {info['learning_rate']:.3g}"
            if "init_from" in info
            else ""
        ),
        highlight=False,
        soft_wrap=not console.is_terminal,
    )


def print_preflight(
    console: Console, uses: list[DomainUse], mixture: str, of_target: list[DomainUse] | None = None
) -> None:
    """Prints what a run will use of each domain. mixture: whose weights these are, for the heading. of_target: what the target will use
    with the same weights, if the corpus is cut for it."""
    wide, narrow = console.width >= WIDE, console.width < NARROW
    targets = {use.name: use for use in of_target or ()}
    columns: dict[str, Callable[[DomainUse], str]] = {
        "files": lambda use: "" if use.files is None else f"{use.files:,}",
        "documents" if wide else "docs": lambda use: "" if use.documents is None else human_count(use.documents),
        "tokens": lambda use: human_count(use.tokens),
        "validation": lambda use: human_count(use.validation_tokens),
        f"{mixture} weight" if wide else "weight": lambda use: f"{use.weight:.1%}",
        "epochs": lambda use: f"{use.epochs:.2f}",
        "target's": lambda use: f"{targets[use.name].epochs:.2f}",
        "runs out at step" if wide else "runs out at": lambda use: f"{use.exhausted_at:,}" if use.exhausted_at else "",
    }
    if not targets:
        del columns["target's"]
    if narrow:
        columns = {name: cell for name, cell in columns.items() if name not in ("files", "docs", "validation")}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("domain", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    room = max(12, console.width - sum(max(6, len(name)) + 2 for name in columns))
    for use in uses[:MOST_DOMAINS]:
        table.add_row(Text(cut(use.name, room)), *(value(use) for value in columns.values()))
    console.print(table)
    if len(uses) > MOST_DOMAINS:
        _line(console, f"… and {len(uses) - MOST_DOMAINS:,} more domains")
    if not wide:
        _line(console, f"{'' if narrow else 'docs: training documents; '}weight: the {mixture} weight", "dim")


def print_map(console: Console, domain_map: DomainMap) -> None:
    """Prints what the domains of a schedule are in the corpus, where they are not the same."""
    said = domain_map.said()
    for line in said[:MOST_DOMAINS]:
        _line(console, f"map: {printable(line)}")
    if len(said) > MOST_DOMAINS:
        _line(console, f"map: and {len(said) - MOST_DOMAINS:,} more like these")


def print_corpus(console: Console, corpus: Corpus) -> None:
    """Prints what was read, what was not, and what became of the documents."""
    account = corpus.account
    if account.read:
        parts = [f"files: {account.read:,} read"]
        if account.furniture:
            parts.append(f"without data: {_named(account.furniture)}")
        _line(console, "; ".join(parts), "dim")
    if account.unread:
        _line(console, f"warning: files not read: {_named(account.unread)}", "yellow")
    for said in account.said[:MOST_SAID]:
        _line(console, f"note: {said}")
    if len(account.said) > MOST_SAID:
        _line(console, f"note: and {len(account.said) - MOST_SAID:,} more like these")
    _line(console, _validation_text(corpus), "dim")
    dropped = []
    if empty := sum(domain.provenance.empty for domain in corpus.domains):
        dropped.append(f"{empty:,} empty documents")
    if overlap := sum(domain.provenance.overlap for domain in corpus.domains):
        dropped.append(f"{overlap:,} validation documents that are trained on")
    if dropped:
        _line(console, f"note: left out: {', '.join(dropped)}")
    if duplicates := str(corpus.duplicates() or ""):
        _line(console, f"note: exact duplicates, not removed: {duplicates}")


def _validation_text(corpus: Corpus) -> str:
    """Says what the validation text of each domain is, and what ends documents."""
    given = [domain for domain in corpus.domains if domain.provenance.validation_files]
    held_out = [domain.name for domain in corpus.domains if not domain.provenance.validation_files]
    parts = []
    if given:
        parts.append(few(list(dict.fromkeys(name for domain in given for name in domain.provenance.validation_files))))
    if held_out:
        parts.append(f"one in {HOLD_OUT_EVERY} held out" + (f" of {few(held_out)}" if given else ""))
    return f"validation text: {'; '.join(parts)}; documents end with {corpus.tokenizer.end_text}"


def _named(paths: Sequence[Path]) -> str:
    """A number of files, and the names of the first few."""
    return f"{len(paths):,} ({few(sorted({path.name for path in paths}))})"


def _line(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, soft_wrap=not console.is_terminal, markup=False)


def print_summary(console: Console, schedule: Schedule) -> None:
    """Prints what a run did, by domain, and its mean validation loss at the beginning and at the end."""
    console.print()
    view = View("", schedule)
    console.print(domain_table(view, console, in_colour(console)))
    if said := repetition_text(view.facts["domains"]):
        _line(console, f"repeated: {said}")
    rows = validation_rows(schedule)
    if len(rows):
        losses_RK = schedule.per_domain["validation_loss"][rows].astype(np.float64)
        first, last = losses_RK[0].mean(), losses_RK[-1].mean()
        console.print(
            f"\nvalidation loss, mean over domains: {first:.4f} at step {schedule.step_S[rows[0]]} -> {last:.4f} at step "
            f"{schedule.step_S[rows[-1]]}",
            highlight=False,
            soft_wrap=not console.is_terminal,
        )
    if (
        before := [schedule.run.losses_before.get(name, math.nan) for name in schedule.domains]
        if schedule.run.trained
        else []
    ):
        _line(console, f"before training: {np.mean(before):.4f}")
    if view.facts["kept"]:
        console.print(_kept_table(view.facts["kept"]))
    if said := episodes_text(schedule.run):
        _line(console, said)
    for target in view.facts["targets"]:
        if target["last_loss"] is not None:
            _line(console, f"target {target_line(target)}")
            if target["first_loss"] - target["last_loss"] <= 2 * (target["last_standard_error"] or 0.0):
                _line(
                    console,
                    f"warning: the loss of target {target['name']} did not fall; is this text that can be learned?",
                    "yellow",
                )


def _kept_table(kept: list[dict[str, Any]]) -> Table:
    """Returns a table of what must not be forgotten."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kept", no_wrap=True)
    for name in ("loss before", "loss now", "rise", "budget"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in kept:
        style = "yellow" if each["rise"] > each["budget"] else None
        numbers = (
            f"{each['loss_before']:.4f}",
            f"{each['last_loss']:.4f}",
            f"{each['rise']:+.1%}",
            f"{each['budget']:.1%}",
        )
        table.add_row(Text(cut(each["name"], 40)), *numbers, style=style)
    return table


def print_evaluation(console: Console, evaluation: Evaluation, results: Path) -> None:
    """Prints the scores of a run's model. results: the file with all that was measured."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "metric"):
        table.add_column(name)
    for name in ("value", "stderr"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in evaluation.scores:
        stderr = "" if each.stderr is None else measured(each.stderr)
        table.add_row(printable(each.task), printable(each.metric), measured(each.value), stderr)
    console.print(table)
    _line(console, f"{how_measured(evaluation)}; all results: {results}", "dim")


def print_efficiency(console: Console, efficiency: Efficiency) -> None:
    """Prints how well the run used its hardware; nothing if it had no step left to do."""
    if not efficiency.steps:
        return
    shares = ", ".join(f"{part} {share:.1%}" for part, share in efficiency.shares().items())
    mfu = "n/a" if math.isnan(efficiency.mfu) else f"{efficiency.mfu:.1%}"
    console.print(
        f"{efficiency.tokens_per_second:,.0f} tokens/s in training, MFU {mfu}, memory {efficiency.memory / 2**30:.1f} GiB at most; "
        f"time: {shares}",
        highlight=False,
        soft_wrap=not console.is_terminal,
    )

"""Mixers against each other, each study one `acodm proxy-train --seeds 0,1,2 --against …`: same engine, text, seeds and budget.

    python -m tests.benchmarks.sample_efficiency --work FOLDER --studies embedded
    python -m tests.benchmarks.sample_efficiency --work FOLDER --studies domains scarce junk --data DIR

This file is the list of studies. --data is a folder with a sub-folder per domain (train.jsonl.gz, validation.jsonl.gz), of which their corpora
are made. Of `scarce` and `junk`, in which a mixture must be worth something, the README said what is asked before they ran. Where a study
names `doremi-mean` or `swarm-best`, DoReMi and a swarm first find these static mixtures with seed 0, and the study compares them as schedules.
`parts` changes one part of the default agent at a time, and `paper` gives the paper's agent one part of the default agent at a time.

The same command goes on with what is unfinished, and with fewer or more --rivals. Written are results/study_NAME.{json,png}: the table and
the curves, both from the evidence in the schedule that the study writes.
"""

from __future__ import annotations

import argparse
import base64
import glob
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from acodm_cli.corpus.readers import PLAIN
from acodm_cli.corpus.sources import FileSource
from acodm_cli.runs.study import stem_of
from acodm_cli.schedule.evidence import compare_curves, mean_and_interval
from acodm_cli.schedule.info import Evidence, StudiedCurve
from acodm_cli.schedule.schedule import Schedule
from tests.benchmarks.environment import RESULTS, save
from tests.benchmarks.target_corpus import head, train_on, write_texts

TRIALS, TRIAL_SHARE = 6, 1 / 3
VALIDATIONS = 12
SHAPE = ["--model", "pythia-14m", "--seq-len", "128", "--dtype", "bf16"]
AGAINST = ("natural", "uniform")
FOUND = ("doremi-mean", "swarm-best")
# What someone would write down who knows what is worthless: nothing of it, and the rest alike.
LEFT_OUT = "left-out"
STATIC = ("natural", "uniform", "temperature", LEFT_OUT, *FOUND)
RIVALS = ["natural", "uniform", "odm", *FOUND, "temperature", "ado", "ac-odm:anchor=0", "ac-odm:agent=paper"]
# Uniform weights draw 300 x 16 x 128 / 13 tokens of each; so many characters are about 3,100.
SCARCE, SCARCE_CHARACTERS = ("freelaw", "github", "pubmed_abstracts"), 9_000
REAL = ("arxiv_math", "freelaw", "github", "gutenberg_books", "pubmed_abstracts", "stackexchange", "wikipedia_en")
JUNK = ("shuffled", "boilerplate", "base64")
JUNK_CHARACTERS = 3_000_000
NOTICE = (
    "This page is number {number} of our site. We use cookies to make your visit better. By staying on this page you accept "
    "our terms of use and our privacy notice. All rights reserved. Click here to subscribe to our newsletter. Share this page "
    "with your friends. Log in or register to leave a comment. Back to the top.\n"
)


@dataclass(frozen=True)
class Study:
    """options: of the studied mixer. against: what it is compared with. make: writes the files of the corpus into a folder and returns its
    manifest; None for the embedded corpus."""

    against: list[str]
    options: tuple[str, ...] = ()
    make: Callable[[Path, Path], str] | None = None


def domain(name: str, train: Path | str, validation: Path | None = None) -> str:
    held_out = f'validation = "{validation}"\n' if validation else ""
    return f'[domains.{name}]\nfiles = ["{train}"]\n{held_out}'


def domains_of(data: Path) -> Iterator[tuple[str, Path, Path]]:
    """(name, text, held-out text) of each."""
    for folder in sorted(path.resolve() for path in data.iterdir() if path.is_dir()):
        yield folder.name, folder / "train.jsonl.gz", folder / "validation.jsonl.gz"


def texts_of(path: Path, characters: int) -> list[str]:
    """The first documents, cut where there are enough characters."""
    texts = head(FileSource("", (path,), (), PLAIN), characters)
    texts[-1] = texts[-1][: characters - sum(map(len, texts[:-1]))]
    return texts


def domains(data: Path, work: Path) -> str:
    return "".join(domain(*each) for each in domains_of(data))


def scarce(data: Path, work: Path) -> str:
    """13 domains, three of them cut to 9,000 characters."""
    manifest = ""
    for name, train, validation in domains_of(data):
        if name in SCARCE:
            write_texts(texts_of(train, SCARCE_CHARACTERS), work / f"{name}.jsonl")
        manifest += domain(name, f"{name}.jsonl" if name in SCARCE else train, validation)
    return manifest


def junk(data: Path, work: Path) -> str:
    """Seven domains of text, and three that are worthless: tokens of Wikipedia in random order, a notice that repeats, random bytes."""
    rng = random.Random(0)
    found = {name: (train, validation) for name, train, validation in domains_of(data)}
    tokenizer = tokenizers.Tokenizer.from_file(str(work / "tokenizer.json"))
    texts = texts_of(found["wikipedia_en"][0], JUNK_CHARACTERS)
    tokens = list(chain.from_iterable(encoded.ids for encoded in tokenizer.encode_batch(texts)))
    rng.shuffle(tokens)
    shuffled = [tokenizer.decode(tokens[start : start + 1000]) for start in range(0, len(tokens), 1000)]
    pages = JUNK_CHARACTERS // (10 * len(NOTICE))
    notices = ["".join(NOTICE.format(number=10 * page + line) for line in range(10)) for page in range(pages)]
    coded = [base64.b64encode(rng.randbytes(3000)).decode() for _ in range(JUNK_CHARACTERS // 4000)]
    for name, of_domain in zip(JUNK, (shuffled, notices, coded), strict=True):
        write_texts(of_domain, work / f"{name}.jsonl")
    lines = [*(f"0,{name},{1 / len(REAL)}" for name in REAL), *(f"0,{name},0" for name in JUNK)]
    (work / f"{LEFT_OUT}.csv").write_text("\n".join(["progress,domain,weight", *lines]) + "\n")
    return "".join([domain(name, *found[name]) for name in REAL] + [domain(name, f"{name}.jsonl") for name in JUNK])


# One part each: of the default agent, away from it; and of the paper's agent, to the default one's.
PARTS_OF_DEFAULT = [
    "importance=false", "self_term=false", "scale=z-score", "gamma=0", "anchor=0", "actor_update=gradient", "objective=loss",
    "ema=0.98", "step_size=0.3", "twin_critics=false",
]  # fmt: skip
PARTS_OF_PAPER = [
    "self_term=true", "objective=perplexity", "scale=relative", "importance=false", "gamma=0", "tau=0.05", "updates_per_step=8",
    "floor_share=0.1", "anchor=0.3", "logit_bound=3", "smoothing=0.8", "hidden=128:layers=2", "actor_lr=0.001:critic_lr=0.003",
    "quadratic_action=true", "actor_update=mirror:step_size=0.1",
]  # fmt: skip

STUDIES = {
    "embedded": Study(RIVALS),
    "domains": Study(RIVALS, make=domains),
    "scarce": Study(["ac-odm:guide=domains", "ac-odm:prior=uniform", *RIVALS], ("--prior", "natural"), scarce),
    "junk": Study(
        [*RIVALS, "ac-odm:step_size=0.3", LEFT_OUT],
        tuple(word for name in JUNK for word in ("--objective-weight", f"{name}=0")),
        junk,
    ),
    "parts": Study(["natural", "uniform", *(f"ac-odm:{part}" for part in PARTS_OF_DEFAULT)]),
    "paper": Study(
        ["natural", "uniform", "ac-odm:agent=default", *(f"ac-odm:agent=paper:{part}" for part in PARTS_OF_PAPER)],
        ("--agent", "paper"),
    ),
}


def acodm(*arguments: object) -> None:
    """Runs a command of acodm, whose output is shown."""
    command = [sys.executable, "-m", "acodm_cli", *map(str, arguments)]
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(code)


def once(out: Path, mixer: str, steps: int, *options: object) -> Path:
    """Trains with proxy-train, or goes on with it, unless that is done."""
    if not out.exists():
        begin = ["--mixer", mixer, "--steps", steps, *options]
        acodm("proxy-train", *(["--resume"] if out.with_suffix(".run").exists() else begin), "--out", out)
    return out


def found_before(folder: Path, study: Study, steps: int, common: list[object]) -> dict[str, Path]:
    """The schedules of static mixtures that runs of seed 0 find: DoReMi's mean weights, and the best of a swarm in short runs."""
    model = folder / "natural.model"
    once(folder / "natural.parquet", "natural", steps, *common, "--save-model", model)
    reference = ["--mixer-option", f"reference={model}"]
    doremi, mean = once(folder / "doremi.parquet", "doremi", steps, *reference, *common), folder / "doremi-mean.parquet"
    if not mean.exists():
        acodm("inspect", doremi, "--average", "--out", mean)
    weights = study.options if "--objective-weight" in study.options else ()
    trials = ["--episodes", TRIALS, *common, *weights]
    best = once(folder / "swarm-best.parquet", "swarm", round(steps * TRIAL_SHARE), *trials)
    return dict(zip(FOUND, (mean, best), strict=True))


def table_of(evidence: Evidence, nats: dict[str, float]) -> list[dict[str, Any]]:
    """A row per mixer, best first. `oracle` is the best static mixture of all that were run. nats: see `losses_of`."""
    curves = {curve.mixer: curve for curve in evidence.curves}
    rows = []
    for name, curve in curves.items():
        mean, deviation, _ = mean_and_interval(np.array([values[-1] for values in curve.values]))
        row: dict[str, Any] = {"mixer": name, evidence.objective: mean, "sd": deviation, "nats": nats[name]}
        for other in AGAINST:
            if other in curves:
                row |= difference(curve, curves[other])
        rows.append(row)
    rows.sort(key=lambda row: float(row[evidence.objective]))
    static = [row for row in rows if row["mixer"] in STATIC]
    return [*rows, {**static[0], "mixer": f"oracle ({static[0]['mixer']})"}] if static else rows


def difference(curve: StudiedCurve, other: StudiedCurve) -> dict[str, Any]:
    """The difference at the end in percent, half of its 95% interval, and the share of the steps to the other's best, None for never."""
    ours, theirs = ([(np.array(each.steps), np.array(values)) for values in each.values] for each in (curve, other))
    found = compare_curves(other.mixer, ours, theirs)
    return {
        f"difference_to_{other.mixer}": found.difference,
        f"interval_{other.mixer}": found.interval,
        f"steps_to_{other.mixer}": found.share_to_best,
    }


def losses_of(out: Path, labels: Sequence[str], weights: dict[str, float]) -> dict[str, float]:
    """The mean over domains that count, and over seeds, of the held-out loss at the end, of each mixer."""
    found = {}
    for label in labels:
        paths = sorted(out.with_suffix(".study").glob(f"{glob.escape(stem_of(label))}-seed-*.parquet"))
        ends_NK = [Schedule.read(path, ("validation_loss",)).per_domain["validation_loss"][-1] for path in paths]
        names = Schedule.read(paths[0], ()).domains
        found[label] = float(
            np.mean([np.average(end_K, weights=[weights.get(n, 1.0) for n in names]) for end_K in ends_NK])
        )
    return found


def print_table(rows: list[dict[str, Any]], objective: str) -> None:
    """In Markdown."""
    compared = [name for name in AGAINST if f"steps_to_{name}" in rows[0]]
    heads = [
        "mixer",
        objective,
        "nats",
        *(f"against {n}" for n in compared),
        *(f"steps to {n}'s best" for n in compared),
    ]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        spread = "" if row["sd"] is None else f" ± {row['sd']:.2f}"
        cells = [row["mixer"], f"{row[objective]:.2f}{spread}", f"{row['nats']:.4f}"]
        for name in compared:
            interval = row[f"interval_{name}"]
            own = row["mixer"] == name
            cells.append(
                "" if own else f"{row[f'difference_to_{name}']:+.1f}%" + (f" ± {interval:.1f}" if interval else "")
            )
        for name in compared:
            share = row[f"steps_to_{name}"]
            cells.append("never" if share is None else f"{share:.0%}")
        print("| " + " | ".join(cells) + " |")


def run(name: str, o: argparse.Namespace) -> None:
    """Trains what is missing of a study, and writes its results."""
    study, folder = STUDIES[name], o.work.resolve() / name
    folder.mkdir(parents=True, exist_ok=True)
    common: list[object] = [*SHAPE, "--batch", o.batch, "--validate-every", max(1, o.steps // VALIDATIONS)]
    if study.make is not None:
        manifest, tokenizer = folder / f"{name}.toml", folder / "tokenizer.json"
        if not manifest.exists():
            train_on(o.data, tokenizer)
            manifest.write_text(study.make(o.data, folder))
        common += ["--data", manifest, "--tokenizer", tokenizer]
    if unknown := set(o.rivals or ()) - set(study.against):
        raise SystemExit(f"{name} has no {', '.join(sorted(unknown))}; it has {', '.join(study.against)}")
    against = [rival for rival in study.against if o.rivals is None or rival in o.rivals]
    schedules = {LEFT_OUT: folder / f"{LEFT_OUT}.csv"}
    if not set(FOUND).isdisjoint(against):
        schedules |= found_before(folder, study, o.steps, common)
    against = [str(schedules.get(rival, rival)) for rival in against]
    out = folder / "study.parquet"
    acodm(
        "proxy-train", *common, "--steps", o.steps, *study.options, "--seeds", o.seeds, "--against", ",".join(against),
        "--jobs", o.jobs, "--out", out,
    )  # fmt: skip
    schedule = Schedule.read(out)
    evidence = schedule.run.evidence
    assert evidence is not None
    acodm("inspect", out, "--plot", "evidence", "--image", RESULTS / f"study_{name}.png", "--force")
    given = (word.split("=") for word in study.options if "=" in word)
    nats = losses_of(out, [curve.mixer for curve in evidence.curves], {key: float(value) for key, value in given})
    rows = table_of(evidence, nats)
    print_table(rows, evidence.objective)
    middle_K = schedule.weights_SK[len(schedule) // 2]
    weights = {name: round(float(weight), 4) for name, weight in zip(schedule.domains, middle_K, strict=True)}
    print(f"weights of {evidence.mixer} at half of the run: {weights}")
    save(f"study_{name}", {"table": rows, "weights_at_half": weights, "evidence": schedule.info["evidence"]}, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", required=True, choices=STUDIES)
    parser.add_argument("--work", type=Path, required=True, help="folder of the corpora and runs")
    parser.add_argument("--data", type=Path, help="what the corpora are made of; not for the embedded one")
    parser.add_argument("--rivals", nargs="+", help="compare with these only")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    options = parser.parse_args()
    for name in options.studies:
        run(name, options)


if __name__ == "__main__":
    main()

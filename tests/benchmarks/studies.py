"""Studies: mixers against each other, by the product's own `acodm proxy-train --seeds 0,1,2 --against …`.

    python -m tests.benchmarks.studies --data DIR --work FOLDER --studies scarce junk
    python -m tests.benchmarks.studies --work FOLDER --studies paper --seeds 0,1

--data is a folder with a sub-folder per domain (train.jsonl.gz, validation.jsonl.gz), of which `scarce` and `junk` make their corpora: two
scenarios in which a mixture must be worth something, and of which the README said what is asked before they ran. Before either, DoReMi and a
swarm find static mixtures, which the study compares as schedules. `paper` changes the paper's agent into the default one, a part at a time,
on the embedded corpus. The same command goes on with what is unfinished. Written are results/study_NAME.{json,png}: the table and the
curves, both from the evidence in the schedule that the study writes.
"""

from __future__ import annotations

import argparse
import base64
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from acodm_cli.corpus.readers import PLAIN
from acodm_cli.corpus.sources import FileSource
from acodm_cli.schedule.evidence import compare_curves, mean_and_interval
from acodm_cli.schedule.info import Evidence, StudiedCurve
from acodm_cli.schedule.schedule import Schedule
from tests.benchmarks.environment import RESULTS, save
from tests.benchmarks.sample_efficiency import head
from tests.benchmarks.target_corpus import train_on, write_texts

STEPS = 300
TRIAL_STEPS, TRIALS = 100, 6
SHAPE = ["--model", "pythia-14m", "--batch", "16", "--seq-len", "128", "--dtype", "bf16"]
AGAINST = ("natural", "uniform")
STATIC = ("natural", "uniform", "temperature", "doremi-mean", "swarm-best")
RIVALS = ["natural", "uniform", "temperature", "odm", "ado", "ac-odm:agent=paper"]
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


# The paper's agent, with one part each of the default agent.
PARTS = [
    "self_term=true", "objective=perplexity", "scale=relative", "importance=false", "gamma=0", "tau=0.05", "updates_per_step=8",
    "floor_share=0.1", "anchor=0.3", "logit_bound=3", "smoothing=0.8", "hidden=128:layers=2", "actor_lr=0.001:critic_lr=0.003",
    "quadratic_action=true", "actor_update=mirror:step_size=0.1",
]  # fmt: skip


@dataclass(frozen=True)
class Study:
    """options: of the studied mixer. against: what it is compared with. make: writes the files of the corpus into a folder and returns its
    manifest; None for the embedded corpus. static: whether DoReMi and a swarm find mixtures to compare with."""

    options: list[str]
    against: list[str]
    make: Callable[[Path, Path], str] | None = None
    static: bool = False


def domain(name: str, train: Path | str, validation: Path | None = None) -> str:
    held_out = f'validation = "{validation}"\n' if validation else ""
    return f'[domains.{name}]\nfiles = ["{train}"]\n{held_out}'


def domains_of(data: Path, without: tuple[str, ...] = ()) -> Iterator[tuple[str, Path, Path]]:
    """(name, text, held-out text) of each."""
    for folder in sorted(path.resolve() for path in data.iterdir() if path.is_dir() and path.name not in without):
        yield folder.name, folder / "train.jsonl.gz", folder / "validation.jsonl.gz"


def texts_of(path: Path, characters: int) -> list[str]:
    """The first documents, cut where there are enough characters."""
    texts = head(FileSource("", (path,), (), PLAIN), characters)
    texts[-1] = texts[-1][: characters - sum(map(len, texts[:-1]))]
    return texts


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
    return "".join([domain(name, *found[name]) for name in REAL] + [domain(name, f"{name}.jsonl") for name in JUNK])


STUDIES = {
    "scarce": Study(["--prior", "natural", "--guide", "domains"], [*RIVALS, "ac-odm"], scarce, static=True),
    "junk": Study([word for name in JUNK for word in ("--objective-weight", f"{name}=0")], RIVALS, junk, static=True),
    "paper": Study(
        ["--agent", "paper"],
        ["natural", "uniform", "ac-odm:agent=default", *(f"ac-odm:agent=paper:{part}" for part in PARTS)],
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


def found_before(folder: Path, study: Study, common: list[object]) -> list[Path]:
    """The schedules of static mixtures that runs of seed 0 find: DoReMi's mean weights, and the best of a swarm in short runs."""
    natural = once(folder / "natural.parquet", "natural", STEPS, *common)
    reference = ["--mixer-option", f"reference={natural}"]
    doremi, mean = once(folder / "doremi.parquet", "doremi", STEPS, *reference, *common), folder / "doremi-mean.parquet"
    if not mean.exists():
        acodm("inspect", doremi, "--average", "--out", mean)
    weights = study.options if "--objective-weight" in study.options else []
    best = folder / "swarm-best.parquet"
    return [mean, once(best, "swarm", TRIAL_STEPS, "--episodes", TRIALS, *common, *weights)]


def table_of(evidence: Evidence) -> list[dict[str, Any]]:
    """A row per mixer, best first. `oracle` is the best static mixture of all that were run."""
    curves = {curve.mixer: curve for curve in evidence.curves}
    rows = []
    for name, curve in curves.items():
        mean, deviation, _ = mean_and_interval(np.array([values[-1] for values in curve.values]))
        row: dict[str, Any] = {"mixer": name, evidence.objective: mean, "sd": deviation}
        for other in AGAINST:
            row |= difference(curve, curves[other])
        rows.append(row)
    rows.sort(key=lambda row: float(row[evidence.objective]))
    best = next(row for row in rows if row["mixer"] in STATIC)
    return [*rows, {**best, "mixer": f"oracle ({best['mixer']})"}]


def difference(curve: StudiedCurve, other: StudiedCurve) -> dict[str, Any]:
    """The difference at the end in percent, half of its 95% interval, and the share of the steps to the other's best, None for never."""
    ours, theirs = ([(np.array(each.steps), np.array(values)) for values in each.values] for each in (curve, other))
    found = compare_curves(other.mixer, ours, theirs)
    return {
        f"difference_to_{other.mixer}": found.difference,
        f"interval_{other.mixer}": found.interval,
        f"steps_to_{other.mixer}": found.share_to_best,
    }


def print_table(rows: list[dict[str, Any]], objective: str) -> None:
    """In Markdown."""
    heads = [
        "mixer",
        objective,
        *(f"against {name}" for name in AGAINST),
        *(f"steps to {name}'s best" for name in AGAINST),
    ]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        differences = [f"{row[f'difference_to_{name}']:+.1f}% ± {row[f'interval_{name}'] or 0:.1f}" for name in AGAINST]
        shares = [f"{share:.0%}" if (share := row[f"steps_to_{name}"]) is not None else "never" for name in AGAINST]
        print(
            "| "
            + " | ".join([row["mixer"], f"{row[objective]:.2f} ± {row['sd'] or 0:.2f}", *differences, *shares])
            + " |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder of the corpora and runs")
    parser.add_argument("--studies", nargs="+", required=True, choices=STUDIES)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    o = parser.parse_args()
    for name in o.studies:
        study, folder = STUDIES[name], o.work.resolve() / name
        folder.mkdir(parents=True, exist_ok=True)
        common: list[object] = [*SHAPE, "--validate-every", STEPS // 12]
        if study.make is not None:
            manifest, tokenizer = folder / f"{name}.toml", folder / "tokenizer.json"
            if not manifest.exists():
                train_on(o.data, tokenizer)
                manifest.write_text(study.make(o.data, folder))
            common += ["--data", manifest, "--tokenizer", tokenizer]
        against = [*study.against, *(map(str, found_before(folder, study, common)) if study.static else ())]
        out = folder / "study.parquet"
        acodm(
            "proxy-train", *common, "--steps", STEPS, *study.options, "--seeds", o.seeds, "--against", ",".join(against),
            "--jobs", o.jobs, "--out", out,
        )  # fmt: skip
        schedule = Schedule.read(out)
        evidence = schedule.run.evidence
        assert evidence is not None
        acodm("inspect", out, "--plot", "evidence", "--image", RESULTS / f"study_{name}.png", "--force")
        rows = table_of(evidence)
        print_table(rows, evidence.objective)
        middle_K = schedule.weights_SK[len(schedule) // 2]
        weights = {name: round(float(weight), 4) for name, weight in zip(schedule.domains, middle_K, strict=True)}
        print(f"weights of {evidence.mixer} at half of the run: {weights}")
        save(f"study_{name}", {"table": rows, "weights_at_half": weights, "evidence": schedule.info["evidence"]}, None)


if __name__ == "__main__":
    main()

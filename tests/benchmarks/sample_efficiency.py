"""Mixers against each other, each study one `acodm proxy-train --seeds 0,1,2 --against …`: same engine, text, seeds and budget.

    python -m tests.benchmarks.sample_efficiency --work FOLDER --studies embedded
    python -m tests.benchmarks.sample_efficiency --work FOLDER --studies domains scarce junk humaneval mmlu continued --data DIR --eval DIR

This file is the list of studies; study_corpora.py makes their corpora, and says what --data and --eval hold. Of `scarce` and `junk`, in
which a mixture must be worth something, the README said what is asked before they ran. `parts` and `humaneval-parts` change one part of the
default agent at a time, and `paper` gives the paper's agent one part of the default agent at a time. `continued` goes on with a model that
was trained on ten domains, which it must not forget, with three new ones. `transfer` drives a larger model by what one run with the smaller
one learned.

A rival is a mixer, or a schedule: one by hand that comes with the corpus, or `doremi-mean` or `swarm-best`, static mixtures that DoReMi and a
swarm first find with seed 0, whose cost is not in the table. The same command goes on with what is unfinished, and with fewer or more
--rivals. Written are results/study_NAME.{json,png}: the table and the curves, both from the evidence in the schedule that the study writes.
"""

from __future__ import annotations

import argparse
import glob
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acodm_cli.runs.study import stem_of
from acodm_cli.schedule.columns import TARGETS
from acodm_cli.schedule.evidence import compare_curves, counted_weights, mean_and_interval
from acodm_cli.schedule.info import Evidence, StudiedCurve
from acodm_cli.schedule.schedule import Schedule
from tests.benchmarks.environment import RESULTS, save
from tests.benchmarks.study_corpora import JUNK, Place, make

TRIALS, TRIAL_SHARE = 6, 1 / 3
VALIDATIONS = 12
# Steps of the model that `continued` goes on with, as a multiple of the study's.
BASE_STEPS = 2
GUIDED = ("--guide-every", "4", "--guide-sequences", "4")
SHAPE = ("--seq-len", "128", "--dtype", "bf16")
AGAINST = ("natural", "uniform", "importance")
FOUND = ("doremi-mean", "swarm-best")
BY_HAND = ("left-out", "hand", "hand50", "replay30")
SCHEDULES = (*FOUND, *BY_HAND, "moving", "replay")
STATIC = ("natural", "uniform", "temperature", "importance", *FOUND, *BY_HAND)
RIVALS = ["natural", "uniform", "odm", *FOUND, "temperature", "ado", "ac-odm:reward=alignment", "ac-odm:agent=paper"]
# Of the reward that was the default before.
BY_ALIGNMENT = [f"ac-odm:reward=alignment:{part}" for part in ("importance=false", "anchor=0")]

# Trains what a study needs before it; given are its folder, its steps, and what its runs have in common. Returns more options of the study.
Before = Callable[[Path, int, list[object]], list[object]]


@dataclass(frozen=True)
class Study:
    """against: what the studied mixer is compared with. options: of that mixer. corpus: its name, None for the embedded one. model: what is
    trained; None where `before` trains it. trials: options of the swarm."""

    against: list[str]
    options: tuple[str, ...] = ()
    corpus: str | None = None
    model: str | None = "pythia-14m"
    trials: tuple[str, ...] = ()
    before: Before = lambda folder, steps, common: []


def base_model(folder: Path, steps: int, common: list[object]) -> list[object]:
    """Trains a model on the ten old domains alone."""
    given = [*common, "--model", "pythia-14m", "--steps", BASE_STEPS * steps, "--data", folder / "old.toml"]
    model = folder / "base.model"
    once(folder / "base.parquet", "uniform", *given, "--tokenizer", folder / "tokenizer.json", "--save-model", model)
    return ["--init-from", model]


def small_proxy(folder: Path, steps: int, common: list[object]) -> list[object]:
    """Learns a policy with the smaller model, which `policy` asks."""
    proxy = once(folder / "replay.parquet", "ac-odm", *common, "--model", "pythia-14m", *GUIDED)
    return ["--mixer", "policy", "--mixer-option", f"schedule={proxy}"]


FOR_TARGET = ["natural", "uniform", "importance", "hand", "dga", "odm", "ac-odm:episodes=3", "swarm-best"]
# One part each: of the default agent, away from it; and of the paper's agent, to the default one's.
PARTS_OF_DEFAULT = [
    "reward=alignment", "crowding=0", "gamma=0", "anchor=0", "actor_update=gradient", "objective=loss", "ema=0.98",
    "step_size=0.3", "twin_critics=false",
]  # fmt: skip
PARTS_OF_PAPER = [
    "self_term=true", "objective=perplexity", "scale=relative", "importance=false", "gamma=0", "tau=0.05", "updates_per_step=8",
    "reward=fixed-step", "floor_share=0.1", "anchor=0.3", "logit_bound=3", "smoothing=0.8", "hidden=128:layers=2", "actor_lr=0.001:critic_lr=0.003",
    "quadratic_action=true", "actor_update=mirror:step_size=0.1",
]  # fmt: skip

PARTS_FOR_TARGET = ["anchor=0", "gamma=0", "floor_share=0", "guided_step_size=0.1", "guided_step_size=1", "episodes=3"]

JUNK_IS_NOTHING = tuple(word for name in JUNK for word in ("--objective-weight", f"{name}=0"))

STUDIES = {
    "embedded": Study([*RIVALS, *BY_ALIGNMENT]),
    "domains": Study([*RIVALS, *BY_ALIGNMENT], corpus="domains"),
    "scarce": Study(["ac-odm:guide=domains", "ac-odm:prior=uniform", *RIVALS], ("--prior", "natural"), "scarce"),
    "junk": Study(
        [*RIVALS, "ac-odm:anchor=0", "ac-odm:step_size=0.3", "left-out"],
        JUNK_IS_NOTHING,
        "junk",
        trials=JUNK_IS_NOTHING,
    ),
    "humaneval": Study(FOR_TARGET, GUIDED, "humaneval", trials=("--prior", "importance")),
    "mmlu": Study(FOR_TARGET, GUIDED, "mmlu", trials=("--prior", "importance")),
    "both": Study(["natural", "uniform", "hand", "moving"], GUIDED, "both"),
    "scarce-code": Study(["natural", "uniform", "hand", "hand50", "moving"], GUIDED, "scarce-code"),
    "transfer": Study(["uniform", "hand", "replay"], (), "humaneval", "pythia-31m", before=small_proxy),
    "continued": Study(
        ["natural", "uniform", "replay30"],
        ("--keep-budget", "0.02", "--guide-every", "4"),
        "continued",
        None,
        before=base_model,
    ),
    "humaneval-parts": Study(["importance", *(f"ac-odm:{part}" for part in PARTS_FOR_TARGET)], GUIDED, "humaneval"),
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


def once(out: Path, mixer: str, *options: object) -> Path:
    """Trains with proxy-train, or goes on with it, unless that is done. Of an option that is there twice, the last counts."""
    if not out.exists():
        begin = ["--mixer", mixer, *options]
        acodm("proxy-train", *(["--resume"] if out.with_suffix(".run").exists() else begin), "--out", out)
    return out


def find(name: str, folder: Path, study: Study, steps: int, common: list[object]) -> None:
    """Finds a static mixture with seed 0: DoReMi's mean weights, or the best of a swarm in short runs."""
    if name == "swarm-best":
        trials = ["--episodes", TRIALS, *common, "--steps", round(steps * TRIAL_SHARE), *study.trials]
        once(folder / f"{name}.parquet", "swarm", *trials)
        return
    model, mean = folder / "natural.model", folder / f"{name}.parquet"
    once(folder / "natural.parquet", "natural", *common, "--save-model", model)
    doremi = once(folder / "doremi.parquet", "doremi", "--mixer-option", f"reference={model}", *common)
    if not mean.exists():
        acodm("inspect", doremi, "--average", "--out", mean)


def schedule_of(rival: str, folder: Path) -> str:
    """Returns what --against takes: the file of a schedule, or the rival itself."""
    if rival not in SCHEDULES:
        return rival
    by_hand = folder / f"{rival}.csv"
    return str(by_hand if by_hand.exists() else folder / f"{rival}.parquet")


def table_of(evidence: Evidence, losses: dict[str, float]) -> list[dict[str, Any]]:
    """A row per mixer, best first. `oracle` is the best static mixture of all that were run. losses: see `losses_of`."""
    curves = {curve.mixer: curve for curve in evidence.curves}
    rows = []
    for name, curve in curves.items():
        mean, deviation, _ = mean_and_interval(np.array([values[-1] for values in curve.values]))
        row: dict[str, Any] = {"mixer": name, evidence.objective: mean, "sd": deviation, "loss": losses[name]}
        if curve.kept:
            row["forgotten"] = f"{curve.forgotten} of {curve.kept}"
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


def losses_of(out: Path, labels: Sequence[str], weights: dict[str, float]) -> tuple[str, dict[str, float]]:
    """The unit, and of each mixer the held-out loss at the end, mean over seeds: of the targets, in bits per byte, or of the domains that
    count, in nats."""
    found, unit = {}, "nats"
    for label in labels:
        paths = sorted(out.with_suffix(".study").glob(f"{glob.escape(stem_of(label))}-seed-*.parquet"))
        runs = [Schedule.read(path, ("validation_loss", TARGETS)) for path in paths]
        if runs[0].targets:
            unit = "bits per byte"
            ends = [[run.per_step[f"{TARGETS}{name}.bits_per_byte"][-1] for name in run.targets] for run in runs]
            found[label] = float(np.mean(ends))
        else:
            counted_K = counted_weights(runs[0], weights)
            ends_NK = [run.per_domain["validation_loss"][-1] for run in runs]
            found[label] = float(np.mean([np.average(end_K, weights=counted_K) for end_K in ends_NK]))
    return unit, found


def print_table(rows: list[dict[str, Any]], objective: str, unit: str) -> None:
    """In Markdown."""
    compared = [name for name in AGAINST if f"steps_to_{name}" in rows[0]]
    forgotten = ["above the budget"] if "forgotten" in rows[0] else []
    against, steps = [f"against {name}" for name in compared], [f"steps to {name}'s best" for name in compared]
    heads = ["mixer", objective, unit, *against, *steps, *forgotten]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        spread = "" if row["sd"] is None else f" ± {row['sd']:.4g}"
        cells = [row["mixer"], f"{row[objective]:.5g}{spread}", f"{row['loss']:.4f}"]
        for name in compared:
            interval = "" if row[f"interval_{name}"] is None else f" ± {row[f'interval_{name}']:.1f}"
            cells.append("" if row["mixer"] == name else f"{row[f'difference_to_{name}']:+.1f}%{interval}")
        for name in compared:
            share = row[f"steps_to_{name}"]
            cells.append("never" if share is None else f"{share:.0%}")
        print("| " + " | ".join([*cells, *([row["forgotten"]] if forgotten else [])]) + " |")


def run(name: str, o: argparse.Namespace) -> None:
    """Trains what is missing of a study, and writes its results."""
    study, folder = STUDIES[name], o.work.resolve() / name
    if unknown := set(o.rivals or ()) - set(study.against):
        raise SystemExit(f"{name} has no {', '.join(sorted(unknown))}; it has {', '.join(study.against)}")
    folder.mkdir(parents=True, exist_ok=True)
    common: list[object] = [*SHAPE, "--batch", o.batch, "--steps", o.steps]
    common += ["--validate-every", max(1, o.steps // VALIDATIONS)]
    if study.model is not None:
        common += ["--model", study.model]
    if study.corpus is not None:
        place = Place(o.data, o.eval, folder)
        common += ["--data", make(study.corpus, place)]
        common += ["--tokenizer", place.tokenizer] if study.model is not None else []
    own = [*study.options, *study.before(folder, o.steps, common)]
    against = [rival for rival in study.against if o.rivals is None or rival in o.rivals]
    for rival in FOUND:
        if rival in against:
            find(rival, folder, study, o.steps, common)
    out = folder / "study.parquet"
    rivals = ",".join(schedule_of(rival, folder) for rival in against)
    acodm("proxy-train", *common, *own, "--seeds", o.seeds, "--against", rivals, "--jobs", o.jobs, "--out", out)
    schedule = Schedule.read(out)
    evidence = schedule.run.evidence
    assert evidence is not None
    acodm("inspect", out, "--plot", "evidence", "--image", RESULTS / f"study_{name}.png", "--force")
    given = (word.split("=") for word in study.options if "=" in word)
    weights = {key: float(value) for key, value in given}
    unit, losses = losses_of(out, [curve.mixer for curve in evidence.curves], weights)
    rows = table_of(evidence, losses)
    print_table(rows, evidence.objective, unit)
    middle_K = schedule.weights_SK[len(schedule) // 2]
    half = {name: round(float(weight), 4) for name, weight in zip(schedule.domains, middle_K, strict=True)}
    print(f"weights of {evidence.mixer} at half of the run: {half}")
    result = {"table": rows, "loss_in": unit, "weights_at_half": half, "evidence": schedule.info["evidence"]}
    save(f"study_{name}", result, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", required=True, choices=STUDIES)
    parser.add_argument("--work", type=Path, required=True, help="folder of the corpora and runs")
    parser.add_argument("--data", type=Path, help="what the corpora are made of; not for the embedded one")
    parser.add_argument("--eval", type=Path, help="the texts of targets, where there are any")
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

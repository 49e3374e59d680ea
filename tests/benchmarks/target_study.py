"""Mixtures for a target against each other: same engine, text, seeds and budget.

    python -m tests.benchmarks.target_corpus --data DIR --eval DIR --out FOLDER
    python -m tests.benchmarks.target_study --corpus FOLDER --target humaneval

Each run is one `acodm` command, and those that are done, or in the results, are not repeated. A mixer is NAME or
NAME:OPTION=VALUE,…; NAME@N has N episodes, whose cost is counted, and NAME+importance starts from the importance mixture. `swarm@N`
tries N mixtures in runs of a third of the steps, and then trains with the best. `hand` is what someone would write down, and hand50 the
same with 50% for it; `moving` goes from one mixture by hand to another at half of the run; `oracle` is no run, but the best static mixture of all that were run, by its mean over seeds. With --transfer-from MODEL, `policy` and `replay` drive
the model by what `ac-odm` learned on that one. Afterwards results/target_NAME.{parquet,json,png} are written: bits per byte on the
report half of the target by step, the table, the curves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
import pandas as pd

from acodm_cli.display.style import colour_of
from acodm_cli.schedule.evidence import mean_and_interval, share_to_best
from acodm_cli.schedule.schedule import Schedule
from tests.benchmarks.environment import COMMIT, RESULTS, save

MIXERS = ["natural", "uniform", "importance", "hand", "dga", "ac-odm"]
HAND = {
    "humaneval": {"github": 0.9, "stackexchange": 0.05},
    "mmlu": {
        "wikipedia_en": 0.4,
        "gutenberg_books": 0.15,
        "pubmed_abstracts": 0.15,
        "freelaw": 0.1,
        "stackexchange": 0.1,
    },
}
HAND["scarce"] = HAND["humaneval"]
HAND["both"] = {
    name: sum(HAND[target].get(name, 0.0) for target in ("humaneval", "mmlu")) / 2
    for name in {**HAND["humaneval"], **HAND["mmlu"]}
}
# Two mixtures by hand, of a target: what `moving` draws in the first half of a run, and in the second.
MOVING = {
    "humaneval": (("humaneval", 0.5), ("humaneval", None)),
    "scarce": (("scarce", 0.5), ("scarce", None)),
    "both": (("mmlu", None), ("humaneval", None)),
}
# What is measured on, where that is not what the manifest is called.
MEASURED = {"scarce": ("humaneval",), "both": ("humaneval", "mmlu")}
STATIC = ("natural", "uniform", "importance", "hand", "fixed", "swarm")
GUIDED = ("ac-odm", "dga")
TRANSFERS = ("policy", "replay")
AGAINST = ("uniform", "natural", "importance")
# A trial of the swarm has this share of the steps.
TRIAL_SHARE = 1 / 3


class Study:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = (
            options.work / f"{options.target}_{options.model}_{options.steps}x{options.batch}x{options.seq_len}"
        )
        self.folder.mkdir(parents=True, exist_ok=True)

    def named(self, mixer: str) -> str:
        """As recorded: what is transferred is told apart by its proxy."""
        return mixer + (f" of {self.options.transfer_from}" if mixer in TRANSFERS else "")

    def path(self, mixer: str, seed: int) -> Path:
        name = self.named(mixer)
        return self.folder / f"{name.replace(':', '_').replace('=', '-').replace(' ', '_')}_{seed}.parquet"

    def run(self, mixer: str, seed: int) -> None:
        name, command = "proxy-train", None
        base = mixer.partition("@")[0]
        if base in TRANSFERS:
            proxy = Study(argparse.Namespace(**vars(self.options) | {"model": self.options.transfer_from}))
            proxy.run("ac-odm", seed)
            name, command = "apply", ["--schedule", proxy.path("ac-odm", seed), "--mode", base, *self.common(seed)]
        elif base == "swarm":
            trials = Study(argparse.Namespace(**vars(self.options) | {"steps": self.trial_steps}))
            trials._command("proxy-train", trials.path(mixer, seed), trials.arguments(mixer, seed))
            name, command = "apply", ["--schedule", trials.path(mixer, seed), "--mode", "replay", *self.common(seed)]
        elif base == "moving":
            name, command = "apply", ["--schedule", self.moving(), "--mode", "replay", *self.common(seed)]
        path = self.path(mixer, seed)
        if self._command(name, path, command or self.arguments(mixer, seed)):
            print(f"{path.stem}: {curve(Schedule.read(path), self.options.target)[1][-1]:.4f}", flush=True)

    def _command(self, name: str, path: Path, arguments: list[Any]) -> bool:
        """Runs or resumes an acodm command. Returns whether there was something to do."""
        with _LOCKS.setdefault(path, Lock()):
            if path.exists():
                return False
            command = [*map(str, arguments), "--out", str(path)]
            if path.with_suffix(".run").exists():
                command = ["--out", str(path), "--resume"]
            environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.options.jobs))}
            done = subprocess.run(
                [sys.executable, "-m", "acodm_cli", name, *command],
                capture_output=True,
                text=True,
                env=environment,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"{name} {' '.join(command)}\n{done.stderr[-2000:]}")
            return True

    @property
    def trial_steps(self) -> int:
        return round(self.options.steps * TRIAL_SHARE)

    def cost(self, mixer: str) -> float:
        """The runs of this length that a mixture took, the one that used it included. Those of a proxy of another model are not
        counted."""
        base, _, episodes = mixer.partition("@")
        if base == "swarm":
            return 1 + int(episodes) * self.trial_steps / self.options.steps
        return int(episodes or 1)

    def common(self, seed: int) -> list[Any]:
        o = self.options
        return [
            *("--model", o.model, "--seed", seed, "--steps", o.steps, "--batch", o.batch, "--seq-len", o.seq_len),
            *("--data", o.corpus / f"{o.target}.toml", "--tokenizer", o.corpus / "tokenizer.json"),
            *("--validate-every", max(1, o.steps // o.validations), *o.arguments.split()),
        ]

    def arguments(self, mixer: str, seed: int) -> list[Any]:
        """Of `proxy-train`."""
        o = self.options
        label, _, episodes = mixer.partition("@")
        label, _, text = label.partition(":")
        name, _, prior = label.partition("+")
        given = text.split(",") if text else []
        if name.startswith("hand"):
            weights = self.by_hand(o.target, float(name[4:]) / 100 if name[4:] else None)
            listed = ",".join(f"{each}:{weight:.5f}" for each, weight in weights.items())
            name, given = "fixed", [f"weights={listed}"]
        if name == "swarm":
            prior = "importance"
        return [
            *("--mixer", name),
            *(part for option in given for part in ("--mixer-option", option)),
            *(("--prior", prior) if prior else ()),
            *(("--episodes", episodes) if episodes else ()),
            *self.common(seed),
            *(o.guide_arguments.split() if name in GUIDED else ()),
        ]

    def by_hand(self, target: str, total: float | None) -> dict[str, float]:
        """The weights by hand of all domains. total: the share of those that are named; None for what they have there."""
        known = HAND[target]
        scale = 1.0 if total is None else total / sum(known.values())
        lines = (self.options.corpus / "both.toml").read_text().splitlines()
        names = [line[9:-1] for line in lines if line[:9] == "[domains."]
        rest = (1 - scale * sum(known.values())) / (len(names) - len(known))
        return {name: scale * known[name] if name in known else rest for name in names}

    def moving(self) -> Path:
        """Writes the curriculum of `moving`, if it is not there."""
        path = self.folder / "moving.csv"
        if not path.exists():
            halves = [self.by_hand(*chosen) for chosen in MOVING[self.options.target]]
            rows = [
                {"step": step, "domain": name, "weight": weight}
                for step in range(1, self.options.steps + 1)
                for name, weight in halves[2 * (step - 1) // self.options.steps].items()
            ]
            pd.DataFrame(rows).to_csv(path, index=False)
        return path


_LOCKS: dict[Path, Lock] = {}


def curve(schedule: Schedule, target: str, what: str = "bits_per_byte") -> tuple[np.ndarray, np.ndarray]:
    """(steps_R, bits per byte_R) of the steps with a validation; of several targets, the mean."""
    names = MEASURED.get(target, (target,))
    values_S = np.mean([schedule.per_step[f"target.{name}.{what}"].astype(np.float64) for name in names], axis=0)
    rows = np.isfinite(values_S)
    return schedule.step_S[rows], values_S[rows]


def rows_of(study: Study, mixer: str, seed: int) -> pd.DataFrame:
    """What the table needs of a run: a row per validation."""
    schedule = Schedule.read(study.path(mixer, seed))
    steps_R, bits_R = curve(schedule, study.options.target)
    _, loss_R = curve(schedule, study.options.target, "loss")
    mean_K = schedule.weights_SK.mean(axis=0)
    later_SK = schedule.weights_SK[len(schedule) // 10 :]
    largest = ", ".join(f"{schedule.domains[k]} {mean_K[k]:.2f}" for k in np.argsort(-mean_K)[:3])
    fields = {
        "mixer": study.named(mixer), "seed": seed, "cost": study.cost(mixer), "mean_weights": largest,
        "commit": COMMIT, "settings": json.dumps(schedule.info["mixer"]),
        "l1_change_median": float(np.median(np.abs(np.diff(later_SK, axis=0)).sum(axis=1))),
    }  # fmt: skip
    return pd.DataFrame({"step": steps_R, "bits_per_byte": bits_R, "loss": loss_R, **fields})


def summary(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per mixer, best first; `oracle` repeats the best static one."""
    curves: dict[tuple[str, int], pd.DataFrame] = {}
    for key, part in frame.groupby(["mixer", "seed"]):
        curves[cast(tuple[str, int], key)] = part.set_index("step")
    rows = []
    for mixer in frame["mixer"].unique():
        seeds = sorted(seed for name, seed in curves if name == mixer)
        part = frame[frame["mixer"] == mixer]
        last = np.array([curves[mixer, seed]["bits_per_byte"].iloc[-1] for seed in seeds])
        row: dict[str, Any] = {
            "mixer": mixer, "seeds": len(seeds), "cost": float(part["cost"].iloc[0]),
            "bits_per_byte": float(last.mean()), "sd": float(last.std(ddof=1)) if len(last) > 1 else None,
            "loss": float(np.mean([curves[mixer, seed]["loss"].iloc[-1] for seed in seeds])),
            "weights": part["mean_weights"].iloc[-1],
            "l1_change_median": float(part.groupby("seed")["l1_change_median"].first().median()),
        }  # fmt: skip
        for other in AGAINST:
            paired = [seed for seed in seeds if (other, seed) in curves]
            shares: list[float | None] = []
            for seed in paired:
                theirs, ours = curves[other, seed]["bits_per_byte"], curves[mixer, seed]["bits_per_byte"]
                shares.append(
                    share_to_best(ours.index.to_numpy(), ours.to_numpy(), theirs.index.to_numpy(), theirs.to_numpy())
                )
            reached = [share for share in shares if share is not None]
            row[f"steps_to_{other}"] = (
                None if not shares else float(np.mean(reached)) if len(reached) == len(shares) else "never"
            )
            row[f"difference_to_{other}"], row[f"interval_{other}"] = paired_difference(
                np.array([
                    curves[mixer, seed]["bits_per_byte"].iloc[-1] / curves[other, seed]["bits_per_byte"].iloc[-1] - 1
                    for seed in paired
                ])
            )  # fmt: skip
        rows.append(row)
    rows.sort(key=lambda row: float(row["bits_per_byte"]))
    static = [row for row in rows if row["mixer"].partition(":")[0].partition("@")[0].rstrip("0123456789") in STATIC]
    full = [row for row in static if row["seeds"] == max(other["seeds"] for other in static)]
    if full:
        rows.append({**full[0], "mixer": f"oracle ({full[0]['mixer']})"})
    return rows


def paired_difference(differences_N: np.ndarray) -> tuple[float | None, float | None]:
    """(mean in percent, half of its 95% interval by Student's t)."""
    if not len(differences_N):
        return None, None
    mean, _, interval = mean_and_interval(100 * differences_N)
    return mean, interval


def share(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.0%}"


def signed(mean: float | None, interval: float | None) -> str:
    return "" if mean is None else f"{mean:+.1f}%" + ("" if interval is None else f" ± {interval:.1f}")


def print_table(rows: list[dict[str, Any]]) -> None:
    """In Markdown."""
    heads = [
        "mixture", "seeds", "runs trained", "bits per byte", "nats", *(f"against {name}" for name in AGAINST),
        *(f"steps to {name}'s best" for name in AGAINST), "mean weights", "L1 change per step",
    ]  # fmt: skip
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        cells = [
            row["mixer"], str(row["seeds"]), f"{row['cost']:.3g}",
            f"{row['bits_per_byte']:.4f}" + ("" if row["sd"] is None else f" ± {row['sd']:.4f}"), f"{row['loss']:.3f}",
            *(signed(row[f"difference_to_{name}"], row[f"interval_{name}"]) for name in AGAINST),
            *(share(row[f"steps_to_{name}"]) for name in AGAINST), row["weights"], f"{row['l1_change_median']:.4f}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")


def plot(frame: pd.DataFrame, path: Path, title: str) -> None:
    """Bits per byte against steps, each mixer's mean over seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    table = frame.groupby(["mixer", "step"])["bits_per_byte"].mean().unstack("mixer")
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    late = table[table.index >= table.index.max() * 0.2]
    for number, name in enumerate(table.iloc[-1].sort_values().index):
        ours = name.startswith("ac-odm")
        axes.plot(
            late.index, late[name], label=f"{name}  {table[name].iloc[-1]:.3f}", linewidth=2.4 if ours else 1.3,
            color="black" if name == "ac-odm" else colour_of(number), linestyle="-" if number < 7 else "--",
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="bits per byte on the target", title=title)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder that target_corpus has written")
    parser.add_argument("--target", required=True, choices=HAND)
    parser.add_argument("--name", help="of the result; default: the target")
    parser.add_argument("--mixers", nargs="+", default=MIXERS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="pythia-14m")
    parser.add_argument("--transfer-from", default="pythia-14m")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--validations", type=int, default=12)
    parser.add_argument(
        "--arguments", default="--dtype bf16", help="more options for every acodm command, in one string"
    )
    parser.add_argument(
        "--guide-arguments", default="--guide-every 4 --guide-sequences 4", help="of those that targets guide"
    )
    parser.add_argument("--work", type=Path, default=Path("target_study_runs"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--report-only", action="store_true", help="of the runs that are there")
    options = parser.parse_args()
    study, o = Study(options), options
    name, budget = f"target_{o.name or o.target}", f"{o.model}, {o.steps} steps of {o.batch} x {o.seq_len} tokens"
    record = RESULTS / f"{name}.parquet"
    frame = pd.read_parquet(record) if record.exists() else pd.DataFrame({"mixer": [], "seed": [], "budget": []})
    if set(frame["budget"]) - {budget}:
        raise SystemExit(f"{record.name} holds runs of another budget; give another --name, or remove it")
    known = set(zip(frame["mixer"], frame["seed"], strict=True))
    wanted = [(mixer, seed) for seed in o.seeds for mixer in o.mixers if (study.named(mixer), seed) not in known]
    if not options.report_only:
        with ThreadPoolExecutor(options.jobs) as pool:
            for _ in pool.map(lambda run: study.run(*run), wanted):
                pass
    found = [rows_of(study, *run).assign(budget=budget) for run in wanted if study.path(*run).exists()]
    frame = pd.concat([*([frame] if len(frame) else []), *found], ignore_index=True)
    rows = summary(frame)
    print_table(rows)
    frame.to_parquet(record, compression="zstd", index=False)
    plot(frame, RESULTS / f"{name}.png", f"{o.target}: {budget}, {frame['seed'].nunique()} seeds")
    save(name, {"runs": budget, "table": rows}, None)


if __name__ == "__main__":
    main()

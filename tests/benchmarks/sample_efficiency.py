"""Mixers against each other: same engine, text, seeds and budget.

    python -m tests.benchmarks.sample_efficiency --name embedded
    python -m tests.benchmarks.sample_efficiency --name minipile --data minipile/

Each run is one `acodm` command. What the table needs of it goes to results/sample_efficiency_NAME.parquet as soon as it is done, and
runs found there are not repeated (--again repeats them); an unfinished run is resumed. Afterwards the table is printed, and
results/sample_efficiency_NAME.{json,png} are written: the table and the plots.

Mixers are given as NAME or NAME:OPTION=VALUE,…; `doremi` compares with the natural run of the same seed, `doremi-mean` and
`doge-mean` train with the average weights of those runs, as their publications do. `hindsight` is no contender but a measure of
what there is to gain: the static mixture that a regression on all runs recorded so far says is best. Of a proxy for --transfer-from MODEL, `policy`
and `replay` drive the target, and `online` lets the transferred agent learn on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
import pandas as pd

from acodm_cli.corpus.embedded import train_tokenizer
from acodm_cli.corpus.readers import PLAIN, read_documents
from acodm_cli.corpus.sources import FileSource, plan_corpus
from acodm_cli.display.style import colour_of
from acodm_cli.schedule.schedule import Schedule
from tests.benchmarks.environment import RESULTS, save

ALL = ["natural", "uniform", "temperature", "odm", "doge", "doge-mean", "doremi", "doremi-mean", "pike", "ado", "ac-odm-paper", "ac-odm"]  # fmt: skip
# Those that decide while they train, and those whose weights are set before.
STATIC = {"natural", "uniform", "temperature", "doremi-mean", "doge-mean"}
BASELINES = ("natural", "uniform", "odm")
# Runs that another one needs to be there.
NEEDS = {"doremi": "natural", "doremi-mean": "doremi", "doge-mean": "doge"}
TRANSFERS = ("policy", "replay", "online")
FLOOR_SLACK = 1.05
CALM = ["l1_change_median", "entropy_least", "weight_least", "weight_most", "at_floor"]


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = options.work / options.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record = Record(RESULTS / f"sample_efficiency_{options.name}.parquet", options)
        # Runs at the same time may need the same other one first.
        self.locks: defaultdict[Path, Lock] = defaultdict(Lock)

    def path(self, mixer: str, seed: int, proxy: bool = False) -> Path:
        model = self.options.transfer_from if proxy else self.options.model
        label = self.named(mixer).replace(":", "_").replace(",", "_").replace("=", "-").replace(" ", "_")
        return self.folder / f"{model}_{label}_{seed}.parquet"

    def named(self, mixer: str) -> str:
        """As recorded: what is transferred is told apart by its proxy."""
        return f"{mixer} of {self.options.transfer_from}" if mixer in TRANSFERS else mixer

    def run_all(self) -> None:
        if self.options.data:
            self.tokenizer()
        runs = [(mixer, seed) for mixer in self.options.mixers for seed in self.options.seeds]
        with ThreadPoolExecutor(self.options.jobs) as pool:
            for _ in pool.map(lambda run: self.run(*run), runs):
                pass

    def run(self, mixer: str, seed: int) -> None:
        if self.options.again:
            self.path(mixer, seed).unlink(missing_ok=True)
        if self.options.again or not self.record.holds(self.named(mixer), seed):
            self.record.add(self.ensure(mixer, seed), self.named(mixer), seed)

    def ensure(self, mixer: str, seed: int, proxy: bool = False) -> Path:
        """The schedule of a run, which is made unless it is there."""
        path = self.path(mixer, seed, proxy)
        name = mixer.partition(":")[0]
        if name in NEEDS:
            self.ensure(NEEDS[name], seed, proxy)
        with self.locks[path]:
            if not path.exists():
                self.make(path, mixer, seed, proxy)
        return path

    def make(self, path: Path, mixer: str, seed: int, proxy: bool) -> None:
        command = [*self.command(mixer, seed, proxy), "--out", str(path)]
        if path.with_name(f"{path.stem}.run").exists():
            command = [*command[:2], "--out", str(path), "--resume"]
        started = time.time()
        threads = max(1, (os.cpu_count() or 1) // self.options.jobs)
        environment = {"OMP_NUM_THREADS": str(threads)} | _alone()
        done = subprocess.run(
            [sys.executable, "-m", "acodm_cli", *command[1:]], capture_output=True, text=True, env=environment
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        print(f"{path.stem}: {time.time() - started:.0f} s, {final(Schedule.read(path)):.4f}", flush=True)

    def command(self, mixer: str, seed: int, proxy: bool) -> list[str]:
        o = self.options
        name, _, text = mixer.partition(":")
        options = text.split(",") if text else []
        model = o.transfer_from if proxy else o.model
        common = [
            "--model",
            model,
            "--seed",
            str(seed),
            "--steps",
            str(o.steps),
            "--batch",
            str(o.batch),
            "--seq-len",
            str(o.seq_len),
        ]
        common += [
            "--validate-every",
            str(max(1, o.steps // o.validations)),
            "--validation-sequences",
            str(o.validation_sequences),
        ]
        if o.data:
            common += ["--data", str(o.data), "--tokenizer", str(self.tokenizer())]
        common += o.arguments.split()
        if name in TRANSFERS:
            proxy_run = self.ensure("ac-odm", seed, proxy=True)
            return ["acodm", "apply", "--schedule", str(proxy_run), "--mode", name, *common]  # fmt: skip
        if name == "natural":
            common += ["--save-model", str(self.path("natural", seed, proxy).with_suffix(".model")), "--force"]
        if name == "hindsight":
            weights = hindsight(self.record.frame)
            options.append("weights=" + ",".join(f"{domain}:{weight:.4f}" for domain, weight in weights.items()))
            name = "fixed"
        if name == "doremi":
            options.append(f"reference={self.path('natural', seed, proxy).with_suffix('.model')}")
        if name.endswith("-mean"):
            options.append(f"schedule={self.path(NEEDS[name], seed, proxy)}")
            name = "fixed"
        if name == "ac-odm-paper":
            common += ["--agent", "paper"]
            name = "ac-odm"
        if self.options.prior and mixer.partition(":")[0] not in {*STATIC, "hindsight"}:
            common += ["--prior", self.options.prior]
        pairs = [part for option in options for part in ("--mixer-option", option)]
        return ["acodm", "proxy-train", "--mixer", name, *pairs, *common]

    def tokenizer(self) -> Path:
        """A byte-level BPE of 4096 tokens, trained once on the same share of every domain."""
        if self.options.tokenizer:
            return Path(self.options.tokenizer)
        path = self.folder / "tokenizer.json"
        if not path.exists():
            samples = []
            for source in plan_corpus(str(self.options.data), PLAIN).sources:
                assert isinstance(source, FileSource)
                samples += head(source, 400_000)
            train_tokenizer(samples).save(str(path))
        return path


def head(source: FileSource, characters: int) -> list[str]:
    """The first documents of a source, until they have more than so many characters."""
    texts: list[str] = []
    for file in source.train:
        for document in read_documents(file, source.fields):
            if sum(map(len, texts)) > characters:
                return texts
            texts.append(document.text[:40_000])
    return texts


def _alone() -> dict[str, str]:
    """Without what a launcher may have left in the environment."""
    return {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}


# Reading runs


class Record:
    """What the table needs of every run, in a tidy file: one row per mixer, seed, validated step and domain.

    weight: mean since the validation before. budget, corpus: what must be the same for runs to be compared; corpus is the
    fingerprints of text and tokenizer. The rest as of `calmness`.
    """

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        o = options
        self.path, self.options = path, options
        self.lock = Lock()
        self.budget = (
            f"{o.model}, {o.steps} steps of {o.batch} x {o.seq_len} tokens, prior {o.prior or 'uniform'}, validated on "
            f"{o.validation_sequences} sequences per domain {o.arguments}"
        ).strip()
        self.frame = self.read()

    def read(self) -> pd.DataFrame:
        if not self.path.exists():
            return pd.DataFrame({"mixer": [], "seed": [], "budget": [], "corpus": []})
        frame = pd.read_parquet(self.path)
        if other := set(frame["budget"]) - {self.budget}:
            raise SystemExit(
                f"{self.path.name} holds runs of another budget: {other}; give another --name, or remove it"
            )
        return frame

    def holds(self, mixer: str, seed: int) -> bool:
        return bool(((self.frame["mixer"] == mixer) & (self.frame["seed"] == seed)).any())

    def add(self, path: Path, mixer: str, seed: int) -> None:
        schedule = Schedule.read(path)
        asked = (self.options.steps, self.options.batch, self.options.seq_len)
        if (found_there := tuple(schedule.info[name] for name in ("steps", "batch", "seq_len"))) != asked:
            raise SystemExit(f"{path} is of {found_there} steps, sequences and tokens, not {asked}; remove it")
        corpus = " ".join(schedule.info[part]["fingerprint"] for part in ("corpus", "tokenizer"))
        steps_R, losses_RK = validations(schedule)
        rows_S = np.searchsorted(steps_R, schedule.step_S)
        weights_RK = pd.DataFrame(schedule.weights_SK).groupby(rows_S).mean().to_numpy()
        rows, domains = len(steps_R), len(schedule.domains)
        found = pd.DataFrame(
            {
                "mixer": mixer,
                "seed": seed,
                "step": np.repeat(steps_R, domains),
                "domain": np.tile(schedule.domains, rows),
                "validation_loss": losses_RK.ravel(),
                "weight": weights_RK.ravel(),
                "budget": self.budget,
                "corpus": corpus,
                **calmness(schedule),
            }
        )
        with self.lock:
            # Again, for another process may have written.
            frame = self.read()
            if set(frame["corpus"]) - {corpus}:
                raise SystemExit(f"{path} is of another corpus or tokenizer than {self.path.name}; give another --name")
            others = frame[(frame["mixer"] != mixer) | (frame["seed"] != seed)]
            self.frame = pd.concat([others, found], ignore_index=True) if len(others) else found
            partial = self.path.with_suffix(".partial")
            self.frame.to_parquet(partial, compression="zstd", index=False)
            partial.rename(self.path)


def validations(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """(steps_R, losses_RK in nats) of the steps with a validation."""
    losses_SK = schedule.per_domain["validation_loss"].astype(np.float64)
    rows = np.isfinite(losses_SK).all(axis=1)
    return schedule.step_S[rows], losses_SK[rows]


def final(schedule: Schedule) -> float:
    return float(validations(schedule)[1][-1].mean())


def steps_to(target: float, steps_R: np.ndarray, values_R: np.ndarray) -> float:
    """The step at which a falling curve first reaches the target, between validations by a line; NaN if it never does."""
    reached = np.flatnonzero(values_R <= target)
    if not len(reached):
        return float("nan")
    after = int(reached[0])
    if after == 0:
        return float(steps_R[0])
    share = (values_R[after - 1] - target) / (values_R[after - 1] - values_R[after])
    return float(steps_R[after - 1] + share * (steps_R[after] - steps_R[after - 1]))


def calmness(schedule: Schedule) -> dict[str, float]:
    """How the weights move after the first tenth: the median L1 change per step, the smallest entropy, the largest weight, and the
    share of weights at their floor, which is the lowest that occurs if it occurs often."""
    weights_SK = schedule.weights_SK[len(schedule) // 10 :]
    changes_S = np.abs(np.diff(weights_SK, axis=0)).sum(axis=1)
    return {
        "l1_change_median": float(np.median(changes_S)),
        "entropy_least": float(schedule.per_step["entropy"][len(schedule) // 10 :].min()),
        "weight_least": float(weights_SK.min()),
        "weight_most": float(weights_SK.max()),
        "at_floor": float((weights_SK <= FLOOR_SLACK * weights_SK.min()).mean()),
    }


def summary(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per mixer."""
    by_step = frame.assign(perplexity=np.exp(frame["validation_loss"])).groupby(["mixer", "seed", "step"])["perplexity"]
    curves: dict[tuple[str, int], pd.Series] = {}
    for key, curve in by_step.mean().groupby(["mixer", "seed"]):
        curves[cast(tuple[str, int], key)] = curve.droplevel(["mixer", "seed"])
    rows = []
    for mixer in frame["mixer"].unique():
        seeds = sorted(seed for name, seed in curves if name == mixer)
        part = frame[frame["mixer"] == mixer]
        last = part[part["step"] == part["step"].max()]
        losses_N = last.groupby("seed")["validation_loss"].mean().to_numpy()
        perplexities_N = np.array([curves[mixer, seed].iloc[-1] for seed in seeds])
        of_domain = last.groupby("domain")["validation_loss"].mean()
        row = {
            "mixer": mixer,
            "seeds": len(seeds),
            "perplexity": float(perplexities_N.mean()),
            "perplexity_sd": _deviation(perplexities_N),
            **below_uniform(curves, mixer, seeds),
            "loss": float(losses_N.mean()),
            "loss_sd": _deviation(losses_N),
            "worst_domain": str(of_domain.idxmax()),
            "worst_loss": float(of_domain.max()),
        }
        for baseline in BASELINES:
            shares = []
            for seed in seeds:
                if (baseline, seed) in curves:
                    theirs, ours = curves[baseline, seed], curves[mixer, seed]
                    reached = steps_to(float(theirs.min()), ours.index.to_numpy(), ours.to_numpy())
                    shares.append(reached / float(theirs.index.to_numpy()[theirs.argmin()]))
            row[f"steps_to_{baseline}"] = _mean_share(shares)
        calm = part.groupby("seed")[CALM].first().mean()
        row |= {name: float(calm[name]) for name in CALM}
        rows.append(row)
    return rows


def hindsight(frame: pd.DataFrame) -> pd.Series:
    """Weights per domain that minimise the final mean perplexity, if every domain's loss falls with the logarithm of its own weight.

    s_i, the slope of that, is fitted over the runs of all mixers, less the mean over those of the same seed; then, to first
    order, w_i ∝ exp(ℓ_i) s_i with the median final loss ℓ_i. A twentieth is uniform.
    """
    run_and_domain = ["mixer", "seed", "domain"]
    rows = frame.sort_values("step")
    steps = rows.groupby(run_and_domain)["step"].diff().fillna(rows["step"])
    of_run = rows.assign(tokens=rows["weight"] * steps).groupby(run_and_domain)
    runs = pd.DataFrame({"log_weight": np.log(of_run["tokens"].sum()), "loss": of_run["validation_loss"].last()})
    centred = runs - runs.groupby(["seed", "domain"]).transform("mean")
    moments = centred.assign(both=centred["log_weight"] * centred["loss"], square=centred["log_weight"] ** 2)
    sums = moments.groupby("domain")[["both", "square"]].sum()
    slopes = (-sums["both"] / sums["square"]).clip(lower=0)
    weights = np.exp(runs["loss"].groupby("domain").median()) * slopes
    return 0.95 * weights / weights.sum() + 0.05 / len(weights)


def _mean_share(shares: list[float]) -> float | str | None:
    """Of seeds of which some never reach it, there is no mean. None: the baseline was not run with these seeds."""
    if not shares:
        return None
    return "never" if np.isnan(shares).any() else float(np.mean(shares))


def below_uniform(curves: dict[tuple[str, int], pd.Series], mixer: str, seeds: list[int]) -> dict[str, float | None]:
    """By how much the final perplexity is below uniform's of the same seed, in percent, and its standard deviation over seeds.
    Runs of one seed share their initial weights and the order of each domain's text, so that this varies less than either."""
    pairs = [
        (curves[mixer, seed].iloc[-1], curves["uniform", seed].iloc[-1])
        for seed in seeds
        if ("uniform", seed) in curves
    ]
    percents = np.array([100 * (1 - ours / theirs) for ours, theirs in pairs])
    return {
        "below_uniform": float(percents.mean()) if len(percents) else None,
        "below_uniform_sd": _deviation(percents),
    }


def _deviation(values_N: np.ndarray) -> float | None:
    return float(values_N.std(ddof=1)) if len(values_N) > 1 else None


def _sd(deviation: float | None, digits: int) -> str:
    return "" if deviation is None else f" ± {deviation:.{digits}f}"


def print_table(rows: list[dict[str, Any]]) -> None:
    """In Markdown, best first."""
    heads = ["mixer", "seeds", "perplexity", "below uniform", "loss, nats", "worst domain", *(f"steps to {name}'s best" for name in BASELINES), "L1 change per step", "weights", "least entropy"]  # fmt: skip
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in sorted(rows, key=lambda row: row["perplexity"]):
        shares = [row[f"steps_to_{name}"] for name in BASELINES]
        cells = [
            row["mixer"],
            str(row["seeds"]),
            f"{row['perplexity']:.2f}{_sd(row['perplexity_sd'], 2)}",
            "" if row["below_uniform"] is None else f"{row['below_uniform']:.1f}%{_sd(row['below_uniform_sd'], 1)}",
            f"{row['loss']:.4f}{_sd(row['loss_sd'], 4)}",
            f"{row['worst_domain']} {row['worst_loss']:.3f}",
            *("" if share is None else share if isinstance(share, str) else f"{share:.0%}" for share in shares),
            f"{row['l1_change_median']:.4f}",
            f"{row['weight_least']:.2f} to {row['weight_most']:.2f}",
            f"{row['entropy_least']:.2f}",
        ]
        print("| " + " | ".join(cells) + " |")


def plot(frame: pd.DataFrame, path: Path, title: str) -> None:
    """Perplexity against steps, each mixer's mean over seeds; and what it is below or above uniform's of the same seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import StrMethodFormatter

    curves = (
        frame.assign(perplexity=np.exp(frame["validation_loss"]))
        .groupby(["mixer", "seed", "step"])["perplexity"]
        .mean()
    )
    table = curves.groupby(["mixer", "step"]).mean().unstack("mixer")
    if "uniform" in table:
        of_uniform = curves.xs("uniform", level="mixer")
        percent = 100 * (curves.div(of_uniform) - 1)
        relative = percent.groupby(["mixer", "step"]).mean().unstack("mixer")
    order = list(table.iloc[-1].sort_values().index)
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    late = table[table.index >= table.index.max() * 0.2]
    for number, name in enumerate(order):
        style: dict[str, Any] = {
            "color": "black" if name == "ac-odm" else colour_of(number),
            "linewidth": 2.5 if name == "ac-odm" else 1.4,
            "linestyle": "-" if number < 7 else "--",
            "label": name,
        }
        axes[0].plot(late.index, late[name], **style)
        if "uniform" in table:
            axes[1].plot(late.index, relative.loc[late.index, name], **style)
    axes[0].set(xlabel="step", ylabel="validation perplexity, mean over domains", yscale="log")
    for which in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        which(StrMethodFormatter("{x:.0f}"))
    axes[1].set(xlabel="step", ylabel="relative to uniform, %")
    if "uniform" in table:
        axes[1].set_ylim(1.3 * float(relative.loc[late.index].min().min()) - 0.5, 12)
    axes[1].legend(fontsize=8, ncols=2)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the result, and of the folder of its runs")
    parser.add_argument("--data", type=Path, help="as acodm's; default: the embedded corpus")
    parser.add_argument("--tokenizer", help="default: one of 4096 tokens trained on --data")
    parser.add_argument("--mixers", nargs="+", default=ALL)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="pythia-14m")
    parser.add_argument("--transfer-from", default="pythia-14m", help="proxy of the mixers policy, replay and online")
    parser.add_argument("--prior", help="as acodm's; default: uniform, or the manifest's")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--validations", type=int, default=12)
    parser.add_argument("--validation-sequences", type=int, default=32)
    parser.add_argument("--arguments", default="", help="more options for every acodm command, in one string")
    parser.add_argument("--work", type=Path, default=Path("sample_efficiency_runs"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--again", action="store_true", help="repeat runs that the results hold")
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    bench = Bench(options)
    if not options.report_only:
        bench.run_all()
    frame = bench.record.frame
    rows = summary(frame)
    print_table(rows)
    title = f"{options.name}: {bench.record.budget.split(', prior')[0]}, {frame['seed'].nunique()} seeds"
    plot(frame, RESULTS / f"sample_efficiency_{options.name}.png", title)
    save(f"sample_efficiency_{options.name}", {"runs": bench.record.budget, "table": rows}, None)


if __name__ == "__main__":
    main()

"""Continued pretraining: three new domains for a model that was trained on ten, which it must not forget.

    python -m tests.benchmarks.continued --data DIR --work FOLDER

--data is a folder with a sub-folder per domain (train.jsonl.gz, validation.jsonl.gz). A pythia-14m is trained on the old domains with
uniform weights, 600 steps of 16 x 128 tokens. Each mixer then goes on with it for 300 steps on all domains, with `--keep` of the old ones:
`replay30` is fixed, 30% for the old domains and the rest for the new ones, alike within both. Runs that are done are not repeated.
In every fourth step, a sequence of each domain guides ac-odm. Written are results/continued.parquet, with the held-out losses of every domain before and at the end, and results/continued.json, the table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from acodm_cli.schedule.schedule import Schedule
from tests.benchmarks.environment import COMMIT, RESULTS, save
from tests.benchmarks.target_corpus import train_on

NEW = ("freelaw", "github", "pubmed_central")
MIXERS = ["natural", "uniform", "replay30", "ac-odm"]
REPLAYED = 0.3
BUDGET = 0.02
SHAPE = ["--batch", "16", "--seq-len", "128", "--dtype", "bf16"]


def manifests(data: Path, work: Path) -> list[str]:
    """Writes old.toml and all.toml, and the tokenizer. Returns the names of all domains."""
    folders = [folder.resolve() for folder in sorted(data.iterdir()) if folder.is_dir()]
    tables = {
        folder.name: f'[domains.{folder.name}]\nfiles = ["{folder}/train.jsonl.gz"]\nvalidation = "{folder}/validation.jsonl.gz"\n'
        for folder in folders
    }
    (work / "old.toml").write_text("".join(table for name, table in tables.items() if name not in NEW))
    kept = {name: table + ("" if name in NEW else "keep = true\n") for name, table in tables.items()}
    (work / "all.toml").write_text("".join(kept.values()))
    if not (work / "tokenizer.json").exists():
        train_on(data, work / "tokenizer.json")
    return list(tables)


def train(out: Path, threads: int, *arguments: object) -> None:
    """Runs `acodm proxy-train`, or goes on with it; nothing if it is done."""
    if out.exists():
        return
    given = ["--resume"] if out.with_suffix(".run").exists() else [*arguments, *SHAPE]
    command = [sys.executable, "-m", "acodm_cli", "proxy-train", *map(str, given), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    print(out.stem, flush=True)


def go_on(work: Path, names: list[str], threads: int, mixer: str, seed: int) -> None:
    chosen: list[object] = ["--mixer", mixer]
    if mixer == "replay30":
        old = [name for name in names if name not in NEW]
        weights = {**dict.fromkeys(old, REPLAYED / len(old)), **dict.fromkeys(NEW, (1 - REPLAYED) / len(NEW))}
        listed = ",".join(f"{name}:{weight:.6f}" for name, weight in weights.items())
        chosen = ["--mixer", "fixed", "--mixer-option", f"weights={listed}"]
    train(
        work / f"{mixer}_{seed}.parquet", threads, *chosen, "--init-from", work / "base.model", "--data", work / "all.toml",
        "--keep-budget", BUDGET, "--seed", seed, "--steps", 300, "--validate-every", 25,
        *(("--guide-every", 4) if mixer == "ac-odm" else ()),
    )  # fmt: skip


def rows_of(work: Path, mixer: str, seed: int) -> pd.DataFrame:
    """A row per domain: its held-out loss before training and at the end, in nats, and its mean weight."""
    schedule = Schedule.read(work / f"{mixer}_{seed}.parquet")
    before = schedule.run.losses_before
    return pd.DataFrame({
        "mixer": mixer, "seed": seed, "domain": schedule.domains, "commit": COMMIT,
        "before": [before[name] for name in schedule.domains],
        "end": schedule.per_domain["validation_loss"][-1].astype(np.float64),
        "weight": schedule.weights_SK.mean(axis=0),
    })  # fmt: skip


def table_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per mixer: means over seeds, and the largest rise of an old domain in any."""
    rows = []
    for mixer, part in frame.groupby("mixer", sort=False):
        new, old = part[part["domain"].isin(NEW)], part[~part["domain"].isin(NEW)]
        rise = old["end"] / old["before"] - 1
        of_seed = new.groupby("seed")["end"].mean()
        rows.append({
            "mixer": mixer, "seeds": len(of_seed), "new": float(of_seed.mean()), "new_sd": float(of_seed.std(ddof=1)),
            "new_before": float(new["before"].mean()), "old": float(old["end"].mean()), "old_before": float(old["before"].mean()),
            "worst_rise": float(rise.max()), "over_budget": f"{int((rise > BUDGET).sum())} of {len(rise)}",
            "old_weight": float(old.groupby("seed")["weight"].sum().mean()),
        })  # fmt: skip
    return sorted(rows, key=lambda row: row["new"])


def print_table(rows: list[dict[str, Any]]) -> None:
    """In Markdown."""
    print(
        "| mixer | seeds | new domains, nats | old domains, nats | largest rise of an old one | above the budget | weight of the old |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['mixer']} | {row['seeds']} | {row['new_before']:.3f} -> {row['new']:.3f} ± {row['new_sd']:.3f} | "
            f"{row['old_before']:.3f} -> {row['old']:.3f} | {row['worst_rise']:+.1%} | {row['over_budget']} | {row['old_weight']:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--mixers", nargs="+", default=MIXERS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    o = parser.parse_args()
    o.work.mkdir(parents=True, exist_ok=True)
    threads, names = max(1, (os.cpu_count() or 1) // o.jobs), manifests(o.data, o.work)
    tokenizer = ["--tokenizer", o.work / "tokenizer.json"]
    train(
        o.work / "base.parquet", threads, "--mixer", "uniform", "--model", "pythia-14m", "--steps", 600,
        "--data", o.work / "old.toml", *tokenizer, "--save-model", o.work / "base.model",
    )  # fmt: skip
    wanted = [(mixer, seed) for seed in o.seeds for mixer in o.mixers]
    with ThreadPoolExecutor(o.jobs) as pool:
        for _ in pool.map(lambda run: go_on(o.work, names, threads, *run), wanted):
            pass
    frame = pd.concat([rows_of(o.work, *run) for run in wanted], ignore_index=True)
    rows = table_of(frame)
    print_table(rows)
    frame.to_parquet(RESULTS / "continued.parquet", compression="zstd", index=False)
    save("continued", {"table": rows}, None)


if __name__ == "__main__":
    main()

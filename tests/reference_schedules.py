"""Makes schedules/ out of published mixtures.

    python -m tests.reference_schedules reference_weights.csv

The CSV has a row per mixture and domain: schedule, domain, weight, repository, path, commit. Written are a Parquet file per mixture and
schedules/README.md. What the numbers are, below, was read in those repositories and papers; a mixture that is not described is an error.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from acodm_cli import __version__
from acodm_cli.schedule.columns import DOMAIN_COLUMNS, STEP_COLUMNS
from acodm_cli.schedule.measures import entropy
from acodm_cli.schedule.schedule import Schedule

FOLDER = Path(__file__).parents[1] / "schedules"
NEOX = "GPT-NeoX-20B (50k)"
DOREMI = "DoReMi, arXiv 2305.10429"
ODM = "ODM, arXiv 2312.02406"


@dataclass(frozen=True)
class Description:
    """title: what mixture it is. paper: where it was published. tokenizer: whose tokens the weights are shares of. caveat: what to
    know before using it."""

    title: str
    paper: str
    tokenizer: str
    caveat: str


DESCRIPTIONS = {
    "pile-natural": Description(
        "The Pile as published, with its up-sampling",
        "The Pile, arXiv 2101.00027",
        "none: shares of bytes",
        "Bytes times the epochs that The Pile's authors gave each set, not shares of anyone's tokens.",
    ),
    "pile-baseline-256k": Description(
        "The Pile in proportion to tokens, DoReMi's baseline", DOREMI, "Google's, 256k", "Of a tokenizer that is not public."
    ),
    "pile-doremi-280m-256k": Description(
        "DoReMi on The Pile, 280M proxy", DOREMI, "Google's, 256k",
        "Puts 61% on Pile-CC; with 50k tokenizers DoReMi's own authors find other weights.",
    ),
    "pile-doremi-120m-50k": Description(
        "DoReMi on The Pile, 120M proxy, as ODM's authors used it", DOREMI, NEOX, "Rounded to four digits in the source.",
    ),
    "pile-doremi-120m-50k-full-precision": Description(
        "DoReMi on The Pile, 120M proxy, the code release's sample run", DOREMI, NEOX,
        "Of the open re-implementation in PyTorch, after one round.",
    ),
    "pile-doremi-1b": Description(
        "DoReMi on The Pile, 1B proxy, as ODM's authors used it", DOREMI, "not stated; DoReMi's paper used Google's, 256k",
        "From ODM's repository. Most is on OpenWebText2, as DoReMi's authors say of another proxy size than 280M.",
    ),
    "pile-odm-1b-mean": Description(
        "Mean weights of ODM's run, 1B", ODM, NEOX, "The mean of weights that moved: it is not what ODM trained with."
    ),
    "pile-odm-1b-final": Description(
        "Last weights of ODM's run, 1B", ODM, NEOX, "Where the weights ended: it is not what ODM trained with."
    ),
    "pile-regmix-1b": Description(
        "RegMix on The Pile's permitted sets, regression on 1M proxies", "RegMix, arXiv 2407.01492", NEOX,
        "17 of 22 domains: without those that were withdrawn for copyright; optimised for the loss on Pile-CC, which gets 87%.",
    ),
    "redpajama-natural": Description(
        "RedPajama-1T in proportion to tokens, DoReMi's baseline", "RedPajama-1T; the weights from DoReMi's code release", "not stated",
        "Domains are named as the dataset's parts are; SlimPajama's names need --map.",
    ),
}  # fmt: skip


def make(rows: pd.DataFrame) -> Schedule:
    """rows: of one mixture; their index is the line of the CSV."""
    name = rows["schedule"].iloc[0]
    about = DESCRIPTIONS[name]
    domains = rows["domain"].tolist()
    published_K = rows["weight"].to_numpy()
    weights_K = published_K / published_K.sum()
    per_domain = {
        column: np.full((1, len(domains)), np.nan).astype(dtype)
        for column, dtype in DOMAIN_COLUMNS.items()
        if column != "samples"
    }
    per_domain |= {"weight": weights_K[None].astype(np.float32), "samples": np.zeros((1, len(domains)), np.int32)}
    per_step = {column: np.full(1, np.nan, np.float32) for column in STEP_COLUMNS}
    per_step["entropy"] = np.array([entropy(weights_K)], np.float32)
    repository, path, commit = rows[["repository", "path", "commit"]].iloc[0]
    info = {
        "acodm_version": __version__,
        "command": "reference",
        "title": about.title,
        "paper": about.paper,
        "source": f"https://github.com/{repository}/blob/{commit}/{path}",
        "caveat": about.caveat,
        "published": dict(zip(domains, published_K.tolist(), strict=True)),
        "csv_lines": dict(zip(domains, rows.index.tolist(), strict=True)),
        "tokenizer": {"name": about.tokenizer},
        "mixer": {"name": "fixed"},
    }
    return Schedule(domains, np.array([1]), np.array([0]), per_domain, per_step, info)


def readme(schedules: dict[str, Schedule]) -> str:
    lines = [
        "# Reference schedules",
        "",
        "Published mixtures in acodm's schedule format, one step each, to train with, to compare with and to start from. They are installed",
        "with acodm and go by their names:",
        "",
        "    acodm inspect pile-doremi-280m-256k pile-natural",
        "    acodm apply --schedule pile-doremi-120m-50k --data pile/ --domain-field meta.pile_set_name --tokenizer 20B_tokenizer.json \\",
        "      --model pythia-160m --steps 5000 --batch 256 --seq-len 1024",
        "",
        "The corpus must have the same domains, or `apply --map` says what they are there: `OLD=NEW` renames, `OLD=ONE+OTHER` splits, the same NEW",
        "for several merges, `OLD=` leaves out. `pile-regmix-1b` has 17 of The Pile's 22: take a corpus of these, or give each of the others its",
        "share by tokens with `=NEW`.",
        "",
        "Weights are shares of sequences. They depend on the tokenizer: a share of one tokenizer's tokens is not one of another's. What was",
        "published rounded is divided by its sum. The numbers as published, their source and the line of the table they were made from are in each",
        "file's metadata. All were made by `python -m tests.reference_schedules reference_weights.csv`.",
        "",
        "| name | domains | what | tokenizer | paper | source | caveat |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, schedule in schedules.items():
        info = schedule.info
        cells = [
            f"`{name}`",
            str(len(schedule.domains)),
            info["title"],
            info["tokenizer"]["name"],
            info["paper"],
            f"[file]({info['source'].replace(' ', '%20')})",
            info["caveat"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    table = pd.read_csv(parser.parse_args().csv)
    table.index += 2  # the first line holds the names
    schedules = {str(name): make(rows) for name, rows in table.groupby("schedule", sort=False)}
    for name, schedule in schedules.items():
        schedule.write(FOLDER / f"{name}.parquet")
    (FOLDER / "README.md").write_text(readme(schedules))


if __name__ == "__main__":
    main()

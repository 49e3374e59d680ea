"""CSV: one file, mixture.csv, with one row per stage and domain."""

from __future__ import annotations

import csv
import io

import numpy as np

from acodm_cli.exports.plan import Array, Export, Plan, Target, stage_rows
from acodm_cli.writing import cell

TRAINER = "any trainer"
_COLUMNS = ("stage", "first_step", "steps", "first_sample", "first_token", "domain", "weight")


def multiple(target: Target) -> int:
    return 1


def export(plan: Plan) -> Export:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for number, row in enumerate(stage_rows(plan)):
        for name, weight in row["weights"].items():
            writer.writerow([number, *(row[column] for column in _COLUMNS[1:5]), cell(name), weight])
    return Export({"mixture.csv": text.getvalue()}, [])


def realised(files: dict[str, str], plan: Plan) -> Array:
    rows = list(csv.DictReader(io.StringIO(files["mixture.csv"])))
    return np.array([float(row["weight"]) for row in rows]).reshape(-1, len(plan.domains))

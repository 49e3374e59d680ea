"""JSON, for a trainer of your own: every stage with its first step, sample and token, and its weights by domain."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np

from acodm_cli.exports.plan import Array, Export, Plan, Target, stage_rows

TRAINER = "any trainer"


def multiple(target: Target) -> int:
    return 1


def export(plan: Plan) -> Export:
    value = {
        "schedule": plan.source,
        "target": asdict(plan.target),
        "domains": plan.domains,
        "stages": stage_rows(plan),
    }
    return Export({"mixture.json": json.dumps(value, indent=1) + "\n"}, [])


def realised(files: dict[str, str], plan: Plan) -> Array:
    stages = json.loads(files["mixture.json"])["stages"]
    return np.array([[stage["weights"][name] for name in plan.domains] for stage in stages])

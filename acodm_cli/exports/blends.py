"""Blends of indexed datasets, shared by Megatron-LM and the trainers that took its data over."""

from __future__ import annotations

import json

import numpy as np

from acodm_cli.errors import UsageError
from acodm_cli.exports.checks import domain_paths
from acodm_cli.exports.counts import blend_counts
from acodm_cli.exports.plan import Array, Plan

NAME = "blend-from-iteration-"


def prefixes(plan: Plan, trainer: str) -> list[str]:
    """Returns the prefix of every domain's .bin and .idx. Raises: UsageError if one is not a prefix that is read."""
    paths = domain_paths(plan, trainer)
    for path in paths:
        if path != path.strip():
            raise UsageError(f"{trainer} strips the spaces around {path!r}; move the tokens to a path without them")
        if path.endswith((".bin", ".idx")):
            raise UsageError(f"{trainer} adds .bin and .idx itself; give {path[:-4]!r} instead of {path!r}")
    return paths


def blend_files(plan: Plan, trainer: str) -> dict[str, str]:
    """Returns a JSON file per stage for `per_split_data_args_path`. A weight of 0 is no blend: such a domain is left out."""
    paths = prefixes(plan, trainer)
    files = {}
    for stage in plan.stages:
        drawn = [(path, weight) for path, weight in zip(paths, stage.weights_K.tolist(), strict=True) if weight > 0]
        blend = [item for path, weight in drawn for item in (repr(weight), path)]
        files[f"{NAME}{stage.first}.json"] = json.dumps({"train": blend, "valid": None, "test": None}, indent=1) + "\n"
    return files


def read_blends(files: dict[str, str], plan: Plan) -> tuple[list[int], Array]:
    """Returns the iteration that every stage begins at, and its normalised weights by domain. [N, K]"""
    blends = {int(name.removeprefix(NAME).removesuffix(".json")): json.loads(text) for name, text in files.items()}
    first_N = sorted(blends)
    weights_NK = np.zeros((len(first_N), len(plan.domains)))
    domain_of = {plan.target.path_of(domain): index for index, domain in enumerate(plan.domains)}
    for number, first in enumerate(first_N):
        blend = blends[first]["train"]
        indices = [domain_of[prefix.strip()] for prefix in blend[1::2]]
        weights_NK[number, indices] = [float(weight) for weight in blend[::2]]
    return first_N, weights_NK / weights_NK.sum(axis=1, keepdims=True)


def drawn_of_each(weights_NK: Array, sizes_N: list[int]) -> Array:
    """Returns how many of the first samples of every blend come from each domain. [N, K]"""
    counts_NK = np.zeros_like(weights_NK)
    drawn_NK = weights_NK > 0
    weights_N = [row_K[drawn_K] / row_K[drawn_K].sum() for row_K, drawn_K in zip(weights_NK, drawn_NK, strict=True)]
    for number, counts_K in enumerate(blend_counts(weights_N, sizes_N)):
        counts_NK[number, drawn_NK[number]] = counts_K
    return counts_NK


def places(plan: Plan, first_N: list[int], weights_NK: Array) -> tuple[Array, Array]:
    """Returns at which sequence of every domain each stage begins and ends, where a restart goes on in its new blend at the sample
    that the run has reached. [N, K] each"""
    begin_N = [first * plan.target.batch for first in first_N]
    end_N = [*begin_N[1:], plan.target.steps * plan.target.batch]
    return drawn_of_each(weights_NK, begin_N), drawn_of_each(weights_NK, end_N)


def continued(plan: Plan, first_N: list[int], weights_NK: Array) -> Array:
    """Returns the shares of every stage, where a restart goes on in its new blend. [N, K]"""
    begin_NK, end_NK = places(plan, first_N, weights_NK)
    counts_NK = end_NK - begin_NK
    return counts_NK / counts_NK.sum(axis=1, keepdims=True)


def notes_of_places(plan: Plan, weights_NK: Array) -> list[str]:
    """Returns what every restart skips and repeats, where it goes on in its new blend as if the run had drawn from that from its
    beginning."""
    begin_NK, end_NK = places(plan, [stage.first for stage in plan.stages], weights_NK)
    notes = []
    reached_K = end_NK[0]
    for number, stage in enumerate(plan.stages[1:], 1):
        change_K = np.rint(begin_NK[number] - reached_K)
        change_K[weights_NK[number] == 0] = 0
        said = []
        for what, by_K in (("skips", change_K), ("repeats", -change_K)):
            most = int(by_K.argmax())
            if by_K[most] > 0:
                said.append(
                    f"{what} {by_K[by_K > 0].sum():,.0f} sequences (most of {plan.domains[most]!r}: {by_K[most]:,.0f})"
                )
        if said:
            notes.append(
                f"The restart at iteration {stage.first} {' and '.join(said)}, as long as a dataset keeps its order."
            )
        reached_K = np.where(weights_NK[number] > 0, end_NK[number], reached_K)
    return notes

"""Megatron-LM: one JSON file per stage for --per-split-data-args-path, named after the stage's first iteration.

pretrain_gpt.py reads the keys train, valid and test of that file. A blend is a list that alternates weights and path
prefixes (get_blend_and_blend_per_split in megatron/training/utils/common_utils.py, get_blend_from_list in
megatron/core/datasets/utils.py). The file of --data-args-path would not do: it is split at white space, so that it
cannot hold a prefix with a space, and it blends validation in the same way as training.

A blend cannot change within a run. --phase-transition-iterations makes Megatron-LM save and exit where a stage ends,
and makes the next run begin its blend at the first sample (get_train_valid_test_num_samples and
build_train_valid_test_data_loaders in megatron/training/training.py). It needs --train-samples; without that option, it
compares with None.

The builder normalises the weights, and the dataset does so again (BlendedMegatronDatasetBuilder and BlendedDataset in
megatron/core/datasets). The dataset asserts that all weights are positive. Then build_blending_indices in helpers.cpp
draws every sample from the dataset that is furthest behind.
"""

from __future__ import annotations

import json

import numpy as np

from acodm_cli.errors import UsageError
from acodm_cli.exports.checks import domain_paths, notes_of_zeros
from acodm_cli.exports.counts import blend_counts
from acodm_cli.exports.plan import Array, Export, Plan, Target

TRAINER = "Megatron-LM core_v0.16.0 and later (followed at d98e8a64ddf3)"
_NAME = "blend-from-iteration-"


def multiple(target: Target) -> int:
    return 1


def export(plan: Plan) -> Export:
    """Raises: UsageError if the path of a domain is not a prefix that Megatron-LM reads."""
    paths = domain_paths(plan, "Megatron-LM")
    for path in paths:
        if path != path.strip():
            raise UsageError(f"Megatron-LM strips the spaces around {path!r}; move the tokens to a path without them")
        if path.endswith((".bin", ".idx")):
            raise UsageError(f"Megatron-LM adds .bin and .idx itself; give {path[:-4]!r} instead of {path!r}")
    files = {}
    for stage in plan.stages:
        blend = [
            item
            for path, weight in zip(paths, stage.weights_K.tolist(), strict=True)
            if weight > 0
            for item in (repr(weight), path)
        ]
        files[f"{_NAME}{stage.first}.json"] = json.dumps({"train": blend, "valid": None, "test": None}, indent=1) + "\n"
    return Export(files, [*_notes(plan), *notes_of_zeros(plan, realised(files, plan))])


def _notes(plan: Plan) -> list[str]:
    batch = plan.target.batch
    notes = [
        "Put your validation blend under valid in every file (or run with --eval-iters 0), and leave --data-path and --split out: "
        "train is drawn from whole datasets.",
        f"--global-batch-size {batch}, --seq-length {plan.target.seq_len} and --train-samples {plan.target.steps * batch} "
        "must be the same in all runs, without --rampup-batch-size.",
    ]
    if len(plan.stages) == 1:
        return [*notes, f"One stage from iteration 0: --per-split-data-args-path {_NAME}0.json."]
    later = [stage.first for stage in plan.stages[1:]]
    iterations = ",".join(map(str, later))
    return [
        *notes,
        f"Restart at every stage: give all {len(plan.stages)} runs --phase-transition-iterations {iterations} with --save and --load "
        "to one folder; a run saves and exits where its stage ends.",
        f"--per-split-data-args-path is {_NAME}I.json, where I is the iteration the run starts its stage from: 0, "
        f"{iterations.replace(',', ', ')} (samples 0, {', '.join(str(first * batch) for first in later)}).",
        "Every run reads each dataset from its beginning, in an order that depends on --seed: give every stage its own --seed, "
        "or it may begin with the sequences that the stage before began with.",
    ]


def realised(files: dict[str, str], plan: Plan) -> Array:
    domain_of = {plan.target.path_of(domain): index for index, domain in enumerate(plan.domains)}
    blends = {int(name.removeprefix(_NAME).removesuffix(".json")): json.loads(text) for name, text in files.items()}
    first_N = sorted(blends)
    sizes_N = (np.diff([*first_N, plan.target.steps]) * plan.target.batch).tolist()
    weights_N, indices_N = [], []
    for first in first_N:
        blend = blends[first]["train"]
        weights_K = np.array([float(weight) for weight in blend[::2]])
        weights_K = weights_K / weights_K.sum()
        weights_N.append(weights_K / weights_K.sum())
        indices_N.append([domain_of[prefix.strip()] for prefix in blend[1::2]])
    shares_NK = np.zeros((len(first_N), len(plan.domains)))
    for number, counts_K in enumerate(blend_counts(weights_N, sizes_N)):
        shares_NK[number, indices_N[number]] = counts_K / sizes_N[number]
    return shares_NK

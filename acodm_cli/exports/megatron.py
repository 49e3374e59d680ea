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

import numpy as np

from acodm_cli.exports.blends import NAME, blend_files, drawn_of_each, read_blends
from acodm_cli.exports.checks import notes_of_zeros
from acodm_cli.exports.plan import Array, Export, Plan, Target

TRAINER = "Megatron-LM core_v0.16.0 and later (followed at d98e8a64ddf3)"


def multiple(target: Target) -> int:
    return 1


def export(plan: Plan) -> Export:
    """Raises: UsageError if the path of a domain is not a prefix that Megatron-LM reads."""
    files = blend_files(plan, "Megatron-LM")
    return Export(files, [*_notes(plan), *notes_of_zeros(plan, realised(files, plan))])


def _notes(plan: Plan) -> list[str]:
    batch = plan.target.batch
    notes = [
        "Put your validation blend under valid in every file (or run with --eval-iters 0), and leave --data-path and --split out: "
        "train is drawn from whole datasets.",
        f"--global-batch-size {batch}, --seq-length {plan.target.seq_len} and --train-samples {plan.target.steps * batch} "
        "must be the same in all runs, without --rampup-batch-size.",
        "--train-samples excludes --train-iters, --lr-decay-iters and --lr-warmup-iters: give --lr-decay-samples and --lr-warmup-samples.",
    ]
    if len(plan.stages) == 1:
        return [*notes, f"One stage from iteration 0: --per-split-data-args-path {NAME}0.json."]
    later = [stage.first for stage in plan.stages[1:]]
    iterations = ",".join(map(str, later))
    return [
        *notes,
        f"Restart at every stage: give all {len(plan.stages)} runs --phase-transition-iterations {iterations} with --save and --load "
        "to one folder, and --save-interval, which --save needs; a run saves and exits where its stage ends.",
        f"--per-split-data-args-path is {NAME}I.json, where I is the iteration the run starts its stage from: 0, "
        f"{iterations.replace(',', ', ')} (samples 0, {', '.join(str(first * batch) for first in later)}).",
        "Every run reads each dataset from its beginning, in an order that depends on --seed: give every stage its own --seed, "
        "or it may begin with the sequences that the stage before began with.",
    ]


def realised(files: dict[str, str], plan: Plan) -> Array:
    first_N, weights_NK = read_blends(files, plan)
    sizes_N: list[int] = (np.diff([*first_N, plan.target.steps]) * plan.target.batch).tolist()
    return drawn_of_each(weights_NK, sizes_N) / np.array(sizes_N)[:, None]

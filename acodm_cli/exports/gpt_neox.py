"""GPT-NeoX, which trained Pythia and ODM: one YAML file of configuration per stage, beside the files of your own.

train-data-paths are prefixes of .bin and .idx, train-data-weights their weights (megatron/data/data_utils.py). BlendableDataset takes
at most 254 datasets, and draws every sample from the one that is furthest behind (build_blending_indices in helpers.cpp). A run
that loads a checkpoint goes on in its blend at the batch of its iteration (shift_and_wrap_data_loaders), as if it had drawn from that
blend from its beginning. exit-interval ends a run where the iteration is a multiple of it, and does not save (train in
megatron/training.py): extra-save-iters does.

NeoXArgs.from_ymls takes - and _ in a key for the same, but it finds a key that an earlier file has too only if the later file writes
it with _; with -, the later file would win without a word. So the files have _, and come after the user's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from acodm_cli.errors import UsageError
from acodm_cli.exports.blends import continued, notes_of_places, prefixes
from acodm_cli.exports.checks import notes_of_zeros
from acodm_cli.exports.plan import Array, Export, Plan, Target, comment

TRAINER = "GPT-NeoX at ea7aefd8f8e1"
_MOST_DATASETS = 254


def multiple(target: Target) -> int:
    return 1


def export(plan: Plan) -> Export:
    """Raises: UsageError if there are too many domains, or the path of one is not a prefix that is read."""
    paths = prefixes(plan, "GPT-NeoX")
    files = {}
    for stage in plan.stages:
        drawn = [(path, weight) for path, weight in zip(paths, stage.weights_K.tolist(), strict=True) if weight > 0]
        if len(drawn) > _MOST_DATASETS:
            raise UsageError(
                f"GPT-NeoX blends {_MOST_DATASETS} datasets at most, and a stage has {len(drawn)}; join some domains"
            )
        end = stage.first + stage.steps
        config: dict[str, Any] = {
            "train_data_paths": [path for path, _ in drawn],
            "train_data_weights": [weight for _, weight in drawn],
            "train_iters": plan.target.steps,
            "train_batch_size": plan.target.batch,
            "seq_length": plan.target.seq_len,
            "extra_save_iters": [end],
        }
        if end < plan.target.steps:
            config["exit_interval"] = end
        head = "".join(
            f"# {line}\n" for line in [*comment(plan, TRAINER), f"This stage: iterations {stage.first} to {end}."]
        )
        files[f"stage-from-iteration-{stage.first}.yml"] = head + yaml.safe_dump(
            config, sort_keys=False, allow_unicode=True, width=1000
        )
    return Export(files, [*_notes(plan), *notes_of_zeros(plan, realised(files, plan))])


def _notes(plan: Plan) -> list[str]:
    notes = [
        "Give one file per run after your own: deepy.py train.py yours.yml stage-from-iteration-I.yml. A key that is in both is an error: take these "
        "out of yours, and data-path too.",
        "valid-data-paths and test-data-paths, which train-data-paths needs beside it, are yours; leave weight_by_num_documents off.",
    ]
    if len(plan.stages) > 1:
        notes += [
            f"Restart at every stage, with save and load in one folder and one seed: stages begin at iteration {', '.join(str(stage.first) for stage in plan.stages)}. "
            f"A run saves and exits where its stage ends; the learning rate decays over all {plan.target.steps} (lr-decay-iters, if you give it).",
            *notes_of_places(plan, plan.weights_NK),
        ]
    return notes


def realised(files: dict[str, str], plan: Plan) -> Array:
    domain_of = {plan.target.path_of(domain): index for index, domain in enumerate(plan.domains)}
    configs = {int(name.split("-")[-1].removesuffix(".yml")): yaml.safe_load(text) for name, text in files.items()}
    weights_NK = np.zeros((len(configs), len(plan.domains)))
    for row_K, first in zip(weights_NK, sorted(configs), strict=True):
        row_K[[domain_of[path] for path in configs[first]["train_data_paths"]]] = configs[first]["train_data_weights"]
    return continued(plan, sorted(configs), weights_NK / weights_NK.sum(axis=1, keepdims=True))

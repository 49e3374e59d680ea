"""MaxText with Grain: one JSON file per stage for grain_train_mixture_config_path.

get_datasets (src/maxtext/input_pipeline/grain_data_processing.py) reads an object of name to path and weight, for ArrayRecord files.
Every host that loads data shards, shuffles and repeats each dataset, and mixes them by grain.IterDataset.mix. A checkpoint holds the
place in every dataset by its name, and how many elements were drawn; a run that loads it may be given another file.

Grain takes the names in sorted order if JAX is there, else as they come; the files have them sorted. It divides the weights by the least one, multiplies by 100 and truncates
(_float_to_int_proportions), so that weights are multiples of a hundredth of the least. Then element k comes from a dataset by whole
numbers (_dataset_and_key_of_next_element): of the first k, dataset i has k - k * (R - p) // R, where R is the sum of the proportions
from i on, and what is left goes to the later ones. It refuses a weight of 0.
"""

from __future__ import annotations

import json

import numpy as np

from acodm_cli.errors import UsageError
from acodm_cli.exports.checks import notes_of_zeros
from acodm_cli.exports.plan import Array, Export, Plan, Target

TRAINER = "MaxText at e591f30cbbf2, with Grain 0.2.18"
_NAME = "mixture-from-step-"


def multiple(target: Target) -> int:
    return 1


def export(plan: Plan) -> Export:
    """Raises: UsageError if the hosts cannot share a batch."""
    target = plan.target
    if target.batch % target.ranks:
        raise UsageError(
            f"{target.ranks} hosts cannot share a batch of {target.batch} sequences; give another --target-batch or --target-ranks"
        )
    files = {}
    for stage in plan.stages:
        mixture = {
            name: {"path": target.path_of(name), "weight": weight}
            for name, weight in sorted(zip(plan.domains, stage.weights_K.tolist(), strict=True))
            if weight > 0
        }
        files[f"{_NAME}{stage.first}.json"] = json.dumps(mixture, indent=1) + "\n"
    return Export(files, [*_notes(plan), *notes_of_zeros(plan, realised(files, plan))])


def _notes(plan: Plan) -> list[str]:
    target = plan.target
    notes = [
        f"dataset_type=grain, grain_file_type=arrayrecord, max_target_length={target.seq_len}; a path is a pattern of ArrayRecord files, such as "
        "--target-path 'tokens/{domain}/*.array_record'.",
        "Grain mixes records: shares are of sequences only if every record is one, tokenised to max_target_length, with packing=false.",
        f"The report is for {target.ranks} host{'s' * (target.ranks > 1)} that load data, with grain_worker_count 0 or 1: give --target-ranks. Each "
        "host mixes by itself.",
    ]
    if len(plan.stages) > 1:
        runs = ", ".join(f"{_NAME}{stage.first}.json with steps={stage.first + stage.steps}" for stage in plan.stages)
        notes += [
            f"Restart at every stage, in one base_output_directory with enable_checkpointing=true: {runs}; learning_rate_schedule_steps={target.steps} "
            "in all.",
            "Datasets go on where they were, but one that a stage leaves out begins anew when it comes back, and what is prefetched at a "
            "restart is lost.",
        ]
    return notes


def realised(files: dict[str, str], plan: Plan) -> Array:
    mixtures = {int(name.removeprefix(_NAME).removesuffix(".json")): json.loads(text) for name, text in files.items()}
    first_N, per_host = sorted(mixtures), plan.target.batch // plan.target.ranks
    shares_NK = np.zeros((len(first_N), len(plan.domains)))
    for row_K, first, end in zip(shares_NK, first_N, [*first_N[1:], plan.target.steps], strict=True):
        names = sorted(mixtures[first])
        total = sum(mixtures[first][name]["weight"] for name in mixtures[first])
        weights = [mixtures[first][name]["weight"] / total for name in names]
        proportions = [int(weight * (100 / min(weights))) for weight in weights]
        before, after = (_drawn(proportions, step * per_host) for step in (first, end))
        for name, one, other in zip(names, before, after, strict=True):
            row_K[plan.domains.index(name)] = (other - one) / ((end - first) * per_host)
    return shares_NK


def _drawn(proportions: list[int], count: int) -> list[int]:
    """Returns how many of the first `count` elements come from each dataset."""
    left, counts = sum(proportions), []
    for proportion in proportions:
        later = count * (left - proportion) // left
        counts.append(count - later)
        count, left = later, left - proportion
    return counts

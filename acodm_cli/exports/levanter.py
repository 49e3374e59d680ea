"""Levanter: levanter.yaml, the parts of a train_lm config that hold the mixture.

`data.train_weights` is a list of [optimiser step, weights]. LmDataConfig.train_set (levanter/data/text/datasets.py)
turns the steps into sequences by the batch size. MixtureDataset (levanter/data/mixture.py) then deals whole blocks of
`mixture_block_size` sequences. Every block of a stage has the same count of every domain: _normalize_weights divides
the weights by their sum; _compute_expected_counts_per_block truncates weight * block and gives what is left to the
domain with the largest count (the first of equals, in the order of `components`). It asserts that stages begin at a
multiple of the block.

Truncation would move up to K - 1 sequences of every block to the largest domain. The weights that are written are
therefore already whole counts over the block, apportioned by largest remainder. Dividing by a power of two is exact, so
Levanter's own rule leaves them as they are.
"""

from __future__ import annotations

import math

import numpy as np
import yaml

from acodm_cli.errors import UsageError
from acodm_cli.exports.checks import notes_of_zeros
from acodm_cli.exports.counts import largest_remainder
from acodm_cli.exports.plan import Array, Export, Plan, Target, comment

TRAINER = "Levanter (marin-levanter 0.2.20.dev202606180959)"
_FILE = "levanter.yaml"
# Levanter's default, a power of two.
_BLOCK = 2048
# Indices within a domain are 32-bit integers.
_MOST_SEQUENCES = 2**31


def multiple(target: Target) -> int:
    return _BLOCK // math.gcd(_BLOCK, target.batch)


def export(plan: Plan) -> Export:
    target = plan.target
    every = multiple(target)
    for stage in plan.stages:
        if stage.first % every:
            raise UsageError(
                f"Levanter cannot begin a stage at step {stage.first}: with batches of {target.batch} its blocks of {_BLOCK} sequences "
                f"begin every {every} steps; let stages begin at multiples of {every}, or take a batch size with a larger power of two"
            )
    drawn_K = np.array([stage.steps for stage in plan.stages]) @ plan.weights_NK * target.batch
    if drawn_K.max() > _MOST_SEQUENCES:
        raise UsageError(
            f"Levanter counts up to {_MOST_SEQUENCES} sequences of a domain, and the run draws {drawn_K.max():.0f} of "
            f"{plan.domains[int(drawn_K.argmax())]!r}; export fewer steps, or divide the domain"
        )
    config = {
        "data": {
            "components": {name: {"cache_dir": target.path_of(name), "flat_cache": True} for name in plan.domains},
            "train_weights": [
                [
                    stage.first,
                    dict(
                        zip(plan.domains, (largest_remainder(stage.weights_K, _BLOCK) / _BLOCK).tolist(), strict=True)
                    ),
                ]
                for stage in plan.stages
            ],
            "mixture_block_size": _BLOCK,
        },
        "train_seq_len": target.seq_len,
        "trainer": {"train_batch_size": target.batch, "num_train_steps": target.steps},
    }
    head = [
        *comment(plan, TRAINER),
        f"train_weights: [optimiser step, weights], the weights in whole sequences of every {_BLOCK}.",
    ]
    text = "".join(f"# {line}\n" for line in head) + yaml.safe_dump(
        config, sort_keys=False, allow_unicode=True, width=math.inf
    )
    files = {_FILE: text}
    notes = [
        "One run goes through all stages; no restart is needed.",
        f"Stages begin at whole blocks of {_BLOCK} sequences, which is every {every} steps: leave trainer.train_batch_size and "
        "data.mixture_block_size as they are, or export again.",
        "Every cache_dir must be a Levanter cache itself (flat_cache: no /train below it).",
        "Add data.tokenizer (the caches' own), the model and the optimizer, or move these keys into the run's config.",
    ]
    if cut := target.steps * target.batch % _BLOCK:
        notes.append(f"The run ends {cut} sequences into a block, and the shares of that block hold only on average.")
    return Export(files, [*notes, *notes_of_zeros(plan, realised(files, plan))])


def realised(files: dict[str, str], plan: Plan) -> Array:
    data = yaml.safe_load(files[_FILE])["data"]
    block, stages = data["mixture_block_size"], [weights for _, weights in data["train_weights"]]
    # Levanter drops the domains that have no weight in any stage before it counts.
    order = [name for name in data["components"] if any(weights.get(name, 0) > 0 for weights in stages)]
    dealt = [_dealt(weights, order, block) for weights in stages]
    return np.array([[counts.get(name, 0) / block for name in plan.domains] for counts in dealt])


def _dealt(weights: dict[str, float], order: list[str], block: int) -> dict[str, int]:
    """Returns the sequences of every domain in a block, as Levanter counts them."""
    total = sum(weights.values())
    counts = {name: int(weights.get(name, 0) / total * block) for name in order}
    largest = max(counts, key=counts.__getitem__)
    counts[largest] += block - sum(counts.values())
    return counts

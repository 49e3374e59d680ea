"""MosaicML: llm-foundry.yaml, the parts of an llm-foundry training config that hold the mixture.

The first stage is `train_loader.dataset`. The others are the schedule of the callback curriculum_learning
(llmfoundry/callbacks/curriculum_learning_callback.py), which builds a new StreamingTextDataset when the tokens of a
stage are spent; a stage lasts batch * seq_len * steps tokens. Every stage is one epoch of its own `epoch_size`. Over
it, Stream.apply_weights (streaming/base/stream.py) truncates proportion * epoch_size for every stream and hands the
samples that are left, one each, to streams drawn without replacement by numpy's default_rng(shuffle_seed).

Streams without weight are left out of a stage, because they could otherwise be drawn for one of the samples that are
left.
"""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml

from acodm_cli.exports.checks import domain_paths, notes_of_zeros
from acodm_cli.exports.plan import Array, Export, Plan, Target, comment
from acodm_cli.schedule.stages import Stage

TRAINER = "llm-foundry 0.22.0 with mosaicml-streaming 0.13.0"
_FILE = "llm-foundry.yaml"
# StreamingDataset's default.
_SEED = 9176


def multiple(target: Target) -> int:
    return 1


def export(plan: Plan) -> Export:
    target = plan.target
    paths = domain_paths(plan, "streaming")
    first, *others = [_dataset(plan, number, stage) for number, stage in enumerate(plan.stages)]
    config: dict[str, Any] = {
        "max_seq_len": target.seq_len,
        "max_duration": _tokens(target, target.steps),
        "global_train_batch_size": target.batch,
        "train_loader": {
            "name": "text",
            "dataset": {"max_seq_len": target.seq_len, "shuffle": True, "batching_method": "random", **first},
            "drop_last": True,
            "num_workers": 8,
        },
    }
    if others:
        config["callbacks"] = {
            "curriculum_learning": {
                "duration": _tokens(target, plan.stages[0].steps),
                "schedule": [
                    {"duration": _tokens(target, stage.steps), "dataset": dataset}
                    for stage, dataset in zip(plan.stages[1:], others, strict=True)
                ],
            }
        }
    text = "".join(f"# {line}\n" for line in comment(plan, TRAINER))
    files = {_FILE: text + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=math.inf)}
    notes = [
        "Move these keys into the run's config; model, tokenizer, optimizer and the rest are yours.",
        "Every stream must hold MDS samples of full sequences: llm-foundry ends a stage by its tokens and does not count padding.",
        "A stage draws from the whole of every stream: what an earlier stage has drawn can come again.",
    ]
    if others:
        notes.insert(0, "One run goes through all stages by the callback curriculum_learning; no restart is needed.")
        notes.append("Stages that have begun must not be edited: the callback refuses a checkpoint of other stages.")
    if any("://" in path.removeprefix("file://") for path in paths):
        notes.append("Remote streams are cached below streams/; change `local` if the disk is elsewhere.")
    return Export(files, [*notes, *notes_of_zeros(plan, realised(files, plan))])


def realised(files: dict[str, str], plan: Plan) -> Array:
    config = yaml.safe_load(files[_FILE])
    later = config.get("callbacks", {}).get("curriculum_learning", {}).get("schedule", [])
    datasets = [config["train_loader"]["dataset"], *(datamix["dataset"] for datamix in later)]
    return np.array([[shares.get(name, 0.0) for name in plan.domains] for shares in map(_drawn, datasets)])


def _tokens(target: Target, steps: int) -> str:
    return f"{steps * target.batch * target.seq_len}tok"


def _dataset(plan: Plan, number: int, stage: Stage) -> dict[str, Any]:
    """Returns what differs between stages. With one seed for all, every stage would begin with the same samples."""
    return {
        "streams": {
            name: {**_place(plan.target.path_of(name), name), "proportion": weight}
            for name, weight in zip(plan.domains, stage.weights_K.tolist(), strict=True)
            if weight > 0
        },
        "epoch_size": stage.steps * plan.target.batch,
        "shuffle_seed": _SEED + number,
    }


def _place(path: str, name: str) -> dict[str, str]:
    """Returns where a stream lies and where it is cached. A stage cannot use the temporary folder that is streaming's
    default: it exists already, from the stage before. streaming has no file:// among its remotes."""
    path = path.removeprefix("file://")
    return {"remote": path, "local": f"streams/{quote(name, safe='')}"} if "://" in path else {"local": path}


def _drawn(dataset: dict[str, Any]) -> dict[str, float]:
    """Returns the shares of an epoch, as streaming counts them."""
    size, streams = dataset["epoch_size"], dataset["streams"]
    proportion_K = np.array([stream["proportion"] for stream in streams.values()], np.float64)
    proportion_K /= proportion_K.sum()
    counts_K = (size * proportion_K).astype(np.int64)
    short = size - counts_K.sum()
    counts_K[np.random.default_rng(dataset["shuffle_seed"]).choice(len(streams), short, False)] += 1
    return dict(zip(streams, (counts_K / size).tolist(), strict=True))

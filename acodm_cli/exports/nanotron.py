"""nanotron: one YAML fragment of the config per stage, with data_stages up to that stage and the step where it ends.

A stage is a DatasetStageArgs with a NanosetDatasetsArgs (src/nanotron/config/config.py): lists of folders and of
weights. start_training_step counts from 1. run_train.py trains on the last stage of its config, and only if that stage
starts right after the step of the checkpoint (get_dataloader); a config with all stages does not run. A stage ends at
tokens.train_steps. Releases up to 0.4 on the package index have no data_stages.

BlendableDataset (src/nanotron/data/nemo_dataset/blendable_dataset.py) normalises the weights. Then
build_blending_indices in helpers.cpp beside it draws every sample from the dataset that is furthest behind, and a stage
begins at the first sample. A weight of 0 is not safe there: where nothing is behind, the first dataset is drawn. So
domains without weight are left out. Every folder goes on where the stages before stopped, to within a few sequences.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from acodm_cli.exports.checks import domain_paths, notes_of_zeros
from acodm_cli.exports.counts import blend_counts
from acodm_cli.exports.plan import Array, Export, Plan, Target, comment

TRAINER = "nanotron at 2411b022a75f"
# nanotron's default. All stages need the same seed: it orders the files of a folder if they are shuffled.
_SEED = 42
# A run stops at once with these: no tokenizer has the name, and a vocabulary of 0 is not the model's.
PLACEHOLDERS = {"tokenizer_name": "SET-THIS", "vocab_size": 0, "token_size_in_bytes": 0}


def multiple(target: Target) -> int:
    return 1


def export(plan: Plan) -> Export:
    """Raises: UsageError if two domains share a folder, or one would be expanded as a pattern."""
    paths = domain_paths(plan, "nanotron", forbidden="*?[")
    entries = []
    for number, stage in enumerate(plan.stages):
        drawn = [(path, weight) for path, weight in zip(paths, stage.weights_K.tolist(), strict=True) if weight > 0]
        dataset: dict[str, Any] = {
            "dataset_folder": [path for path, _ in drawn],
            "dataset_weights": [weight for _, weight in drawn],
        }
        if not all(map(_has_metadata, paths)):
            dataset |= PLACEHOLDERS
        entries.append(
            {
                "name": f"stage {number + 1}",
                "start_training_step": stage.first + 1,
                "data": {"dataset": dataset, "num_loading_workers": 1, "seed": _SEED},
            }
        )
    head = "".join(f"# {line}\n" for line in comment(plan, TRAINER))
    digits = len(str(len(entries)))
    files = {}
    for number, stage in enumerate(plan.stages):
        tokens = {"sequence_length": plan.target.seq_len, "train_steps": stage.first + stage.steps}
        fragment = {"data_stages": entries[: number + 1], "tokens": tokens}
        body = yaml.safe_dump(fragment, sort_keys=False, allow_unicode=True, width=1000)
        files[f"data-stages-{number + 1:0{digits}d}.yaml"] = head + body
    return Export(files, [*_notes(plan, paths), *notes_of_zeros(plan, realised(files, plan))])


def _notes(plan: Plan, paths: list[str]) -> list[str]:
    batch = plan.target.batch
    notes = [
        "This nanotron gives datatrove's DatatroveFolderDataset folder_path, eos_token_id, read_path and matched_files, and no release from 0.4 to "
        "0.10.1 takes them all: it needs a datatrove that is not released.",
        "Merge one file per run into your config; tokens.micro_batch_size x tokens.batch_accumulation_per_replica x parallelism.dp "
        f"must be {batch}.",
    ]
    if len(plan.stages) > 1:
        starts = ", ".join(f"{stage.first + 1} (sample {stage.first * batch})" for stage in plan.stages)
        notes += [
            f"Restart at every stage: its run loads the last checkpoint (checkpoints.resume_checkpoint_path, with save_final_state and "
            f"load_lr_scheduler true) and trains to tokens.train_steps; stages start at step {starts}.",
            "Set lr_warmup_steps, lr_decay_starting_step and lr_decay_steps of the scheduler for the whole run of "
            f"{plan.target.steps} steps in all configs: left out, they follow tokens.train_steps, which is the end of the stage.",
        ]
    if all(map(_has_metadata, paths)):
        notes.append(
            "Every dataset_folder needs datatrove's .metadata file: tokenizer_name, vocab_size and token_size_in_bytes are read from it."
        )
    else:
        notes.append(
            "Set tokenizer_name, vocab_size and token_size_in_bytes in every stage: nanotron reads them from .metadata files of local folders only."
        )
    notes += _exhausted(plan)
    if not all("s3" in path for path in paths):
        notes.append(
            "This nanotron stops at the first step unless every dataset_folder has s3 in its path "
            "(BlendableDataset.get_consumption_stats): use such paths, or take that assertion out."
        )
    return notes


def _has_metadata(path: str) -> bool:
    return "://" not in path


def _exhausted(plan: Plan) -> list[str]:
    """Returns which domains run out of sequences, and when, by the tokens of the schedule's own corpus; in general if it does not say."""
    notes = []
    drawn_K, size = np.zeros(len(plan.domains)), plan.target.seq_len + 1
    sizes_K = np.array([plan.tokens.get(name, np.inf) for name in plan.domains]) / size
    for stage in plan.stages:
        per_step_K = stage.weights_K * plan.target.batch
        with np.errstate(divide="ignore", invalid="ignore"):
            step_K = np.where(per_step_K > 0, (sizes_K - drawn_K) / per_step_K, np.inf)
        for index in np.flatnonzero((step_K >= 0) & (step_K < stage.steps)):
            step = stage.first + int(step_K[index]) + 1
            notes.append(
                f"{plan.domains[index]!r} runs out at about step {step} (by the schedule's own corpus of {plan.tokens[plan.domains[index]]:,.0f} "
                "tokens), and there nanotron ends with an IndexError: it does not begin a folder again."
            )
        drawn_K = drawn_K + per_step_K * stage.steps
    if not notes:
        most = int(drawn_K.argmax())
        notes.append(
            "A folder that runs out ends the run with an IndexError: each needs its weight's share of sequences, "
            f"{drawn_K[most]:,.0f} of {plan.domains[most]!r} and so on."
        )
    return notes


def realised(files: dict[str, str], plan: Plan) -> Array:
    domain_of = {plan.target.path_of(domain): index for index, domain in enumerate(plan.domains)}
    fragments = sorted(
        (yaml.safe_load(text) for text in files.values()), key=lambda value: value["tokens"]["train_steps"]
    )
    weights_N, indices_N, sizes_N = [], [], []
    for fragment in fragments:
        stage = max(fragment["data_stages"], key=lambda value: value["start_training_step"])
        dataset = stage["data"]["dataset"]
        weights_K = np.array(dataset["dataset_weights"], dtype=np.float64)
        weights_N.append(weights_K / weights_K.sum())
        indices_N.append([domain_of[folder] for folder in dataset["dataset_folder"]])
        sizes_N.append((fragment["tokens"]["train_steps"] - stage["start_training_step"] + 1) * plan.target.batch)
    shares_NK = np.zeros((len(fragments), len(plan.domains)))
    for number, counts_K in enumerate(blend_counts(weights_N, sizes_N)):
        shares_NK[number, indices_N[number]] = counts_K / sizes_N[number]
    return shares_NK

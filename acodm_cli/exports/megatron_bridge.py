"""Megatron-Bridge, which NeMo trains with: the JSON files of the export for Megatron-LM, as they are.

get_blend_and_blend_per_split (megatron/bridge/data/loaders.py) reads the file of per_split_data_args_path as Megatron-LM does. But
there are no phases: a run that loads a checkpoint goes on in its blend at the sample it has reached (consumed_train_samples of
the checkpoint, MegatronPretrainingSampler in data/samplers.py), as if it had drawn from that blend from its beginning. So a stage
realises the counts of a part of its blend, and a restart skips some sequences of a domain or repeats some. train.exit_interval saves
and ends a run where the iteration is a multiple of it (checkpoint_and_decide_exit in training/train.py).
"""

from __future__ import annotations

from acodm_cli.exports.blends import NAME, blend_files, continued, notes_of_places, read_blends
from acodm_cli.exports.checks import notes_of_zeros
from acodm_cli.exports.plan import Array, Export, Plan, Target

TRAINER = "Megatron-Bridge 0.3.1 (NeMo)"


def multiple(target: Target) -> int:
    return 1


def export(plan: Plan) -> Export:
    """Raises: UsageError if the path of a domain is not a prefix that Megatron reads."""
    files = blend_files(plan, "Megatron-Bridge")
    return Export(files, [*_notes(plan), *notes_of_zeros(plan, realised(files, plan))])


def _notes(plan: Plan) -> list[str]:
    target = plan.target
    notes = [
        "Give the recipe per_split_data_args_path, or set blend_per_split of the dataset to what get_blend_and_blend_per_split makes of the "
        "file, and put your validation blend under valid in every file.",
        f"train.train_iters {target.steps}, train.global_batch_size {target.batch} and dataset.seq_length {target.seq_len} must be the same in "
        'all runs, with dataset.dataloader_type "single" and one dataset.random_seed.',
    ]
    if len(plan.stages) > 1:
        runs = ", ".join(f"{NAME}{stage.first}.json to {stage.first + stage.steps}" for stage in plan.stages)
        notes += [
            f"Restart at every stage, with checkpoint.save and checkpoint.load in one folder and train.exit_interval the iteration that the stage "
            f"ends at: {runs}.",
            *notes_of_places(plan, plan.weights_NK),
        ]
    return notes


def realised(files: dict[str, str], plan: Plan) -> Array:
    return continued(plan, *read_blends(files, plan))

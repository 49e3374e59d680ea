"""torchtitan: acodm_mixture.py, a module of config functions, one per stage.

torchtitan has no schedule of weights. A run has one InterleavedHuggingFaceTextDataLoader
(torchtitan/hf_datasets/text_datasets.py) with one weight per source, so a stage is a run that ends at the stage's last
step, and the next stage resumes its checkpoint. InterleavedDataset (torchtitan/hf_datasets/interleaved.py) draws the
source of every sequence at random by weight / sum of weights: nothing is rounded, and shares hold on average. Its
checkpoint holds the generator and the place in every source, by number, but no weights. The next stage goes on where
the last one stopped if sources keep their order, which is why all stages list all sources.

Sources are loaded whole, not streamed: a streamed datasets.IterableDataset forgets the place that it was given if
nothing is read from it before the next checkpoint, as in a stage where its weight is zero.

Sources are names in the registry DATASETS of text_datasets.py. The file registers acodm-0, acodm-1 and so on, since
HuggingFaceTextDataset lowers names. `--module acodm_mixture --config stage_0` makes torchtitan/config/manager.py import
the file.
"""

from __future__ import annotations

import ast
from string import Template

import numpy as np

from acodm_cli.exports.plan import Array, Export, Plan, Target, comment

TRAINER = "torchtitan 0.3.0"
_FILE = "acodm_mixture.py"


def multiple(target: Target) -> int:
    return 1


def export(plan: Plan) -> Export:
    target = plan.target
    ends = [stage.first + stage.steps for stage in plan.stages]
    text = _MODULE.substitute(
        head="\n".join(f"# {line}" for line in comment(plan, TRAINER)),
        steps=target.steps,
        batch=target.batch,
        seq_len=target.seq_len,
        sources="".join(f"    ({name!r}, {target.path_of(name)!r}),\n" for name in plan.domains),
        stages="".join(
            f"    ({end}, {stage.weights_K.tolist()!r}),\n" for end, stage in zip(ends, plan.stages, strict=True)
        ),
        functions="".join(
            f"\n\ndef stage_{number}():\n    return at_stage(base(), {number})\n" for number in range(len(ends))
        ),
    )
    runs = ", ".join(f"stage_{number} to step {end}" for number, end in enumerate(ends))
    notes = [
        f"Set BASE in {_FILE} to the config function of your model, then train with --module acodm_mixture and --config {runs}.",
        "Sources must be text that datasets.load_dataset reads, with a column `text`, shuffled beforehand: torchtitan tokenizes, and "
        "shuffles no source before it has read it once.",
        "datasets keeps a copy of every source in its cache.",
        "Sources are drawn at random, with the same draws on every data-parallel rank: shares hold on average over a stage.",
        "Releases after 0.3.0 may lack InterleavedHuggingFaceTextDataLoader, which the file needs.",
    ]
    if len(ends) > 1:
        notes.insert(
            1,
            "Every stage is a restart: run them in order with one --dump_folder and the same number of data-parallel ranks; each "
            "resumes the last checkpoint of the one before, and the learning rate follows the whole run.",
        )
    return Export({_FILE: text}, notes)


def realised(files: dict[str, str], plan: Plan) -> Array:
    for statement in ast.parse(files[_FILE]).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "STAGES":
            weights_NK = np.array([weights for _, weights in ast.literal_eval(statement.value)])
            return weights_NK / weights_NK.sum(axis=1, keepdims=True)
    raise ValueError(f"no STAGES in {_FILE}")


_MODULE = Template('''\
$head
"""Config functions for torchtitan's --module and --config, one per stage of the mixture."""

import importlib

from datasets import load_dataset
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS, HFDataSource, InterleavedHuggingFaceTextDataLoader

# The config that the stages change, as module:function. Set it to your own.
BASE = "torchtitan.models.llama3.config_registry:llama3_8b"

STEPS = $steps
BATCH = $batch
SEQ_LEN = $seq_len
# Domain, and the path that datasets.load_dataset reads it from.
SOURCES = [
$sources]
# The step that a stage ends at, and the weights of the sources in it.
STAGES = [
$stages]


def load(path):
    # With streaming=True, a source of which nothing is drawn in a stage would start over in the next.
    return load_dataset(path, split="train")


def text(sample):
    return sample["text"]


for number, (_, path) in enumerate(SOURCES):
    DATASETS[f"acodm-{number}"] = DatasetConfig(path=path, loader=load, sample_processor=text)


def base():
    module, function = BASE.split(":")
    return getattr(importlib.import_module(module), function)()


def at_stage(config, number):
    """The config, changed so that it trains from the last checkpoint to the end of the stage."""
    end, weights = STAGES[number]
    config.dataloader = InterleavedHuggingFaceTextDataLoader.Config(
        sources=[HFDataSource(dataset=f"acodm-{source}", weight=weight) for source, weight in enumerate(weights)],
    )
    config.training.steps = end
    config.training.global_batch_size = BATCH
    config.training.seq_len = SEQ_LEN
    config.lr_scheduler.total_steps = STEPS
    config.checkpoint.enable = True
    if end < STEPS:
        # The next stage needs the optimizer and the places in the sources.
        config.checkpoint.last_save_in_hf = False
        config.checkpoint.last_save_model_only = False
    return config
$functions''')

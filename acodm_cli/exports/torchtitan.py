"""torchtitan 0.3: acodm_mixture.py, a module with a config function and a data loader that follows all stages.

torchtitan has no schedule of weights. Its InterleavedHuggingFaceTextDataLoader (torchtitan/hf_datasets/text_datasets.py) draws the
source of every sequence at random by constant weights, with the same seed on every data-parallel rank: with 48 ranks, a batch of 96
sequences has two sources at most. The exported loader has the same sources, HuggingFaceTextDataset, in the order of `order.Order`:
the counts of every stage are exact over all ranks, and a run needs no restart between stages. Its checkpoint holds how many
sequences were drawn, and the place in every source.

Sources are loaded whole, not streamed: a streamed datasets.IterableDataset forgets the place that it was given if
nothing is read from it before the next checkpoint, as in a stage where its weight is zero.

Sources are names in the registry DATASETS of text_datasets.py. The file registers acodm-0, acodm-1 and so on, since
HuggingFaceTextDataset lowers names. `--module acodm_mixture --config mixture` makes torchtitan/config/manager.py import
the file.
"""

from __future__ import annotations

import ast
from string import Template

import numpy as np

from acodm_cli.errors import UsageError
from acodm_cli.exports.checks import notes_of_zeros
from acodm_cli.exports.order import apportioned, source_code
from acodm_cli.exports.plan import Array, Export, Plan, Target, comment

TRAINER = "torchtitan 0.3.0"
FILE = "acodm_mixture.py"


def multiple(target: Target) -> int:
    return 1


def export(plan: Plan) -> Export:
    """Raises: UsageError if the ranks cannot share a batch."""
    files = {FILE: module(plan, TRAINER, _IMPORTS, _LOADER)}
    notes = [
        *notes_of_the_order(plan),
        "Sources must be text that datasets.load_dataset reads, with a column `text`, shuffled beforehand: torchtitan tokenizes, and "
        "shuffles no source before it has read it once.",
        "datasets keeps a copy of every source in its cache.",
        "This is for release 0.3.0. The main branch has other loaders: export torchtitan-grain for it.",
    ]
    return Export(files, [*notes, *notes_of_zeros(plan, realised(files, plan))])


def notes_of_the_order(plan: Plan) -> list[str]:
    """Returns how to train with the module, and what its order asks for."""
    return [
        f"Set BASE in {FILE} to the config function of your model, then train with --module acodm_mixture and --config mixture.",
        "One run goes through all stages; no restart is needed. Resume it with the same number of data-parallel ranks.",
        f"The counts of sequences are exact over all ranks, whose number must divide {plan.target.batch}.",
        "A source that runs out of text on some rank begins again there, in another order.",
    ]


def module(plan: Plan, trainer: str, imports: str, loader: str) -> str:
    """Returns the module: what both torchtitan exports have, and this export's own imports and loader."""
    target = plan.target
    if target.batch % target.ranks:
        raise UsageError(
            f"{target.ranks} data-parallel ranks cannot share a batch of {target.batch} sequences; give another --target-batch or --target-ranks"
        )
    ends = [stage.first + stage.steps for stage in plan.stages]
    return Template(_MODULE).substitute(
        head="\n".join(f"# {line}" for line in comment(plan, trainer)),
        imports=imports,
        steps=target.steps,
        batch=target.batch,
        seq_len=target.seq_len,
        sources="".join(f"    ({name!r}, {target.path_of(name)!r}),\n" for name in plan.domains),
        stages="".join(
            f"    ({end}, {stage.weights_K.tolist()!r}),\n" for end, stage in zip(ends, plan.stages, strict=True)
        ),
        order=source_code(),
        loader=loader,
    )


def realised(files: dict[str, str], plan: Plan) -> Array:
    values = {
        ast.unparse(statement.targets[0]): statement.value
        for statement in ast.parse(files[FILE]).body
        if isinstance(statement, ast.Assign)
    }
    batch, stages = ast.literal_eval(values["BATCH"]), ast.literal_eval(values["STAGES"])
    shares, first = [], 0
    for end, weights in stages:
        counts_K = apportioned([round(weight * 2**40) for weight in weights], (end - first) * batch)
        shares.append(np.array(counts_K) / sum(counts_K))
        first = end
    return np.stack(shares)


_MODULE = '''\
$head
"""A config function for torchtitan's --module and --config, and a data loader with the stages of the mixture."""

import heapq
import importlib
import random
from dataclasses import dataclass
from fractions import Fraction

$imports

# The config that is changed, as module:function. Set it to your own.
BASE = "torchtitan.models.llama3.config_registry:llama3_8b"

STEPS = $steps
BATCH = $batch  # sequences of all ranks in a step
SEQ_LEN = $seq_len
SEED = 0
# Domain, and the path that datasets.load_dataset reads it from.
SOURCES = [
$sources]
# The step before which a stage ends, and the weights of the sources in it.
STAGES = [
$stages]


$order

def base():
    module, function = BASE.split(":")
    return getattr(importlib.import_module(module), function)()


$loader'''

_IMPORTS = """\
from datasets import load_dataset
from torch.utils.data import IterableDataset
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS, HuggingFaceTextDataset"""

_LOADER = '''\
def load(path):
    # With streaming=True, a source of which nothing is drawn in a stage would start over in the next.
    return load_dataset(path, split="train")


def text(sample):
    return sample["text"]


for number, (_, path) in enumerate(SOURCES):
    DATASETS[f"acodm-{number}"] = DatasetConfig(path=path, loader=load, sample_processor=text)


class Mixture(IterableDataset):
    """The sequences of a rank, from all sources. drawn: how many there were since the run began."""

    def __init__(self, sources, order):
        self.sources, self.order, self.drawn = sources, order, 0

    def __iter__(self):
        sequences = [iter(source) for source in self.sources]
        while True:
            source = self.order.source(self.drawn)
            sequence = next(sequences[source])
            self.drawn += 1
            yield sequence

    def state_dict(self):
        return {"drawn": self.drawn, "sources": [source.state_dict() for source in self.sources]}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]
        for source, place in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(place)


class MixtureDataLoader(ParallelAwareDataloader):
    @dataclass(kw_only=True, slots=True)
    class Config(ParallelAwareDataloader.Config):
        pass

    def __init__(
        self, config, *, dp_world_size, dp_rank, tokenizer, seq_len, local_batch_size, snapshot_every_n_steps=1, **kwargs
    ):
        if config.num_workers > 1:
            raise ValueError("several workers would each draw the whole order; set dataloader.num_workers to 0 or 1")
        sources = [
            HuggingFaceTextDataset(
                dataset_name=f"acodm-{number}",
                dataset_path=None,
                tokenizer=tokenizer,
                seq_len=seq_len,
                dp_rank=dp_rank,
                dp_world_size=dp_world_size,
                infinite=True,
            )
            for number in range(len(SOURCES))
        ]
        super().__init__(
            Mixture(sources, Order(STAGES, BATCH, dp_rank, dp_world_size, SEED)),
            dp_rank=dp_rank,
            dp_world_size=dp_world_size,
            num_workers=config.num_workers,
            persistent_workers=config.persistent_workers,
            pin_memory=config.pin_memory,
            prefetch_factor=config.prefetch_factor,
            snapshot_every_n_steps=snapshot_every_n_steps,
            batch_size=local_batch_size,
        )


def mixture():
    config = base()
    config.dataloader = MixtureDataLoader.Config()
    config.training.steps = STEPS
    config.training.global_batch_size = BATCH
    config.training.seq_len = SEQ_LEN
    return config
'''

"""torchtitan's main branch, whose data come through Grain: acodm_mixture.py with a config function and the mixture as a dataset.

torchtitan/components/data mixes by DatasetMixConfig, a list of WeightedDataset. That mixes whole rows in one order on all
data-parallel ranks, and a packed row has the tokens of a rank's micro-batch (ConcatThenSplitPackingConfig): all sequences that
all ranks draw at one time come from one domain. It takes no weight of 0, cannot change its weights in a run, and truncates them to
multiples of a hundredth of the least one (_float_to_int_proportions of Grain).

The exported module therefore has a DatasetConfig of its own. Its children are SingleDatasetConfig and
ConcatThenSplitPackingConfig, which pack every domain to sequences before they are mixed; it deals them in the order of
`order.Order`, and a collator of its own makes micro-batches of them. Its state is how many sequences were drawn, and the states of
the children.
"""

from __future__ import annotations

from acodm_cli.exports.checks import notes_of_zeros
from acodm_cli.exports.plan import Array, Export, Plan, Target
from acodm_cli.exports.torchtitan import FILE, module, notes_of_the_order
from acodm_cli.exports.torchtitan import realised as realised_by_the_order

TRAINER = "torchtitan, main branch at b5bcd76c66d0, with Grain"


def multiple(target: Target) -> int:
    return 1


def export(plan: Plan) -> Export:
    """Raises: UsageError if the ranks cannot share a batch."""
    files = {FILE: module(plan, TRAINER, _IMPORTS, _LOADER)}
    notes = [
        *notes_of_the_order(plan),
        f"The tokens of a rank's micro-batch must be a multiple of {plan.target.seq_len}, and its share of the batch a multiple of that.",
        "Sources must be text that datasets.load_dataset reads, with a column `text`; every rank has its part of each.",
    ]
    return Export(files, [*notes, *notes_of_zeros(plan, realised(files, plan))])


def realised(files: dict[str, str], plan: Plan) -> Array:
    return realised_by_the_order(files, plan)


_IMPORTS = """\
import dataclasses

import grain.python as grain
from torchtitan.components.data import (
    ConcatThenSplitPackingConfig,
    GrainDataLoader,
    HuggingFaceRandomAccessSource,
    SingleDatasetConfig,
    TextCollator,
)
from torchtitan.hf_datasets.text_datasets import TextProcessor"""

_LOADER = '''\
class Sequences(grain.DatasetIterator):
    """The sequences of a rank, from all sources. drawn: how many there were since the run began."""

    def __init__(self, sources, order):
        super().__init__(sources)
        self.sources, self.order, self.drawn = sources, order, 0

    def __next__(self):
        sequence = next(self.sources[self.order.source(self.drawn)])
        self.drawn += 1
        return sequence

    def get_state(self):
        return {"drawn": self.drawn, "sources": [source.get_state() for source in self.sources]}

    def set_state(self, state):
        self.drawn = state["drawn"]
        for source, place in zip(self.sources, state["sources"], strict=True):
            source.set_state(place)


class Mixture(grain.IterDataset):
    def __init__(self, sources, order):
        super().__init__(sources)
        self.sources, self.order = sources, order

    def __iter__(self):
        return Sequences([iter(source) for source in self.sources], self.order())


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Every source is packed to sequences, not to micro-batches, before they are mixed."""

    def build(self, *, context, dataset_iteration_policy):
        policy = dataset_iteration_policy
        sources = [
            ConcatThenSplitPackingConfig(
                dataset=SingleDatasetConfig(
                    source=HuggingFaceRandomAccessSource.Config(path=path, split="train"),
                    processor=TextProcessor.Config(),
                    post_filters=(is_there,),
                )
            ).build(
                context=dataclasses.replace(context, num_tokens_per_batch=SEQ_LEN),
                dataset_iteration_policy=dataclasses.replace(policy, seed=policy.seed + number),
            )
            for number, (_, path) in enumerate(SOURCES)
        ]
        return Mixture(sources, lambda: Order(STAGES, BATCH, policy.dp_rank, policy.dp_world_size, SEED))


def is_there(sample):
    return sample is not None


class SequenceCollator(TextCollator):
    @dataclass(kw_only=True, slots=True)
    class Config(TextCollator.Config):
        pass

    def num_rows_per_batch(self):
        if self._num_tokens_per_batch % SEQ_LEN:
            raise ValueError(f"a micro-batch of {self._num_tokens_per_batch} tokens is not whole sequences of {SEQ_LEN}")
        return self._num_tokens_per_batch // SEQ_LEN


def mixture():
    config = base()
    config.dataloader = GrainDataLoader.Config(dataset=MixtureConfig(), collator=SequenceCollator.Config())
    config.training.steps = STEPS
    config.training.max_context_length = SEQ_LEN
    config.training.num_tokens_per_train_step = BATCH * SEQ_LEN
    return config
'''

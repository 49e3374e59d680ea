"""OLMo-core: a Python module for a run's config script, with the sequences that every stage draws from every domain.

The module uses olmo_core.data.composable (there since 2.5). Every stage is one instance source, and a
ComposableDataLoader with ShuffleStrategy.intra_source takes the sources in order and shuffles within each, which its
documentation calls a data curriculum. So one run goes through all stages, resumes in any of them, and keeps its
learning-rate schedule. A SourceMixtureDatasetConfig, whose target_ratio and max_repetition_ratio a YAML file can hold,
has only one mixture: every stage would be a run of its own that cannot load the trainer's state of the run before.

MixingInstanceSource, which takes ratios, rounds the sequences of every domain down (calculate_sample_sizes in utils.py,
then SamplingInstanceSource): stages would be too short, and batches would straddle them. Here, sequences are given as
whole numbers, rounded by largest remainder to add up to the batches of a stage. SamplingInstanceSource with one source
keeps such a number exactly, and goes through a source again if it is smaller. The loader cuts what does not fill a
batch (get_local_indices in data_loader.py).
"""

from __future__ import annotations

import ast
import pprint

import numpy as np

from acodm_cli.errors import UsageError
from acodm_cli.exports.checks import domain_paths, notes_of_zeros
from acodm_cli.exports.counts import largest_remainder
from acodm_cli.exports.plan import Array, Export, Plan, Target, comment

TRAINER = "OLMo-core 3.0.0"
# Indices of sequences are numpy.uint32 (build_global_indices in utils.py).
_MOST_SEQUENCES = 2**32 - 2

_CODE = '''
import hashlib
from dataclasses import dataclass

from olmo_core.data import TokenizerConfig
from olmo_core.data.composable import (
    ComposableDataLoaderConfig,
    ConcatAndChunkInstanceSource,
    ConcatenatedInstanceSource,
    InstanceSource,
    InstanceSourceConfig,
    SamplingInstanceSource,
    ShuffleStrategy,
)

SEQUENCE_LENGTH = {seq_len}
GLOBAL_BATCH_SIZE = {tokens}  # tokens
SEED = 0

PATHS = {paths}

# Sequences of every domain, stage by stage.
STAGES = {stages}


class Window(InstanceSource):
    """`count` instances of a source from `start` on, so that a stage goes on where the stages before it stopped."""

    def __init__(self, source, start, count, work_dir):
        super().__init__(work_dir=work_dir, sequence_length=source.sequence_length, label=source.label)
        self.source, self.start, self.count = source, start, count

    @property
    def fingerprint(self):
        return hashlib.sha256(f"{{self.source.fingerprint}},{{self.start}},{{self.count}}".encode()).hexdigest()

    def __len__(self):
        return self.count

    def __getitem__(self, idx):
        return self.source[self.start + self.validate_index(idx)]

    def children(self):
        return [self.source]


@dataclass
class StageConfig(InstanceSourceConfig):
    stage: int
    tokenizer: TokenizerConfig

    def build(self, work_dir):
        windows = []
        for domain, count in STAGES[self.stage].items():
            tokens = ConcatAndChunkInstanceSource.Config.from_npy(
                PATHS[domain], tokenizer=self.tokenizer, sequence_length=SEQUENCE_LENGTH, label=domain
            ).build(work_dir)
            total = sum(stage.get(domain, 0) for stage in STAGES)
            start = sum(stage.get(domain, 0) for stage in STAGES[: self.stage])
            drawn = SamplingInstanceSource(tokens, max_instances=total, seed=SEED, work_dir=work_dir, label=domain)
            windows.append(Window(drawn, start, count, work_dir))
        return ConcatenatedInstanceSource(*windows, work_dir=work_dir)


def dataset(tokenizer: TokenizerConfig) -> list[InstanceSourceConfig]:
    return [StageConfig(stage=stage, tokenizer=tokenizer) for stage in range(len(STAGES))]


def data_loader(tokenizer: TokenizerConfig, **options) -> ComposableDataLoaderConfig:
    return ComposableDataLoaderConfig(
        tokenizer=tokenizer,
        global_batch_size=GLOBAL_BATCH_SIZE,
        shuffle_strategy=ShuffleStrategy.intra_source,
        **options,
    )
'''


def multiple(target: Target) -> int:
    return 1


def export(plan: Plan) -> Export:
    """Raises: UsageError if two domains share files, a name would be expanded, or there are too many sequences."""
    target = plan.target
    if target.steps * target.batch > _MOST_SEQUENCES:
        raise UsageError(
            f"OLMo-core counts sequences up to {_MOST_SEQUENCES} and the run has {target.steps * target.batch}; export fewer steps"
        )
    for domain in plan.domains:
        if "*" in domain:
            raise UsageError(
                f"OLMo-core would expand the * in domain {domain!r}; rename the domain and the folder of its tokens"
            )
    paths = [path if path.endswith(".npy") else f"{path.rstrip('/')}/*.npy" for path in domain_paths(plan, "OLMo-core")]
    stages = []
    for stage in plan.stages:
        counts_K = largest_remainder(stage.weights_K, stage.steps * target.batch)
        stages.append({name: count for name, count in zip(plan.domains, counts_K.tolist(), strict=True) if count > 0})
    code = _CODE.format(
        seq_len=target.seq_len,
        tokens=target.batch * target.seq_len,
        paths=pprint.pformat(dict(zip(plan.domains, paths, strict=True)), width=100, sort_dicts=False),
        stages=pprint.pformat(stages, width=100, sort_dicts=False),
    )
    files = {"mixture.py": "".join(f"# {line}\n" for line in comment(plan, TRAINER)) + code}
    starts = ", ".join(f"{stage.first} (sequence {stage.first * target.batch})" for stage in plan.stages)
    notes = [
        "Give your ExperimentConfig dataset=dataset(tokenizer) and data_loader=data_loader(tokenizer, work_dir=...) of mixture.py, and "
        f"train for Duration.steps({target.steps}) with this batch size from beginning to end.",
        f"No restart is needed: stages start after step {starts}.",
        "A domain that runs out of sequences begins again without a warning.",
    ]
    return Export(files, [*notes, *notes_of_zeros(plan, realised(files, plan))])


def realised(files: dict[str, str], plan: Plan) -> Array:
    stages = next(
        ast.literal_eval(node.value)
        for node in ast.parse(files["mixture.py"]).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "STAGES"
    )
    counts_NK = np.array([[stage.get(name, 0) for name in plan.domains] for stage in stages], dtype=np.float64)
    return counts_NK / counts_NK.sum(axis=1, keepdims=True)

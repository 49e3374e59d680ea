from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset

from acodm_cli import MixedDataset, Schedule, ScheduleSampler
from acodm_cli.errors import UsageError
from acodm_cli.schedule.columns import DOMAIN_COLUMNS, STEP_COLUMNS

STEPS, BATCH = 50, 8
DOMAINS = ["web", "code"]


@pytest.fixture
def schedule() -> Schedule:
    """From all web to mostly code."""
    code_S = np.linspace(0, 0.9, 20)
    per_domain = {name: np.zeros((20, 2), dtype) for name, dtype in DOMAIN_COLUMNS.items()}
    per_domain["weight"] = np.stack([1 - code_S, code_S], axis=1).astype(np.float32)
    per_step = {name: np.zeros(20, np.float32) for name in STEP_COLUMNS}
    return Schedule(DOMAINS, np.arange(1, 21), np.arange(1, 21) * 64, per_domain, per_step)


def asked(schedule: Schedule) -> np.ndarray:
    """Cumulative sequences of code after each step."""
    return np.cumsum([BATCH * schedule.weights(progress=(step + 0.5) / STEPS)[1] for step in range(STEPS)])


class Stream(IterableDataset[Any]):
    """Of one domain."""

    def __init__(self, name: str, length: int) -> None:
        self.name, self.length = name, length

    def __iter__(self) -> Iterator[Any]:
        return ((self.name, index) for index in range(self.length))

    def __len__(self) -> int:
        return self.length


def test_the_sampler_follows_the_schedule_without_replacement(schedule: Schedule) -> None:
    sampler = ScheduleSampler(schedule, {"web": 1000, "code": 30}, STEPS, BATCH)
    indices = list(sampler)
    assert len(indices) == len(sampler) == STEPS * BATCH
    code = np.array(indices) >= 1000
    assert np.abs(code.reshape(STEPS, BATCH).sum(axis=1).cumsum() - asked(schedule)).max() < 1
    drawn = [index for index in indices if index >= 1000]
    assert sorted(drawn[:30]) == list(range(1000, 1030))
    assert drawn[30:60] != drawn[:30]
    resumed = ScheduleSampler(schedule, {"web": 1000, "code": 30}, STEPS, BATCH, first_step=20)
    assert list(resumed) == indices[20 * BATCH :]
    assert len(resumed) == 30 * BATCH


def test_the_sampler_in_a_loader(schedule: Schedule) -> None:
    data: ConcatDataset[Any] = ConcatDataset([[("web", i) for i in range(40)], [("code", i) for i in range(40)]])  # type: ignore[list-item]
    sampler = ScheduleSampler(schedule, {"web": 40, "code": 40}, STEPS, BATCH)
    names = [name for names, _ in DataLoader(data, batch_size=4, sampler=sampler) for name in names]
    assert Counter(names)["code"] == pytest.approx(asked(schedule)[-1], abs=1)


@pytest.mark.slow
def test_workers_give_the_same_batches_in_the_same_order(schedule: Schedule) -> None:
    data = {name: [(name, index) for index in range(size)] for name, size in {"web": 100, "code": 50}.items()}
    whole = list(MixedDataset(schedule, data, STEPS, BATCH))
    assert len(whole) == STEPS * BATCH
    mixed = MixedDataset(schedule, data, STEPS, BATCH, loader_batch=4)
    loader = DataLoader(mixed, batch_size=4, num_workers=2, collate_fn=list)
    assert [example for batch in loader for example in batch] == whole
    assert list(MixedDataset(schedule, data, STEPS, BATCH, first_step=10)) == whole[10 * BATCH :]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_streams_are_read_in_their_order_and_again(schedule: Schedule, workers: int) -> None:
    streams: dict[str, Any] = {"web": Stream("web", 1000)}
    streams["code"] = datasets.IterableDataset.from_generator(Stream("code", 30).__iter__)
    loader = DataLoader(
        MixedDataset(schedule, streams, STEPS, BATCH), batch_size=4, num_workers=workers, collate_fn=list
    )
    examples = [example for batch in loader for example in batch]
    code = np.array([name == "code" for name, _ in examples])
    assert np.abs(code.reshape(STEPS, BATCH).sum(axis=1).cumsum() - asked(schedule)).max() < 1
    assert [index for name, index in examples if name == "code"][:60] == [*range(30), *range(30)]
    rest = MixedDataset(schedule, streams, STEPS, BATCH, first_step=10)
    assert [name for name, _ in rest] == [name for name, _ in examples[10 * BATCH :]]
    if workers:
        with pytest.raises(ValueError, match="takes one worker"):
            next(iter(DataLoader(rest, num_workers=2)))


def test_what_cannot_be(schedule: Schedule) -> None:
    with pytest.raises(UsageError, match="only in the schedule code; only on the other side books"):
        ScheduleSampler(schedule, {"web": 10, "books": 10}, STEPS, BATCH)
    with pytest.raises(ValueError, match="nothing in code"):
        ScheduleSampler(schedule, {"web": 10, "code": 0}, STEPS, BATCH)
    with pytest.raises(ValueError, match="from 0 to 50, not 51"):
        ScheduleSampler(schedule, {"web": 10, "code": 1}, STEPS, BATCH, first_step=51)
    with pytest.raises(ValueError, match="must be positive"):
        MixedDataset(schedule, {"web": [1], "code": [1]}, 0, BATCH)
    with pytest.raises(ValueError, match="is empty"):
        list(MixedDataset(schedule, {"web": [1], "code": Stream("code", 0)}, STEPS, BATCH))


@pytest.mark.slow
def test_workers_need_to_know_the_batch_of_their_loader(schedule: Schedule) -> None:
    loader = DataLoader(MixedDataset(schedule, {"web": [1], "code": [1]}, STEPS, BATCH), num_workers=2)
    with pytest.raises(ValueError, match="needs loader_batch"):
        next(iter(loader))


@pytest.mark.slow
def test_the_trainer_of_hugging_face(schedule: Schedule, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    generator = torch.Generator().manual_seed(0)

    def texts(low: int, high: int) -> list[dict[str, list[int]]]:
        tokens_NT = torch.randint(low, high, (64, 16), generator=generator).tolist()
        return [{"input_ids": tokens, "labels": tokens} for tokens in tokens_NT]

    seen: list[int] = []

    class Model(transformers.GPTNeoXForCausalLM):
        def forward(self, input_ids: Any = None, **rest: Any) -> Any:
            # Tokens of code are 50 and above.
            seen.extend((input_ids[:, 0] >= 50).tolist())
            return super().forward(input_ids=input_ids, **rest)

    config = transformers.GPTNeoXConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        use_cpu=True,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    data = MixedDataset(schedule, {"web": texts(0, 50), "code": texts(50, 100)}, STEPS, BATCH)
    transformers.Trainer(Model(config), arguments, train_dataset=data).train()
    assert len(seen) == STEPS * BATCH
    code_S = np.array(seen).reshape(STEPS, BATCH).sum(axis=1).cumsum()
    assert np.abs(code_S - asked(schedule)).max() < 1

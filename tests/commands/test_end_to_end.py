from __future__ import annotations

import gzip
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import transformers

from acodm_cli.corpus.corpus import open_corpus
from acodm_cli.corpus.held_out import HeldOutText, validation_texts, validation_windows
from acodm_cli.corpus.settings import CorpusSettings
from acodm_cli.schedule.schedule import Schedule
from tests.command_line import acodm, contents


def test_proxy_train_leaves_a_schedule_and_nothing_else(proxy: Path) -> None:
    assert [path.name for path in proxy.parent.iterdir()] == [proxy.name]
    schedule = Schedule.read(proxy)
    assert len(schedule) == 40
    assert schedule.policy is not None
    assert np.abs(schedule.weights_SK[-1] - 0.25).max() > 0.005, "the mixture has moved away from the prior"
    rows = np.flatnonzero(~np.isnan(schedule.per_domain["validation_loss"][:, 0]))
    losses = schedule.per_domain["validation_loss"][rows].mean(axis=1)
    assert losses[-1] < losses[0] - 0.3
    text = json.dumps(schedule.info)
    assert str(proxy.parent) not in text, "a file to mail to a colleague says nothing of this machine"


def test_the_next_command_is_printed_and_complete(small: list[object], tmp_path: Path) -> None:
    outcome = acodm("proxy-train", "--steps", 2, "--out", tmp_path / "a.parquet", *small)
    assert outcome.code == 0
    assert f"acodm inspect {tmp_path / 'a.parquet'}" in outcome.stderr
    use = re.search(r"acodm apply --schedule (\S+) --model (\S+) --data (\S+) --tokenizer (\S+)", outcome.stderr)
    assert use is not None
    assert Path(use[3]) == small[1]
    assert Path(use[4]) == small[3]


def test_a_proxy_for_a_budget_shows_both_epochs_and_the_targets_command(small: list[object], tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    options = ["--mixer", "uniform", "--steps", 20, "--for-tokens", "0.1024M", "--lr-schedule", "wsd", *small]
    outcome = acodm("proxy-train", "--out", out, *options)
    assert outcome.code == 0, outcome.stderr
    assert "--steps 400 --lr-schedule wsd --data" in outcome.stderr, "20 x 8 x 32 tokens are a twentieth of the budget"
    epochs_K = Schedule.load(out).epochs()
    assert epochs_K is not None
    for name, epochs in zip(Schedule.load(out).domains, epochs_K, strict=True):
        table = next(line.split() for line in outcome.stderr.splitlines() if line.startswith(f"{name} "))
        proxys, targets = map(float, table[6:8])
        assert proxys == pytest.approx(targets, rel=0.1)
        assert proxys == pytest.approx(epochs, abs=0.02)
    assert "each domain is cut to 0.05 of its sequences" in outcome.stderr


def independent_validation(model_folder: Path, data: Path, texts: list[HeldOutText]) -> tuple[list[float], list[float]]:
    """Losses and bits per byte of domains, with transformers and tokenizers alone. texts: which windows were validated."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    losses, bits = [], []
    for text in texts:
        frame = pd.read_json(next((data / text.name).glob("validation.*")), lines=True)
        stream: list[int] = []
        sizes: list[int] = []
        for document in frame["text"]:
            encoded = tokenizer(document, return_offsets_mapping=True)
            stream += [*encoded["input_ids"], tokenizer.eos_token_id]
            sizes += [*(len(document[a:b].encode()) for a, b in encoded["offset_mapping"]), 0]
        seq_len = text.tokens_NU.shape[1] - 1
        starts = [stream_start(stream, row.tolist()) for row in text.tokens_NU]
        assert len(set(starts)) == len(starts)
        windows = torch.tensor([stream[start : start + seq_len + 1] for start in starts])
        with torch.no_grad():
            logits = model(windows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
        size = sum(sum(sizes[start + 1 : start + seq_len + 1]) for start in starts)
        losses.append(loss)
        bits.append(loss * len(starts) * seq_len / math.log(2) / size)
    return losses, bits


def stream_start(stream: list[int], window: list[int]) -> int:
    places = range(len(stream) - len(window) + 1)
    return next(start for start in places if stream[start : start + len(window)] == window)


@pytest.mark.parametrize("mode", ["auto", "policy", "replay", "online", "no schedule"])
def test_apply(mode: str, proxy: Path, small: list[object], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.parquet"
    how = [] if mode == "no schedule" else ["--schedule", proxy, "--mode", mode]
    outcome = acodm("apply", *how, "--model", "llama-tiny", "--steps", 20, "--out", out, *small)
    assert outcome.code == 0, outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["record.model", "record.parquet"]

    record = Schedule.read(out)
    expected = {"auto": "policy", "no schedule": "ac-odm", "online": "ac-odm"}.get(mode, mode)
    assert record.info["mixer"]["name"] == expected
    assert (record.policy is not None) == (expected == "ac-odm"), "what keeps learning is worth keeping"
    assert np.isnan(record.per_step["interaction_energy"]).all() == (expected != "ac-odm")
    planned = Schedule.read(proxy).learned.weights_SK
    if mode == "replay":
        assert np.allclose(record.weights_SK, (planned[0::2] + planned[1::2]) / 2, atol=1e-6)

    reported = float(record.per_domain["validation_loss"][-1].mean())
    corpus = open_corpus(CorpusSettings(data=str(small[1]), tokenizer=str(small[3]), cache_dir=str(small[5])))
    texts = validation_texts(corpus, validation_windows(corpus, 32), [4] * 4)
    losses, bits = independent_validation(tmp_path / "record.model", data, texts)
    assert np.mean(losses) == pytest.approx(reported, abs=1e-3)
    assert record.per_domain["validation_bits_per_byte"][-1] == pytest.approx(bits, rel=1e-5)
    assert f"{reported:.4f}" in outcome.stderr


def test_apply_follows_the_schedules_own_settings(proxy: Path, small: list[object], tmp_path: Path) -> None:
    corpus_only = small[:6]
    out = tmp_path / "record.parquet"
    outcome = acodm("apply", "--schedule", proxy, "--model", "pythia-14m", "--steps", 2, "--out", out, *corpus_only)
    assert outcome.code == 0, outcome.stderr
    info = Schedule.read(out).info
    assert (info["steps"], info["seq_len"], info["batch"]) == (2, 32, 8)


def test_saved_tokenizer_is_the_corpus_tokenizer(small: list[object], tokenizer_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    outcome = acodm("proxy-train", "--steps", 2, "--out", tmp_path / "a.parquet", "--save-model", folder, *small)
    assert outcome.code == 0, outcome.stderr
    saved = transformers.AutoTokenizer.from_pretrained(folder)
    original = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    text = "def foo(bar):\n    return bar * 7"
    assert saved(text)["input_ids"] == original.encode(text).ids
    assert "model.safetensors" in {path.name for path in folder.iterdir()}


def test_same_seed_same_schedule(proxy: Path, small: list[object], tmp_path: Path) -> None:
    again, other = tmp_path / "again.parquet", tmp_path / "other.parquet"
    assert acodm("proxy-train", "--steps", 40, "--out", again, *small).code == 0
    assert acodm("proxy-train", "--steps", 40, "--out", other, "--seed", 1, *small).code == 0
    assert again.read_bytes() == proxy.read_bytes()
    assert other.read_bytes() != proxy.read_bytes()


def test_inspect(proxy: Path, small: list[object], tmp_path: Path) -> None:
    outcome = acodm("inspect", proxy)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr == ""
    for expected in ("pythia-14m", "40 steps", "arithmetic", "prose", "val. loss"):
        assert expected in outcome.stdout

    facts = json.loads(acodm("inspect", proxy, "--json").stdout)
    schedule = Schedule.read(proxy)
    assert facts["steps"] == 40
    assert [domain["name"] for domain in facts["domains"]] == schedule.domains
    assert sum(domain["end"] for domain in facts["domains"]) == pytest.approx(1, abs=1e-6)
    assert sum(domain["samples"] for domain in facts["domains"]) == 40 * 8

    record = tmp_path / "record.parquet"
    how = ["--mode", "replay", "--mixer-option", "warm_up=true", "--model", "pythia-14m"]
    replayed = acodm("apply", "--schedule", proxy, *how, "--out", record, *small)
    assert replayed.code == 0, replayed.stderr
    both = acodm("inspect", proxy, record)
    assert both.code == 0
    assert "record from learned: mean 0.000" in both.stdout
    assert len(json.loads(acodm("inspect", proxy, record, "--json").stdout)) == 2


def test_json_has_no_numbers_that_json_does_not_know(proxy: Path) -> None:
    def refuse(value: str) -> float:
        raise AssertionError(value)

    facts = json.loads(acodm("inspect", proxy, "--json").stdout, parse_constant=refuse)
    assert all(math.isfinite(domain["last_validation_loss"]) for domain in facts["domains"])


def test_existing_files_are_refused_then_replaced_with_force(proxy: Path, small: list[object], tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    out.write_bytes(proxy.read_bytes())
    before = contents(tmp_path)
    refused = acodm("proxy-train", "--steps", 2, "--out", out, *small)
    assert refused.code == 2
    assert "--force" in refused.stderr
    assert contents(tmp_path) == before
    assert acodm("proxy-train", "--steps", 2, "--out", out, "--force", *small).code == 0
    assert len(Schedule.read(out)) == 2


def test_profiled_and_deterministic(small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither changes what is computed on a CPU; the trace holds the steps that were asked for."""
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    run = ["proxy-train", "--mixer", "uniform", "--steps", 3, *small]
    try:
        outcome = acodm(*run, "--out", tmp_path / "a.parquet", "--profile", "2-3", "--deterministic")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert outcome.code == 0, outcome.stderr
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert f"trace of steps 2 to 3: {tmp_path / 'a.trace.json.gz'}" in outcome.stderr
    with gzip.open(tmp_path / "a.trace.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("aten::_fused_adamw_") == 2 * 2  # of matrices and of the rest, in each step
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    outcome = acodm(*run, "--out", tmp_path / "b.parquet", "--profile", "6")
    assert outcome.code == 2
    assert "--profile 6 begins after the run's 3 steps" in outcome.stderr
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "backend:native"

"""A user's mistake gets one line that says what to do next, a stable exit code, and harms nothing on disk."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load, save

from acodm_cli.schedule import digests
from tests.command_line import acodm, contents
from tests.conftest import write_corpus


def refuses(code: int, *arguments: object) -> str:
    """The one line of an error; only progress and warnings may come before it."""
    outcome = acodm(*arguments)
    assert outcome.code == code, outcome.stderr
    assert outcome.stdout == ""
    *before, line = outcome.stderr.splitlines()
    assert all(progress.startswith(("preparing ", "warning: ")) for progress in before), outcome.stderr
    assert line.startswith("error: ")
    return line


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def test_unknown_model(small: list[object], out: Path) -> None:
    line = refuses(2, "proxy-train", "--model", "pythia-160", "--out", out, *small)
    assert "unknown model 'pythia-160'; did you mean pythia-160m?" in line
    assert not out.with_suffix(".run").exists(), "nothing is left of a run that never began"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["proxy-train", "--steps", 0], "--steps"),
        (["proxy-train", "--batch", "many"], "--batch"),
        (["proxy-train", "--device", "tpu"], "use auto, cpu, cuda"),
        (["proxy-train", "--dtype", "fp8"], "use auto, bf16 or fp32"),
        (["proxy-train", "--mixer-option", "gama=0"], "has no option 'gama'"),
        (["proxy-train", "--mixer-option", "gamma"], "is not NAME=VALUE"),
        (["proxy-train", "--mixer-option", "gamma=0", "--mixer-option", "gamma=1"], "gamma is given twice"),
        (["proxy-train", "--mixer", "doremy"], "--mixer doremy; did you mean doremi?"),
        (["proxy-train", "--parallel", "tensor"], "--parallel tensor; give one of ddp, fsdp"),
        (["proxy-train", "--track", "excel"], "--track excel; give one of jsonl, tensorboard"),
        (["proxy-train", "--alignment-layers", "convolution"], "selects no layer"),
        (["proxy-train", "--nonsense"], "--nonsense"),
        (["proxy-train", "--mixer-option", "ema=1"], "ema = 1.0; give a number from 0 to below 1"),
        (["proxy-train", "--mixer", "doremi", "--mixer-option", "step_size=inf"], "is not a number"),
        (["apply"], "give the target with --model"),
        (["apply", "--model", "pythia-14m", "--mode", "policy"], "needs --schedule"),
    ],
)
def test_usage(arguments: list[object], said: str, small: list[object], out: Path) -> None:
    command, *rest = arguments
    assert said in refuses(2, command, *small, "--out", out, *rest)


def test_missing_and_empty_data(tokenizer_file: Path, tmp_path: Path, out: Path) -> None:
    empty = tmp_path / "empty"
    for folder in (tmp_path / "nowhere", empty):
        line = refuses(2, "proxy-train", "--data", folder, "--tokenizer", tokenizer_file, "--out", out)
        assert str(folder) in line
        empty.mkdir(exist_ok=True)


def test_domain_of_less_than_one_sequence(tokenizer_file: Path, cache: Path, tmp_path: Path, out: Path) -> None:
    data = write_corpus(tmp_path / "data")
    for split in ("train", "validation"):
        for file in (data / "prose").glob(f"{split}*"):
            file.write_text('{"text": "tiny"}\n')
    how = ["--data", data, "--tokenizer", tokenizer_file, "--cache-dir", cache]
    line = refuses(2, "proxy-train", *how, "--seq-len", 64, "--out", out)
    assert "prose" in line


def test_broken_json_line(tokenizer_file: Path, cache: Path, tmp_path: Path, out: Path) -> None:
    data = write_corpus(tmp_path / "data")
    file = data / "prose" / "train.jsonl"
    lines = file.read_text().splitlines()
    lines[6] = '{"text": "unfinished'
    file.write_text("\n".join(lines))
    line = refuses(2, "proxy-train", "--data", data, "--tokenizer", tokenizer_file, "--cache-dir", cache, "--out", out)
    assert f"{file}:7" in line


def rewrite(path: Path, target: Path, change: Callable[[dict[bytes, bytes]], None]) -> Path:
    """A copy of a schedule with other metadata, by someone who leaves the digests out."""
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    del metadata[digests.KEY]
    change(metadata)
    pq.write_table(table.replace_schema_metadata(metadata), target)
    return target


def other_version(metadata: dict[bytes, bytes]) -> None:
    metadata[b"acodm"] = json.dumps(json.loads(metadata[b"acodm"]) | {"format_version": 2}).encode()


def wrong_shape(metadata: dict[bytes, bytes]) -> None:
    data = base64.b64decode(metadata[b"acodm.policy"])
    tensors = load(data)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])["__metadata__"]
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = torch.zeros(3, 3)
    metadata[b"acodm.policy"] = base64.b64encode(save(tensors, header))


def test_schedules_that_are_not(proxy: Path, small: list[object], tmp_path: Path, out: Path) -> None:
    text = tmp_path / "text.parquet"
    text.write_text("weights: half of each\n")
    truncated = tmp_path / "truncated.parquet"
    truncated.write_bytes(proxy.read_bytes()[:-100])
    newer = rewrite(proxy, tmp_path / "newer.parquet", other_version)
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pq.read_table(proxy).select(["step", "weight"]).replace_schema_metadata(), foreign)
    before = contents(tmp_path)
    for file, said in [
        (tmp_path / "absent.parquet", "absent.parquet"),
        (text, "Parquet"),
        (truncated, "Parquet"),
        (newer, "version"),
        (foreign, "acodm"),
    ]:
        assert said in refuses(3, "inspect", file)
        assert said in refuses(3, "apply", "--schedule", file, "--model", "pythia-14m", "--out", out, *small)
    assert contents(tmp_path) == before


def test_policy_of_the_wrong_shape(proxy: Path, small: list[object], tmp_path: Path, out: Path) -> None:
    file = rewrite(proxy, tmp_path / "odd.parquet", wrong_shape)
    outcome = acodm("apply", "--schedule", file, "--model", "pythia-14m", "--steps", 2, "--out", out, *small)
    assert outcome.code == 3
    assert "expected torch.float" in outcome.stderr
    assert "use --mode replay" in outcome.stderr
    assert not out.exists()
    arguments = ["apply", "--schedule", file, "--mode", "replay", "--model", "pythia-14m", "--steps", 2]
    assert acodm(*arguments, "--out", out, "--force", *small).code == 0


def test_domains_that_do_not_match_the_corpus(
    proxy: Path, tokenizer_file: Path, cache: Path, tmp_path: Path, out: Path
) -> None:
    data = write_corpus(tmp_path / "data", ("arithmetic", "code", "poems"))
    how = ["--data", data, "--tokenizer", tokenizer_file, "--cache-dir", cache, "--seq-len", 32]
    outcome = acodm("apply", "--schedule", proxy, "--model", "pythia-14m", "--out", out, *how)
    assert outcome.code == 3
    line = outcome.stderr.splitlines()[-1]
    for name in ("prose", "tables", "poems"):
        assert name in line


def test_output_that_cannot_be_written(small: list[object], tmp_path: Path) -> None:
    before = contents(tmp_path)
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "file").write_text("not a folder")
    for out, said in [
        (tmp_path / "no" / "such" / "folder.parquet", "cannot write in"),
        (tmp_path / "file" / "out.parquet", "cannot write in"),
        (tmp_path / "folder.parquet", "folder"),
        (tmp_path / "out.csv", "must end in .parquet"),
    ]:
        assert said in refuses(2, "proxy-train", "--steps", 2, "--out", out, *small)
    assert contents(tmp_path) == before | {"file": b"not a folder"}


def test_a_cache_that_cannot_be_written(tmp_path: Path, out: Path) -> None:
    """Also where the embedded corpus would be made."""
    (tmp_path / "file").touch()
    said = refuses(1, "proxy-train", "--cache-dir", tmp_path / "file", "--out", out)
    assert "cannot write the token cache" in said
    assert "use --cache-dir" in said


def test_names_of_domains_are_no_markup(tokenizer_file: Path, tmp_path: Path, out: Path) -> None:
    data = write_corpus(tmp_path / "data", ("arithmetic", "code"))
    (data / "code").rename(data / "wiki[red]")
    how = ["--data", data, "--tokenizer", tokenizer_file, "--cache-dir", tmp_path / "cache", "--seq-len", 32]
    outcome = acodm("proxy-train", "--steps", 2, "--batch", 4, *how, "--out", out)
    assert outcome.code == 0, outcome.stderr
    assert "preparing wiki[red]" in outcome.stderr
    assert "--batch" not in outcome.stderr, "two sequences per domain are enough"
    small = acodm("proxy-train", "--steps", 2, "--batch", 3, *how, "--out", out, "--force")
    assert "warning: --batch 3 holds fewer than two sequences" in small.stderr


def test_schedule_of_the_target_run_is_not_its_output(proxy: Path, small: list[object]) -> None:
    before = proxy.read_bytes()
    arguments = ["apply", "--schedule", proxy, "--model", "pythia-14m", "--steps", 2, "--out", proxy]
    assert acodm(*arguments, "--force", *small).code == 2
    assert proxy.read_bytes() == before


def test_a_model_that_does_not_fit(small: list[object], out: Path) -> None:
    said = refuses(
        4, "proxy-train", "--model", "pythia-12b", "--seq-len", 2048, "--batch", 4096, "--out", out, *small[:6]
    )
    assert "pythia-12b takes about" in said
    assert "use a smaller model: pythia-" in said or "a machine with more memory" in said

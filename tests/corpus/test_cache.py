"""The cache: any number of processes, other users, killed processes, and few open files."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acodm_cli.corpus.cache import check_seal, make_once, remove_left_over, seal
from acodm_cli.errors import AcodmError
from tests.conftest import opened, write_corpus

PREPARE = """
import sys, time
from acodm_cli.corpus.corpus import open_corpus
from acodm_cli.corpus.settings import CorpusSettings
data, tokenizer, cache, start = sys.argv[1:]
time.sleep(max(0.0, float(start) - time.time()))
print(open_corpus(CorpusSettings(data, tokenizer, cache_dir=cache)).fingerprint)
"""


def test_processes_prepare_the_same_corpus_at_once(tokenizer_file: Path, tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "data", documents=200)
    arguments = [str(data), str(tokenizer_file), str(tmp_path / "cache"), str(time.time() + 4)]
    command = [sys.executable, "-c", PREPARE, *arguments]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    time.sleep(4.1)
    processes[0].send_signal(signal.SIGKILL)
    outcomes = [process.communicate() for process in processes]
    assert [process.returncode for process in processes[1:]] == [0, 0, 0], outcomes
    assert len({stdout for stdout, _ in outcomes[1:]}) == 1
    opened(data, tokenizer_file, tmp_path / "cache")
    assert not [path.name for path in (tmp_path / "cache" / "tokens").iterdir() if path.name.startswith(".")]


def test_what_killed_processes_left_is_removed_and_what_others_make_is_not(tmp_path: Path) -> None:
    for name in (".dead.acodm-x1", ".live.acodm-x2"):
        (tmp_path / name).mkdir()
    (tmp_path / ".old.lock").touch()

    def make(partial: Path) -> None:
        remove_left_over(tmp_path)
        assert partial.is_dir()
        (partial / "made").touch()

    make_once(tmp_path / "live", make)
    # The partial folder x2 had no owner, but its name was locked meanwhile.
    assert sorted(path.name for path in tmp_path.iterdir()) == [".live.acodm-x2", "live"]
    remove_left_over(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["live"]


def test_modes_follow_the_umask(tokenizer_file: Path, tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "data", documents=30)
    before = os.umask(0o002)
    try:
        opened(data, tokenizer_file, tmp_path / "cache")
    finally:
        os.umask(before)
    for path in (tmp_path / "cache").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o775 if path.is_dir() else 0o664), path


def test_hundreds_of_domains_take_few_open_files(tokenizer_file: Path, tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / "data" / f"d{number:03}").mkdir(parents=True)
        lines = [json.dumps({"text": f"domain {number} document {i} of a few words"}) for i in range(25)]
        (tmp_path / "data" / f"d{number:03}" / "0.jsonl").write_text("\n".join(lines))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        corpus = opened(tmp_path / "data", tokenizer_file, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(corpus.domains) == 300
    assert int(corpus.domains[299].train.sequence(0, 8)[0]) > 0


def test_too_few_open_files_are_not_damage(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_corpus(tmp_path / "data", documents=30)
    opened(data, tokenizer_file, tmp_path / "cache")
    read = Path.read_text

    def fail(path: Path, *arguments: object) -> str:
        if path.name == "index.json":
            raise OSError(24, "Too many open files")
        return read(path)

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(AcodmError, match=r"cannot be read \(Too many open files\); raise the limit with ulimit -n"):
        opened(data, tokenizer_file, tmp_path / "cache")


def test_a_sealed_folder_is_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "a" / "code").mkdir(parents=True)
    text = tmp_path / "a" / "code" / "train.jsonl"
    text.write_text('{"text": "one"}\n')
    seal(tmp_path / "a")
    check_seal(tmp_path / "a")
    before = text.read_bytes()
    for change in (
        lambda: text.write_bytes(bytes([before[0] ^ 1]) + before[1:]),
        lambda: (tmp_path / "a" / "more").touch(),
        text.unlink,
        (tmp_path / "a" / ".sha256.json").unlink,
    ):
        change()
        with pytest.raises(AcodmError, match="is damaged; remove it, and it will be made again"):
            check_seal(tmp_path / "a")
        text.write_bytes(before)
        (tmp_path / "a" / "more").unlink(missing_ok=True)


def test_every_bit_of_a_stores_index_counts(tokenizer_file: Path, tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "data", documents=20)
    whole = opened(data, tokenizer_file, tmp_path / "cache").fingerprint
    index = next((tmp_path / "cache" / "tokens").glob("*/index.json"))
    content = index.read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        index.write_bytes(changed)
        try:
            found = opened(data, tokenizer_file, tmp_path / "cache").fingerprint
        except AcodmError:
            continue
        assert found == whole
        assert json.loads(changed).keys() != json.loads(content).keys(), "only the digest's name is without effect"

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from acodm_cli.corpus.embedded import train_tokenizer
from acodm_cli.schedule.info import Evidence, StudiedCurve
from acodm_cli.schedule.schedule import Schedule
from tests.benchmarks.sample_efficiency import (
    FOUND,
    JUNK,
    LEFT_OUT,
    REAL,
    SCARCE,
    SCARCE_CHARACTERS,
    SHAPE,
    STUDIES,
    junk,
    scarce,
    table_of,
)
from tests.command_line import acodm


def test_table_by_hand() -> None:
    curves = (
        StudiedCurve("ac-odm", (10, 20), ((9.0, 5.4), (9.9, 5.94)), 40),
        StudiedCurve("natural", (10, 20), ((12.0, 8.0), (13.0, 8.8)), 40),
        StudiedCurve("uniform", (10, 20), ((10.0, 6.0), (11.0, 6.6)), 40),
    )
    evidence = Evidence("perplexity", "ac-odm", "ac-odm", False, None, (0, 1), 120, (), curves, "", "", "")
    ours, uniform, natural, oracle = table_of(evidence, {"ac-odm": 1.0, "uniform": 2.0, "natural": 3.0})
    assert [ours["mixer"], uniform["mixer"], natural["mixer"]] == ["ac-odm", "uniform", "natural"]
    assert ours["perplexity"] == pytest.approx(5.67)
    assert (ours["difference_to_uniform"], ours["interval_uniform"]) == pytest.approx((-10.0, 0.0), abs=1e-9)
    # From 9 at step 10 to 5.4 at step 20, 6 is reached at 18.33; of the other seed alike.
    assert ours["steps_to_uniform"] == pytest.approx((10 + 10 * 3 / 3.6) / 20)
    assert natural["steps_to_uniform"] is None
    assert (ours["nats"], natural["nats"]) == (1.0, 3.0)
    assert oracle == {**uniform, "mixer": "oracle (uniform)"}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_one_that_acodm_takes(name: str, tmp_path: Path) -> None:
    study = STUDIES[name]
    against = [rival for rival in study.against if rival not in (*FOUND, LEFT_OUT)]
    of_study = [*study.options, "--seeds", "0,1", "--against", ",".join(against)]
    printed = acodm("proxy-train", *SHAPE, *of_study, "--print-commands", "--out", tmp_path / "out.parquet")
    assert printed.code == 0, printed.stderr
    assert len(printed.stdout.splitlines()) == 2 * (len(against) + 1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder per domain of the studies, with 40,000 characters each."""
    for name in {*REAL, *SCARCE}:
        (tmp_path / "data" / name).mkdir(parents=True)
        for part in ("train", "validation"):
            with gzip.open(tmp_path / "data" / name / f"{part}.jsonl.gz", "wt") as file:
                file.writelines(
                    json.dumps({"text": f"{name} {part} {number} " + "word " * 80}) + "\n" for number in range(100)
                )
    return tmp_path / "data"


def test_scarce_domains_are_cut_to_the_character(data: Path, tmp_path: Path) -> None:
    manifest = scarce(data, tmp_path)
    for name in SCARCE:
        assert f'files = ["{name}.jsonl"]' in manifest
        texts = [json.loads(line)["text"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert sum(map(len, texts)) == SCARCE_CHARACTERS
    assert manifest.count("[domains.") == len({*REAL, *SCARCE})


def test_junk_has_no_held_out_text_of_its_own_and_shuffles_tokens(data: Path, tmp_path: Path) -> None:
    train_tokenizer(["wikipedia_en train word 0123456789 " * 50]).save(str(tmp_path / "tokenizer.json"))
    manifest = junk(data, tmp_path)
    assert manifest.count("[domains.") == len(REAL) + len(JUNK)
    assert manifest.count("validation = ") == len(REAL)
    schedule = Schedule.load(str(tmp_path / f"{LEFT_OUT}.csv"))
    for name, weight in zip(schedule.domains, schedule.weights_SK[0], strict=True):
        assert weight == pytest.approx(1 / len(REAL) if name in REAL else 0)
    shuffled = "".join(json.loads(line)["text"] for line in (tmp_path / "shuffled.jsonl").read_text().splitlines())
    written = "".join(f"wikipedia_en train {number} " + "word " * 80 for number in range(100))
    assert sorted(shuffled) == sorted(written)
    assert shuffled != written

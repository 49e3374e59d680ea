from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from acodm_cli.corpus.embedded import train_tokenizer
from acodm_cli.corpus.readers import PLAIN
from acodm_cli.corpus.sources import FileSource, plan_corpus
from acodm_cli.schedule.info import Evidence, StudiedCurve
from acodm_cli.schedule.schedule import Schedule
from tests.benchmarks.sample_efficiency import SCHEDULES, SHAPE, STUDIES, schedule_of, table_of
from tests.benchmarks.study_corpora import (
    CODE,
    JUNK,
    MAKERS,
    NEW,
    REAL,
    REPLAYED,
    SCARCE,
    SCARCE_CHARACTERS,
    Place,
    junk,
    make,
    scarce,
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
    assert (ours["loss"], natural["loss"]) == (1.0, 3.0)
    assert oracle == {**uniform, "mixer": "oracle (uniform)"}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_one_that_acodm_takes(name: str, tmp_path: Path) -> None:
    study = STUDIES[name]
    for rival in SCHEDULES:
        (tmp_path / f"{rival}.csv").write_text("progress,domain,weight\n0,a,1\n")
    # What `before` would have trained, and returned.
    trained: dict[str, list[object]] = {
        "transfer": ["--mixer", "policy", "--mixer-option", f"schedule={tmp_path / 'replay.csv'}"],
        "continued": ["--init-from", tmp_path],
    }
    model = [] if study.model is None else ["--model", study.model]
    against = [schedule_of(rival, tmp_path) for rival in study.against]
    of_study = [*model, *study.options, *trained.get(name, []), "--seeds", "0,1", "--against", ",".join(against)]
    printed = acodm("proxy-train", *SHAPE, *of_study, "--print-commands", "--out", tmp_path / "out.parquet")
    assert printed.code == 0, printed.stderr
    assert len(printed.stdout.splitlines()) == 2 * (len(against) + 1)


DOMAINS = sorted({*REAL, *SCARCE, *NEW})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder per domain of the studies, with 40,000 characters each."""
    for name in DOMAINS:
        (tmp_path / "data" / name).mkdir(parents=True)
        for part in ("train", "validation"):
            with gzip.open(tmp_path / "data" / name / f"{part}.jsonl.gz", "wt") as file:
                file.writelines(
                    json.dumps({"text": f"{name} {part} {number} " + "word " * 80}) + "\n" for number in range(100)
                )
    return tmp_path / "data"


def test_scarce_domains_are_cut_to_the_character(data: Path, tmp_path: Path) -> None:
    manifest = scarce(Place(data, None, tmp_path))
    for name in SCARCE:
        assert f'files = ["{name}.jsonl"]' in manifest
        texts = [json.loads(line)["text"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert sum(map(len, texts)) == SCARCE_CHARACTERS
    assert manifest.count("[domains.") == len(DOMAINS)


def test_junk_has_no_held_out_text_of_its_own_and_shuffles_tokens(data: Path, tmp_path: Path) -> None:
    train_tokenizer(["wikipedia_en train word 0123456789 " * 50]).save(str(tmp_path / "tokenizer.json"))
    manifest = junk(Place(data, None, tmp_path))
    assert manifest.count("[domains.") == len(REAL) + len(JUNK)
    assert manifest.count("validation = ") == len(REAL)
    schedule = Schedule.load(str(tmp_path / "left-out.csv"))
    for name, weight in zip(schedule.domains, schedule.weights_SK[0], strict=True):
        assert weight == pytest.approx(1 / len(REAL) if name in REAL else 0)
    shuffled = "".join(json.loads(line)["text"] for line in (tmp_path / "shuffled.jsonl").read_text().splitlines())
    written = "".join(f"wikipedia_en train {number} " + "word " * 80 for number in range(100))
    assert sorted(shuffled) == sorted(written)
    assert shuffled != written


@pytest.fixture
def evaluations(tmp_path: Path) -> Path:
    """Texts in the form of HumanEval and MMLU."""
    folder = tmp_path / "eval"
    folder.mkdir()
    with gzip.open(folder / "HumanEval.jsonl.gz", "wt") as file:
        file.writelines(
            json.dumps({"prompt": f"def f{n}():\n", "canonical_solution": "    pass\n"}) + "\n" for n in range(4)
        )
    with tarfile.open(folder / "mmlu.tar.gz", "w:gz") as archive:
        for split in ("dev", "test"):
            rows = f"Which of {split}?,one,two,three,four,C\n".encode()
            member = tarfile.TarInfo(f"mmlu/{split}/law_{split}.csv")
            member.size = len(rows)
            archive.addfile(member, io.BytesIO(rows))
    return folder


@pytest.mark.parametrize("name", MAKERS)
def test_a_corpus_is_one_that_acodm_reads(name: str, data: Path, evaluations: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = make(name, Place(data, evaluations, out))
    plan = plan_corpus(str(manifest), PLAIN)
    names = [source.domain for source in plan.sources if isinstance(source, FileSource)]
    assert len(names) == (len(REAL) + len(JUNK) if name == "junk" else len(DOMAINS))
    assert set(plan.keep) == (set(DOMAINS) - set(NEW) if name == "continued" else set())
    for path in out.glob("*.csv"):
        schedule = Schedule.load(str(path))
        assert set(schedule.domains) == set(names)
    if name == "both":
        assert [target.name for target in plan.targets] == ["humaneval", "mmlu"]
        assert "Which of test?\\nAnswer: three" in (out / "mmlu.report.jsonl").read_text()
        moving = Schedule.load(str(out / "moving.csv"))
        assert moving.weights_SK[[400, -1], moving.domains.index("github")] == pytest.approx(
            [0, CODE["github"]], abs=0.05
        )
    if name == "continued":
        by_hand = Schedule.load(str(out / "replay30.csv"))
        new = [by_hand.domains.index(each) for each in NEW]
        assert by_hand.weights_SK[0, new].sum() == pytest.approx(1 - REPLAYED, abs=1e-4)

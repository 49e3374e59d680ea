"""Corpora of other shapes, from the command line: what is prepared, shown, mapped and capped."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from acodm_cli.schedule.schedule import Schedule
from tests.command_line import acodm, contents
from tests.corpus import forms


@pytest.fixture(scope="module")
def texts(data: Path) -> forms.Texts:
    return forms.read_folders(data)


def options(data: object, small: list[object]) -> list[object]:
    return ["--data", data, *small[2:]]


def test_a_schedule_does_not_depend_on_the_form_of_its_corpus(
    texts: forms.Texts, small: list[object], tmp_path: Path
) -> None:
    forms.write_one_file(texts, tmp_path / "pile")
    for name, arguments in {
        "folders": small,
        "records": [*options(tmp_path / "pile", small), "--domain-field", "meta.pile_set_name"],
    }.items():
        outcome = acodm("proxy-train", "--steps", 6, "--out", tmp_path / f"{name}.parquet", *arguments)
        assert outcome.code == 0, outcome.stderr
        if name == "records":
            assert "--domain-field meta.pile_set_name" in outcome.stderr.splitlines()[-1], (
                "the next command is complete"
            )
    first, second = (Schedule.read(tmp_path / f"{name}.parquet") for name in ("folders", "records"))
    assert np.array_equal(first.weights_SK, second.weights_SK)
    assert first.info["corpus"]["fingerprint"] == second.info["corpus"]["fingerprint"]


def test_dry_run_shows_what_the_run_would_use_and_leaves_nothing(
    small: list[object], proxy: Path, tmp_path: Path
) -> None:
    before = contents(tmp_path)
    out = tmp_path / "x.parquet"
    outcome = acodm("proxy-train", "--dry-run", "--steps", 4000, "--out", out, *small)
    assert outcome.code == 0
    assert re.search(r"time: about .* for 4000 steps, by the first 4, of which nothing is kept", outcome.stderr)
    rows = {line.split()[0]: line.split() for line in outcome.stderr.splitlines() if line}
    for name in ("arithmetic", "code", "prose", "tables"):
        _, files, documents, tokens, validation, weight, epochs, *exhausted = rows[name]
        assert (files, documents) == ("1", "120")
        assert tokens[-1] == validation[-1] == "k"
        assert weight == "25.0%"
        # 4000 steps of 8 sequences of 32 tokens, a quarter of them of this domain
        expected = 4000 * 8 * 32 / 4 / (1000 * float(tokens[:-1]))
        assert float(epochs) == pytest.approx(expected, rel=0.02)
        assert int(exhausted[0].replace(",", "")) == pytest.approx(4000 / expected, rel=0.02)
    assert "token cache" in outcome.stderr
    outcome = acodm("apply", "--dry-run", "--schedule", proxy, "--model", "pythia-14m", "--out", out, *small)
    assert outcome.code == 0
    assert "schedule's weight" in outcome.stderr
    assert contents(tmp_path) == before


def test_weights_of_a_manifest_are_the_prior(texts: forms.Texts, small: list[object], tmp_path: Path) -> None:
    forms.write_manifest(texts, tmp_path / "m")
    path = tmp_path / "m" / "corpus.toml"
    weights = {"arithmetic": 1, "code": 2, "prose": 3, "tables": 4}
    text = path.read_text()
    for name, weight in weights.items():
        text = text.replace(f'[domains."{name}"]', f'[domains."{name}"]\nweight = {weight}\nupsampling = {weight}')
    path.write_text(text)
    for prior, expected in (("given", weights), ("uniform", dict.fromkeys(weights, 1))):
        out = tmp_path / f"{prior}.parquet"
        assert acodm("proxy-train", "--steps", 2, "--prior", prior, "--out", out, *options(path, small)).code == 0
        total = sum(expected.values())
        found = Schedule.read(out).info["prior"]
        assert found == pytest.approx({name: weight / total for name, weight in expected.items()})


def test_domains_that_were_renamed_are_mapped(
    texts: forms.Texts, small: list[object], proxy: Path, tmp_path: Path
) -> None:
    renamed = {"web" if name == "prose" else name: splits for name, splits in texts.items()}
    forms.write_parquet(renamed, tmp_path / "renamed")
    command = [
        "apply",
        "--schedule",
        proxy,
        "--model",
        "pythia-14m",
        "--steps",
        3,
        *options(tmp_path / "renamed", small),
    ]
    refused = acodm(*command, "--out", tmp_path / "no.parquet")
    assert refused.code == 3
    assert "only in the schedule: prose; only in the corpus: web; rename with --map prose=web" in refused.stderr
    for mode in ("policy", "replay", "online"):
        out = tmp_path / f"{mode}.parquet"
        outcome = acodm(*command, "--map", "prose=web", "--mode", mode, "--out", out)
        assert outcome.code == 0, outcome.stderr
        assert Schedule.read(out).domains == ["arithmetic", "code", "web", "tables"]
    wrong = acodm(*command, "--map", "prosa=web", "--out", tmp_path / "no.parquet")
    assert wrong.code == 2
    assert "--map prosa=web: the schedule has arithmetic, code, prose, tables" in wrong.stderr


def test_domains_that_were_split_merged_left_out_or_added_are_mapped(
    texts: forms.Texts, small: list[object], proxy: Path, tmp_path: Path
) -> None:
    corpus = {"prose_a": "prose", "prose_b": "prose", "numbers": "arithmetic", "new": "tables", "other": "code"}
    forms.write_parquet({name: texts[old] for name, old in corpus.items()}, tmp_path / "data")
    command = ["apply", "--schedule", proxy, "--model", "pythia-14m", "--steps", 3, *options(tmp_path / "data", small)]
    both = ["--map", "arithmetic=numbers", "--map", "tables=numbers", "--map", "prose=prose_a+prose_b", "--map", "=new"]
    refused = acodm(*command, *both, "--map", "=other", "--out", tmp_path / "no.parquet")
    assert refused.code == 3
    assert "only in the schedule: code; only in the corpus: none; leave out with --map code=" in refused.stderr
    out = tmp_path / "out.parquet"
    outcome = acodm(*command, *both, "--map", "=other", "--map", "code=", "--out", out)
    assert outcome.code == 0, outcome.stderr
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("map: ")]
    assert lines[:3] == [
        "map: arithmetic + tables -> numbers",
        "map: code -> left out; the others share its weight",
        "map: prose -> prose_a 0.5 + prose_b 0.5 (by tokens)",
    ]
    assert re.fullmatch(r"map: new: new, 0\.\d+ of the whole \(by tokens\)", lines[3])
    written = Schedule.read(out)
    assert written.domains == ["numbers", "prose_a", "prose_b", "new", "other"]
    assert written.info["map"]["domains"]["tables"] == {"numbers": 1.0}


def test_names_with_equals_signs_are_mapped(small: list[object], proxy: Path, tmp_path: Path, data: Path) -> None:
    for name, target in (("arithmetic", "a=b"), ("code", "code"), ("prose", "a=c"), ("tables", "tables")):
        shutil.copytree(data / name, tmp_path / "data" / target)
    command = ["apply", "--schedule", proxy, "--model", "pythia-14m", "--steps", 2, *options(tmp_path / "data", small)]
    outcome = acodm(*command, "--map", "arithmetic=a=b", "--map", "prose=a=c", "--out", tmp_path / "one.parquet")
    assert outcome.code == 0, outcome.stderr
    assert Schedule.read(tmp_path / "one.parquet").domains == ["a=b", "code", "a=c", "tables"]
    command[2] = tmp_path / "one.parquet"
    back = acodm(
        *command, "--map", "a=b=arithmetic", "--map", "a=c=prose", *small[:2], "--out", tmp_path / "two.parquet"
    )
    assert back.code == 0, back.stderr
    assert Schedule.read(tmp_path / "two.parquet").domains == ["arithmetic", "code", "prose", "tables"]


def test_a_forgotten_corpus_is_named(proxy: Path, tmp_path: Path) -> None:
    outcome = acodm("apply", "--schedule", proxy, "--model", "pythia-14m", "--out", tmp_path / "x.parquet")
    assert outcome.code == 3
    assert "--data is not given, and the schedule was learned on corpus with the domains arithmetic" in outcome.stderr


def test_max_epochs_caps_what_is_drawn_and_the_record_says_so(small: list[object], tmp_path: Path) -> None:
    out = tmp_path / "capped.parquet"
    command = ["proxy-train", "--model", "pythia-14m", "--out", out, *small, "--max-epochs", 0.1]
    refused = acodm(*command, "--steps", 1000)
    assert refused.code == 2
    assert "--max-epochs 0.1 leaves" in refused.stderr
    most = int(refused.stderr.split("at most --steps ")[1].split(",")[0])
    assert acodm(*command, "--steps", most).code == 0
    schedule = Schedule.read(out)
    sizes = schedule.info["corpus"]["sequences"]
    drawn_K = schedule.per_domain["samples"].sum(axis=0)
    assert (drawn_K <= [0.1 * sizes[name] for name in schedule.domains]).all()
    # Recorded are the executed weights: counts follow them.
    assert np.abs(drawn_K - 8 * schedule.weights_SK.sum(axis=0)).max() < 1 + np.log(4)

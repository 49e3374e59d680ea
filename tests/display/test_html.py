"""The page of a schedule: what is embedded in it, and that nothing of a stranger's becomes markup."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acodm_cli.display.facts import describe, distances
from acodm_cli.display.html import PageEntry, page
from acodm_cli.display.series import Series, series
from acodm_cli.display.style import PALETTE
from acodm_cli.schedule.columns import DOMAIN_COLUMNS, STEP_COLUMNS
from acodm_cli.schedule.compose import average, merge
from acodm_cli.schedule.measures import entropy
from acodm_cli.schedule.schedule import Schedule

HOSTILE = "</script><img src=x onerror=alert(1)>"
STEPS = 40


def make_schedule(seed: int = 0, domains: tuple[str, ...] = ("a", "b", "c"), **info: Any) -> Schedule:
    generator = np.random.default_rng(seed)
    shape = (STEPS, len(domains))
    per_domain: dict[str, Any] = {name: generator.random(shape).astype(dtype) for name, dtype in DOMAIN_COLUMNS.items()}
    per_domain["weight"] /= per_domain["weight"].sum(axis=1, keepdims=True)
    per_domain["samples"] = generator.integers(1, 9, shape).astype(np.int32)
    per_domain["loss"][3] = np.nan
    per_domain["validation_loss"][np.arange(STEPS) % 10 != 0] = np.nan
    per_step = {name: generator.random(STEPS).astype(np.float32) for name in STEP_COLUMNS}
    per_step["entropy"] = entropy(per_domain["weight"]).astype(np.float32)
    step_S = np.arange(1, STEPS + 1)
    return Schedule(
        list(domains), step_S, 1000 * step_S, per_domain, per_step, {"model": "pythia-14m", "seed": seed} | info
    )


def make_run(name: str, schedule: Schedule, deviation_SK: Any = None) -> PageEntry:
    plots: tuple[str, ...] = ("weights", "loss", "reward", "validation", "energy")
    recorded = plots if len(schedule) > 1 else plots[:1]
    curves = [series(schedule, what, 400, deviation_SK) for what in recorded]
    return PageEntry(name, schedule.run, describe(name, schedule), curves)


def embedded(text: str) -> dict[str, Any]:
    """What the page's script reads, by the rules of HTML: a script element ends at the first `</script`."""
    found = re.search(r'<script type="application/json" id="content">(.*?)</script', text, re.S)
    assert found
    return json.loads(found[1])


def facts_of(run: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {fact["label"]: fact for fact in run["facts"]}


def test_the_embedded_numbers_are_the_series():
    run = make_run("one", make_schedule())
    content = embedded(page("title", [run]))
    assert content["palette"] == list(PALETTE)
    for given, found in zip(run.series, content["runs"][0]["series"], strict=True):
        assert (found["what"], found["names"]) == (given.what, given.names)
        assert found["step"] == given.step_R.tolist()
        assert found["tokens"] == given.tokens_R.tolist()
        assert found["band"] is None
        np.testing.assert_allclose(np.array(found["values"], float).T, given.values_RN, rtol=1e-5)
    assert [domain["name"] for domain in content["runs"][0]["domains"]] == ["a", "b", "c"]


def test_what_is_not_finite_is_null():
    values_RN = np.array([[np.nan, 1.0], [np.inf, 2.0]])
    curves = Series("loss", ["a", "b"], np.array([1, 2]), np.array([0, 0]), values_RN)
    run = replace(make_run("one", make_schedule(seed=0, learning_rate=float("inf"))), series=[curves])
    run.facts["domains"][0]["epochs"] = float("nan")
    text = page("title", [run])
    content = embedded(text)["runs"][0]
    assert content["series"][0]["values"] == [[None, None], [1.0, 2.0]]
    assert content["domains"][0]["epochs"] is None
    assert not re.search(r"[:,\[](NaN|-?Infinity)[,\]}]", text)


def test_bands_of_merged_seeds():
    merged, deviation_SK = merge([make_schedule(seed) for seed in range(3)])
    run = make_run("merged", merged, deviation_SK)
    content = embedded(page("title", [run]))["runs"][0]
    assert run.series[0].band_RN is not None
    np.testing.assert_allclose(np.array(content["series"][0]["band"]).T, run.series[0].band_RN, rtol=1e-5)
    assert facts_of(content)["seed"]["text"] == "0, 1, 2"


def hostile_page() -> str:
    names = (HOSTILE, "<!--<script>", "a&b\u2028", "\u202egnp.exe", "\ud800", "__proto__", "{{title}}")
    info = {
        "model": HOSTILE,
        "title": HOSTILE,
        "caveat": HOSTILE * 1000,
        "source": "javascript:alert(1)",
        "corpus": [HOSTILE],
        "mixer": {"name": {HOSTILE: 1}},
        "tokenizer": {"name": None, "vocab_size": float("nan")},
        "parameters": 10**400,
        "composed": [HOSTILE, 3, None],
    }
    hostile, plain = make_schedule(0, names, **info), make_schedule()
    other = replace(make_run("b", plain), distance=distances(hostile, plain)["l1"])
    return page(HOSTILE + "{{content}}\udcff", [make_run(HOSTILE, hostile), other])


def test_hostile_text_stays_text():
    plain = page("title", [make_run("one", make_schedule())])
    text = hostile_page()
    text.encode()
    assert text.count("<script") == plain.count("<script")
    assert text.count("</script") == plain.count("</script")
    assert "<img" not in text
    assert "<title>&lt;/script&gt;&lt;img" in text
    assert "\u2028" not in text
    run = embedded(text)["runs"][0]
    assert run["name"] == HOSTILE
    assert run["domains"][0]["name"] == run["series"][0]["names"][0] == HOSTILE
    assert run["domains"][3]["name"] == "\ufffdgnp.exe"
    facts = facts_of(run)
    assert facts["model"]["text"] == HOSTILE
    assert len(facts["caveat"]["text"]) <= 400
    assert facts["source"] == {"label": "source", "text": "javascript:alert(1)"}
    assert "mixer" not in facts


@pytest.mark.parametrize("source", ["https://example.org/a b.json", "http://example.org"])
def test_sources_on_the_web_are_links(source: str):
    content = embedded(page("title", [make_run("one", make_schedule(0, source=source))]))
    assert facts_of(content["runs"][0])["source"]["href"] == source.replace(" ", "%20")


@pytest.mark.parametrize(
    "source", ["javascript:alert(1)//https://a", "file:///etc/passwd", "//example.org", "https://", " https://a"]
)
def test_other_sources_are_text(source: str):
    content = embedded(page("title", [make_run("one", make_schedule(0, source=source))]))
    assert "href" not in facts_of(content["runs"][0])["source"]


def test_nothing_is_loaded():
    text = page("title", [make_run("one", make_schedule())])
    assert re.findall(r"https?://[^\s\"']*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<(link|img|iframe|script src)|@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert "default-src 'none'" in text


def test_several_runs():
    runs = [make_run(str(seed), make_schedule(seed)) for seed in range(3)]
    assert [run["name"] for run in embedded(page("title", runs))["runs"]] == ["0", "1", "2"]


def test_a_schedule_of_one_row():
    content = embedded(page("title", [make_run("static", average(make_schedule()))]))["runs"][0]
    assert content["steps"] == 1
    assert [len(curve) for curve in content["series"][0]["values"]] == [1, 1, 1]
    facts = facts_of(content)
    assert facts["steps"]["text"] == "static mixture"
    assert re.fullmatch(r"\d\.\d of 3", facts["effective domains"]["text"])


def test_size_with_as_many_domains_as_the_pile():
    schedule = make_schedule(0, tuple(f"domain {index}" for index in range(22)))
    values_RN = np.random.default_rng(0).random((400, 22))
    curves = [
        Series(what, schedule.domains, np.arange(400), np.arange(400) * 1000, values_RN, values_RN)
        for what in ("weights", "loss", "reward", "validation")
    ]
    text = page("title", [replace(make_run("one", schedule), series=curves)])
    assert len(text.encode()) < 1_000_000


@pytest.mark.slow
def test_a_browser_draws_it(tmp_path: Path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser")
    file = tmp_path / "page.html"
    file.write_text(hostile_page(), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [browser, *options, "--enable-logging=stderr", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    drawn, _, _ = done.stdout.partition('id="content"')
    drawn += done.stdout[done.stdout.rindex("</script>") :]
    assert "<img" not in drawn
    # Two runs of five kinds, and their distance; a table per run, and one that compares them.
    assert drawn.count('class="chart"') == 11
    assert drawn.count("<tbody>") == 3
    assert "L1 distance" in drawn

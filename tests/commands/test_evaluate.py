"""The evaluation of the saved model by lm-evaluation-harness: what is refused before training, and what a run gets in the end."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from acodm_cli.runs.evaluation import summary
from acodm_cli.runs.folder import results_of
from acodm_cli.schedule.schedule import Schedule
from tests.command_line import acodm, contents, start_acodm
from tests.schedule.test_schedule import make_schedule


def without_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were not installed, where it is."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The harness, which keeps to this machine and to a folder of its own."""
    pytest.importorskip("lm_eval")
    for name, value in (("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1"), ("HF_HOME", str(tmp_path / "hf"))):
        monkeypatch.setenv(name, value)


# Without the harness


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--evaluate", "mmlu"], "--evaluate takes the model that is saved; say where with --save-model"),
        (["--evaluate", "mmlu", "--save-model", "m"], "needs the package lm_eval; pip install 'acodm[eval]'"),
        (["--evaluate-limit", 5, "--save-model", "m"], "--evaluate-limit says how to --evaluate; give the tasks"),
        (["--evaluate", " ,", "--save-model", "m"], "--evaluate names no task; give some"),
        (["--evaluate-unsafe"], "--evaluate-unsafe says how to --evaluate"),
        (["--evaluate", "mmlu", "--evaluate-limit", 0], "--evaluate-limit 0; give a whole number of at least 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(
    options: list[object], said: str, small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_harness(monkeypatch)
    monkeypatch.chdir(tmp_path)
    outcome = acodm("proxy-train", "--steps", 2, "--out", "a.parquet", *options, *small)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert said in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_none_means_no_evaluation(small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_harness(monkeypatch)
    outcome = acodm("proxy-train", "--steps", 2, "--out", tmp_path / "a.parquet", "--evaluate", "none", *small)
    assert outcome.code == 0, outcome.stderr
    assert "evaluating" not in outcome.stderr


def test_results_never_lie_beside_another_model(small: list[object], tmp_path: Path) -> None:
    model = tmp_path / "kept"
    results_of(model).write_text("{}")
    run = ["proxy-train", "--steps", 2, "--out", tmp_path / "a.parquet", "--save-model", model, *small]
    refused = acodm(*run)
    assert refused.code == 2
    assert "kept.eval.json exists; use --force to replace it" in refused.stderr
    assert acodm(*run, "--force").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "kept"]


RESULTS: dict[str, Any] = {
    "results": {
        "mmlu": {"alias": "mmlu", "sample_count": {"acc,none": 2}, "acc,none": 0.25, "acc_stderr,none": 0.01},
        "mmlu_stem": {"acc,none": 0.5, "acc_stderr,none": 0.1},
        "loose": {"alias": "loose"},
        "gsm8k": {
            "sample_len": 2,
            "exact_match,strict-match": 0.0,
            "exact_match_stderr,strict-match": "N/A",
            "exact_match,flexible-extract": 1,
            "odd,none": float("nan"),
        },
        "piqa": {"acc,none": 0.6, "acc_stderr,none": float("nan")},
    },
    "group_subtasks": {"mmlu": ["mmlu_stem"], "loose": ["gsm8k", "piqa"]},
    "n-shot": {"mmlu_stem": 0, "gsm8k": 5},
    "config": {"limit": 2.0, "model_args": {"pretrained": "/home/someone/m"}},
    "lm_eval_version": "0.4.13",
}


def test_a_group_with_a_score_stands_for_its_tasks() -> None:
    found = summary(RESULTS)
    assert found["results"] == {
        "mmlu": {"acc": {"value": 0.25, "stderr": 0.01}},
        "gsm8k": {
            "exact_match,strict-match": {"value": 0.0, "stderr": None},
            "exact_match,flexible-extract": {"value": 1, "stderr": None},
        },
        "piqa": {"acc": {"value": 0.6, "stderr": None}},
    }
    assert (found["harness"], found["limit"], found["n_shot"]) == ("lm_eval 0.4.13", 2, {"gsm8k": 5})
    assert "someone" not in json.dumps(found, allow_nan=False)


def test_inspect_shows_the_scores(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schedule = make_schedule(20)
    replace(schedule, info=schedule.info | {"evaluation": summary(RESULTS)}).write(path)
    shown = acodm("inspect", path).stdout
    assert "exact_match,strict-match 0.0000  mmlu acc 0.2500 ± 0.0100  piqa acc 0.6000  (lm_eval 0.4.13, " in shown
    assert "at most 2 samples of each task)" in shown
    facts = json.loads(acodm("inspect", path, "--json").stdout)["evaluation"]
    assert facts["scores"][2] == {"task": "mmlu", "metric": "acc", "value": 0.25, "stderr": 0.01, "n_shot": None}
    assert acodm("inspect", path, "--html", tmp_path / "a.html").code == 0
    assert "mmlu acc 0.2500" in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    "evaluation",
    [
        7,
        {"results": []},
        {"results": {"t": {"acc": 0.5, "f1": {"value": "1"}, "em": {"value": 1e300}}}},
        {
            "results": {"\x1b[31mt": {"acc\n": {"value": 0.5, "stderr": [], "more": 1}}},
            "n_shot": 3,
            "limit": "x",
            "harness": {},
        },
    ],
)
def test_scores_of_strangers(evaluation: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schedule = make_schedule(20)
    replace(schedule, info=schedule.info | {"evaluation": evaluation}).write(path)
    outcome = acodm("inspect", path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "\x1b" not in outcome.stdout
    assert ("evaluated ?[31mt acc? 0.5000" in outcome.stdout) == ("harness" in str(evaluation))


# With the harness


def write_task(folder: Path, name: str, data: Path, **more: Any) -> None:
    """A definition of a task of multiple choice; JSON is YAML."""
    folder.mkdir(exist_ok=True)
    definition = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{name}.yaml").write_text(json.dumps(definition | more))


def write_questions(path: Path, count: int) -> list[dict[str, Any]]:
    """Sums with four answers each, in the words of the domains that the model was trained on."""
    generator = random.Random(0)
    questions = []
    for _ in range(count):
        a, b = generator.randrange(50), generator.randrange(50)
        choices = [str(a + b), str(a + b + generator.randint(1, 9)), "return", "| 7 |"]
        answer = generator.choices(range(4), weights=[1, 1, 3, 3])[0]
        questions.append({"question": f"{a} + {b} =", "choices": choices, "answer": answer})
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    return questions


def accuracy(model_folder: Path, questions: list[dict[str, Any]]) -> float:
    """The share of questions whose right answer is the likeliest, with transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    right = 0
    for question in questions:
        likelihoods = []
        for choice in question["choices"]:
            before = len(tokenizer(question["question"])["input_ids"])
            tokens = torch.tensor(tokenizer(f"{question['question']} {choice}")["input_ids"])
            with torch.no_grad():
                logs = model(tokens[None, :-1]).logits[0].log_softmax(dim=-1)
            likelihoods.append(logs[before - 1 :].gather(1, tokens[before:, None]).sum().item())
        right += likelihoods.index(max(likelihoods)) == question["answer"]
    return right / len(questions)


@pytest.mark.slow
def test_the_accuracy_is_the_one_computed_by_hand(harness: None, small: list[object], tmp_path: Path) -> None:
    """Of a task and of a group, on a part of their samples. Without an evaluation, the same run leaves the same schedule."""
    tasks, out, model = tmp_path / "tasks", tmp_path / "a.parquet", tmp_path / "a.model"
    questions = write_questions(tmp_path / "questions.jsonl", 40)
    for name in ("sums", "more"):
        write_task(tasks, name, tmp_path / "questions.jsonl")
    group = {"group": "both", "task": ["more"], "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    (tasks / "both.yaml").write_text(json.dumps(group))
    run = ["apply", "--model", "pythia-14m", "--steps", 20, "--lr", 0.003, "--out", out, *small]
    outcome = acodm(*run, "--evaluate", "sums,both", "--evaluate-tasks", tasks, "--evaluate-limit", 30)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.split() == [str(out)]
    expected = accuracy(model, questions[:30])
    assert 0 < expected < 1

    schedule = Schedule.read(out)
    scores = {name: metrics["acc"] for name, metrics in schedule.info["evaluation"]["results"].items()}
    assert {name: score["value"] for name, score in scores.items()} == {"sums": expected, "both": expected}
    assert scores["sums"]["stderr"] == pytest.approx((expected * (1 - expected) / 29) ** 0.5)
    assert (schedule.info["evaluation"]["limit"], schedule.info["evaluation"]["n_shot"]["sums"]) == (30, 0)
    assert str(tmp_path) not in json.dumps(schedule.info)
    assert json.loads(results_of(model).read_text())["results"]["more"]["acc,none"] == expected
    rows = re.findall(r"^(\w+) +acc +([\d.]+) +([\d.]+)$", outcome.stderr, re.MULTILINE)
    assert rows == [(name, f"{expected:.4f}", f"{scores[name]['stderr']:.4f}") for name in sorted(scores)]
    assert "%|" not in outcome.stderr
    assert {path.name for path in tmp_path.iterdir()} - {"hf", "tasks", "questions.jsonl"} == {
        "a.parquet", "a.model", "a.model.eval.json",
    }  # fmt: skip

    again = acodm(*run, "--force")
    assert again.code == 0, again.stderr
    assert not results_of(model).exists()
    plain = Schedule.read(out)
    assert replace(schedule, info=plain.info).to_arrow().equals(plain.to_arrow(), check_metadata=True)


@pytest.mark.slow
def test_a_failure_costs_neither_the_model_nor_the_exit_code(
    harness: None, small: list[object], tmp_path: Path
) -> None:
    out, model = tmp_path / "a.parquet", tmp_path / "kept"
    write_task(tmp_path / "tasks", "broken", tmp_path / "no such.jsonl")
    options = ["--save-model", model, "--evaluate", "broken", "--evaluate-tasks", tmp_path / "tasks"]
    outcome = acodm("proxy-train", "--steps", 2, "--out", out, *options, *small)
    assert (outcome.code, outcome.stdout) == (0, f"{out}\n")
    (warning,) = [line for line in outcome.stderr.splitlines() if line.startswith("warning: the evaluation failed")]
    assert "no such.jsonl" in warning
    assert f"repeat it with: lm_eval --model hf --model_args pretrained={model} --tasks broken" in warning
    assert "evaluation" not in Schedule.read(out).info
    assert transformers.AutoModelForCausalLM.from_pretrained(model) is not None
    assert {path.name for path in tmp_path.iterdir()} - {"hf"} == {"a.parquet", "kept", "tasks"}


@pytest.mark.slow
def test_tasks_are_looked_up_before_training(harness: None, small: list[object], tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    write_task(tasks, "runs_code", tmp_path / "none.jsonl", unsafe_code=True, tag=["some"])
    (tasks / "outer.yaml").write_text(
        json.dumps({"group": "outer", "task": [{"group": "inner", "task": ["runs_code"]}]})
    )
    before = contents(tmp_path)
    for names, said in (
        ("mmluu", "--evaluate mmluu: no such task; did you mean mmlu?"),
        (
            "hellaswag,outer",
            "--evaluate outer would execute the code that the model writes on this machine; use a container",
        ),
        ("some", "--evaluate some would execute"),
        ("runs_*", "allow it with --evaluate-unsafe"),
        ("humaneval", "--evaluate humaneval would execute"),
    ):
        options = ["--save-model", tmp_path / "m", "--evaluate", names, "--evaluate-tasks", tasks]
        outcome = acodm("proxy-train", "--steps", 2, "--out", tmp_path / "a.parquet", *options, *small)
        assert outcome.code == 2
        assert said in outcome.stderr
        assert outcome.stderr.count("\n") == 1
        assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [False, True])
def test_leave_to_execute_code_is_given_only_where_the_user_gives_it(
    allowed: bool, harness: None, small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task scores 1 where metrics are allowed to execute code. Leave from elsewhere does not count."""
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    write_questions(tmp_path / "questions.jsonl", 3)
    unmarked = {"process_results": "!function own.leave", "metric_list": [{"metric": "acc", "aggregation": "mean"}]}
    write_task(
        tmp_path / "tasks",
        "leave",
        tmp_path / "questions.jsonl",
        **unmarked,
        **({"unsafe_code": True} if allowed else {}),
    )
    definition = tmp_path / "tasks" / "leave.yaml"
    definition.write_text(definition.read_text().replace('"!function own.leave"', "!function own.leave"))
    (tmp_path / "tasks" / "own.py").write_text(
        "import os\ndef leave(doc, results):\n    return {'acc': float(os.environ.get('HF_ALLOW_CODE_EVAL') == '1')}\n"
    )
    options = ["--save-model", tmp_path / "m", "--evaluate", "leave", "--evaluate-tasks", tmp_path / "tasks"]
    options += ["--evaluate-unsafe"] * allowed
    outcome = acodm("proxy-train", "--steps", 2, "--out", tmp_path / "a.parquet", *options, *small)
    assert outcome.code == 0, outcome.stderr
    assert Schedule.read(tmp_path / "a.parquet").info["evaluation"]["results"]["leave"]["acc"]["value"] == float(
        allowed
    )
    assert ("HF_ALLOW_CODE_EVAL=1 lm_eval" in outcome.stderr) == allowed


@pytest.mark.slow
def test_a_signal_ends_the_evaluation_and_nothing_else(harness: None, small: list[object], tmp_path: Path) -> None:
    """With two ranks, of which one evaluates."""
    out, tasks = tmp_path / "a.parquet", tmp_path / "tasks"
    write_questions(tmp_path / "questions.jsonl", 3)
    write_task(tasks, "sleeps", tmp_path / "questions.jsonl", process_docs="!function own.sleep")
    definition = tasks / "sleeps.yaml"
    definition.write_text(definition.read_text().replace('"!function own.sleep"', "!function own.sleep"))
    (tasks / "own.py").write_text(
        "import os, pathlib, time\n"
        "def sleep(docs):\n"
        "    pathlib.Path(__file__).with_name('pids').open('a').write(f'{os.getpid()}\\n')\n"
        "    time.sleep(600)\n"
    )
    options = ["--nproc", 2, "--save-model", tmp_path / "m", "--evaluate", "sleeps", "--evaluate-tasks", tasks]
    process = start_acodm("proxy-train", "--steps", 2, "--out", out, *options, *small)
    while not (tasks / "pids").exists() or not (tasks / "pids").read_text().endswith("\n"):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "the evaluation was stopped; the run is complete without it; repeat it with: lm_eval" in said
    assert len(Schedule.read(out)) == 2
    (pid,) = (tasks / "pids").read_text().split()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert {path.name for path in tmp_path.iterdir()} >= {"a.parquet", "m"}
    assert not out.with_suffix(".run").exists()

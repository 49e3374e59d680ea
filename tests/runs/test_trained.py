"""Runs that go on with trained weights: where they begin, what they refuse, and what they must not forget."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from acodm_cli import RunSettings, Schedule, build_run
from acodm_cli.corpus.corpus import Corpus
from acodm_cli.engine.evaluate import sequence_losses
from acodm_cli.engine.loss import IGNORED
from acodm_cli.engine.models import PRESETS, default_lr, model_config
from acodm_cli.engine.trained import load_model
from acodm_cli.errors import UsageError
from acodm_cli.mixing.mixer import Array, Observation
from acodm_cli.runs.run import Run
from tests.command_line import acodm
from tests.commands.test_bad_input import refuses
from tests.commands.test_interruption import stop_at_step
from tests.conftest import write_tokenizer
from tests.runs.test_build import SMALL
from tests.runs.test_targeted import finished, write_target

CONTINUED = replace(SMALL, steps=2)


@pytest.fixture(scope="module")
def saved(small: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that acodm has trained for a few steps, and saved."""
    folder = tmp_path_factory.mktemp("saved")
    outcome = acodm(
        *("proxy-train", "--mixer", "uniform", "--model", "pythia-14m", "--steps", 8, *small),
        *("--out", folder / "a.parquet", "--save-model", folder / "model"),
    )
    assert outcome.code == 0, outcome.stderr
    return folder / "model"


@pytest.fixture(scope="module")
def foreign(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another family, which transformers itself has made and saved, with a tokenizer beside it."""
    folder = tmp_path_factory.mktemp("foreign") / "model"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=600, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copy(tokenizer_file, folder / "tokenizer.json")
    return folder


def told_by_transformers(folder: Path, run: Run) -> list[float]:
    """The loss of a model on the validation text of a run, computed by the library alone, a sequence at a time."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses = []
    for text in run.trainer.texts:
        total = 0.0
        for tokens_U, counted_T in zip(text.tokens_NU, text.counted_NT, strict=True):
            tokens_1U = torch.from_numpy(tokens_U).long()[None]
            labels_1U = tokens_1U.clone()
            labels_1U[0, 1:][~torch.from_numpy(counted_T)] = IGNORED
            with torch.no_grad():
                total += float(model(input_ids=tokens_1U, labels=labels_1U).loss) * counted_T.sum()
        losses.append(total / text.counted_NT.sum())
    return losses


@pytest.mark.parametrize("which", ["saved", "foreign"])
def test_the_first_losses_are_those_of_the_other_program(
    which: str, corpus: Corpus, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    run = finished(replace(CONTINUED, init_from=str(folder), mixer="uniform"), corpus)
    assert run.trainer.before is not None
    np.testing.assert_allclose(run.trainer.before.losses_J, told_by_transformers(folder, run), atol=1e-4)
    recorded = run.schedule().run
    assert recorded.trained
    assert recorded.losses_before == dict(zip(corpus.names, run.trainer.before.losses_J, strict=True))


def test_the_agent_sees_what_the_model_knows(saved: Path, corpus: Corpus) -> None:
    run = build_run(replace(CONTINUED, init_from=str(saved)), corpus=corpus, warn=lambda _: None)
    seen: list[Observation] = []
    weights = run.mixer.weights

    def noting(observation: Observation) -> Array:
        seen.append(observation)
        return weights(observation)

    run.mixer.weights = noting  # type: ignore[method-assign]
    for _ in run.steps():
        pass
    assert run.trainer.before is not None
    np.testing.assert_array_equal(seen[0].losses_K, run.trainer.before.losses_J)
    assert (seen[0].losses_K < 0.99 * math.log(512)).all()


def test_every_episode_begins_with_the_same_weights(saved: Path, corpus: Corpus) -> None:
    settings = replace(CONTINUED, init_from=str(saved), episodes=2, mixer="ac-odm")
    run = build_run(settings, corpus=corpus, warn=lambda _: None)
    first = {name: weight.clone() for name, weight in run.trainer.model_state().items()}
    for _ in run.trainer.steps():
        pass
    assert any(not torch.equal(weight, first[name]) for name, weight in run.trainer.model_state().items())
    run.trainer.restart()
    assert all(torch.equal(weight, first[name]) for name, weight in run.trainer.model_state().items())


def test_the_learning_rate_is_lower() -> None:
    config = model_config("pythia-160m", 512, 64)
    assert default_lr(config, fresh=True) == PRESETS["pythia-160m"].lr == 6e-4
    assert default_lr(config, fresh=False) == pytest.approx(1.8e-4)


def test_the_command_tells(saved: Path, small: list[object], tmp_path: Path) -> None:
    """Its own tokenizer is used, the title says how it goes on, and the summary what it was."""
    without = [*small[:2], *small[4:]]  # no --tokenizer
    start = ["proxy-train", "--init-from", saved, "--steps", 2, "--keep", "code"]
    outcome = acodm(*start, "--out", tmp_path / "a.parquet", *without)
    assert outcome.code == 0, outcome.stderr
    assert "goes on with trained weights; learning rate: warmed up again, to 0.0003" in outcome.stderr
    assert "before training: " in outcome.stderr
    assert re.search(
        r"kept +loss before +loss now +rise +budget\ncode +\d\.\d{4} +\d\.\d{4} +[+-]\d\.\d% +2\.0%", outcome.stderr
    )
    inspected = acodm("inspect", tmp_path / "a.parquet")
    assert re.search(r"kept +\d of 1 within 0\.02 of their loss before training; worst: code", inspected.stdout)
    schedule = Schedule.read(tmp_path / "a.parquet")
    assert schedule.run.model == "model"
    fresh = acodm("apply", "--schedule", tmp_path / "a.parquet", "--model", "pythia-14m", "--steps", 2, "--out", tmp_path / "b.parquet", *small)  # fmt: skip
    assert "warning: the policy was learned with trained weights, and this run begins with fresh ones" in fresh.stderr


@pytest.mark.slow
def test_resumes_exactly(saved: Path, small: list[object], tmp_path: Path) -> None:
    """Stopped, and gone on with where the weights lie in another place."""
    run = ["proxy-train", "--init-from", saved, "--keep", "code,prose", "--steps", 12, "--checkpoint-every", 5, *small]
    whole = acodm(*run, "--out", tmp_path / "whole.parquet")
    assert whole.code == 0, whole.stderr
    stop_at_step(7, signal.SIGTERM, *run, "--out", tmp_path / "parts.parquet")
    moved = shutil.copytree(saved, tmp_path / "elsewhere" / "model")
    again = acodm("proxy-train", "--out", tmp_path / "parts.parquet", "--resume", "--init-from", moved)
    assert again.code == 0, again.stderr
    assert (tmp_path / "parts.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_refuses_what_are_no_weights_of_a_causal_model(
    saved: Path, small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "a.parquet"
    pickled, empty, bert, damaged, lacking = (
        tmp_path / name for name in ("pickled", "empty", "bert", "damaged", "lacking")
    )
    for folder in (pickled, empty, damaged, lacking):
        folder.mkdir()
        shutil.copy(saved / "config.json", folder)
    torch.save({}, pickled / "pytorch_model.bin")
    (damaged / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)).save_pretrained(bert)  # fmt: skip
    config = json.loads((saved / "config.json").read_text())
    (lacking / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    shutil.copy(saved / "model.safetensors", lacking)
    for source, said in [
        (pickled, "has pickled weights only, which can run code when they are read"),
        (empty, "has no weights (model.safetensors)"),
        (tmp_path / "nowhere", "is no folder"),
        ("pythia-160m", "did you mean EleutherAI/pythia-160m?"),
        (bert, "sees the tokens that it is to predict"),
        (damaged, "cannot load the model of"),
        (lacking, "lack gpt_neox.layers.6"),
    ]:
        assert said in refuses(2, "proxy-train", "--init-from", source, "--out", out, *small)
    line = refuses(2, "proxy-train", "--init-from", saved, "--model", "pythia-31m", "--out", out, *small)
    assert "brings its own configuration; leave --model out" in line
    assert "--seq-len 64 is longer than what model was made for; give at most 32" in refuses(
        2, "proxy-train", "--init-from", saved, "--out", out, *small, "--seq-len", 64
    )
    assert not out.with_suffix(".run").exists()


def test_a_model_whose_weights_are_not_used_says_so(saved: Path, corpus: Corpus) -> None:
    said: list[str] = []
    build_run(replace(SMALL, model=str(saved)), corpus=corpus, warn=said.append)
    assert any(f"the weights in {saved} are not used" in line and f"give --init-from {saved}" in line for line in said)


def test_another_tokenizer(saved: Path, small: list[object], tmp_path: Path) -> None:
    """It is refused, unless the user asks for new rows; these are the seed's, and the old ones stay."""
    larger = write_tokenizer(tmp_path / "larger.json", 700)
    corpus, out = [*small[:2], "--tokenizer", larger, *small[4:]], tmp_path / "a.parquet"
    line = refuses(2, "proxy-train", "--init-from", saved, "--out", out, *corpus)
    assert "tokenizer larger.json is not that of --init-from" in line
    (without := shutil.copytree(saved, tmp_path / "without") / "tokenizer.json").unlink()
    line = refuses(2, "proxy-train", "--init-from", without.parent, "--out", out, *corpus)
    assert "has 512 embeddings, and tokenizer larger.json 700 tokens" in line
    line = refuses(2, "proxy-train", "--init-from", without.parent, "--out", out, *small[:2], *small[4:])
    assert "has no tokenizer.json; give its tokenizer with --tokenizer" in line
    settings = RunSettings(
        data=str(small[1]), tokenizer=str(larger), cache_dir=str(small[5]), seq_len=32, batch=8, device="cpu",
        init_from=str(saved), resize_embeddings=True,
    )  # fmt: skip
    grown, again = (build_run(settings, warn=lambda _: None).trainer.model_state() for _ in range(2))
    before = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).state_dict()
    rows_VD = grown["gpt_neox.embed_in.weight"]
    assert rows_VD.shape[0] == 768
    assert torch.equal(rows_VD[:512], before["gpt_neox.embed_in.weight"])
    assert all(torch.equal(grown[name], again[name]) for name in grown)


# What must not be forgotten


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"keep": ("code",)}, "--keep is for trained weights"),
        ({"keep_budget": 0.1}, "--keep is for trained weights"),
        ({"init_from": "saved", "keep": ("cod",)}, "--keep cod is none of arithmetic, code, prose, tables"),
        ({"init_from": "saved", "keep": ("code,prose,tables", "arithmetic")}, "nothing guides the mixture"),
        ({"init_from": "saved", "keep_budget": 0.1}, "--keep-budget is for what --keep names"),
        ({"init_from": "saved", "keep": ("code",), "episodes": 2}, "--keep is for one episode"),
    ],
)
def test_refuses_to_keep(changes: dict[str, Any], said: str, saved: Path, corpus: Corpus) -> None:
    if "init_from" in changes:
        changes = changes | {"init_from": str(saved)}
    with pytest.raises(UsageError, match=said):
        build_run(replace(CONTINUED, **changes), corpus=corpus, warn=lambda _: None)


def test_what_is_kept_is_priced_and_reported(saved: Path, corpus: Corpus, tmp_path: Path) -> None:
    """Two domains and a target are kept: they are no part of what the run is for, and the record tells of all."""
    target = str(write_target(tmp_path / "sums.jsonl", "arithmetic"))
    settings = replace(
        CONTINUED,
        steps=4,
        init_from=str(saved),
        target=(target,),
        keep=("sums", "code,prose"),
        guide_every=1,
        keep_budget=0.05,
    )
    run = finished(settings, corpus)
    assert run.objective.targets == ()
    assert run.objective.weights_J == (1.0, 0.0, 0.0, 1.0), "the mean over the domains that are not kept"
    assert run.trainer.guide is not None
    assert [text.name for text in run.trainer.guide.texts] == [
        *("arithmetic", "tables"),
        *("code", "prose", "sums"),
    ]
    assert run.prior_K.tolist() == pytest.approx([0.375, 0.125, 0.125, 0.375])
    schedule = run.schedule()
    assert schedule.run.kept == ("code", "prose", "sums")
    assert schedule.run.keep_budget == 0.05
    for name in ("code", "prose", "sums"):
        assert np.isfinite(schedule.per_step[f"keep.{name}.price"]).all()
        assert schedule.per_step[f"keep.{name}.rise"][0] == pytest.approx(0.0, abs=1e-6), "before the first step"
    measured_J = schedule.per_domain["validation_loss"][-1]
    assert schedule.per_step["objective"][-1] == pytest.approx(np.delete(measured_J, [1, 2]).mean(), rel=1e-6)


def test_mixers_that_do_not_learn_only_measure_what_is_kept(saved: Path, corpus: Corpus) -> None:
    run = finished(replace(CONTINUED, init_from=str(saved), mixer="natural", keep=("code",)), corpus)
    assert run.trainer.guide is None
    assert run.schedule().run.kept == ("code",)


def test_the_losses_of_sequences_make_up_that_of_the_text(saved: Path, corpus: Corpus) -> None:
    run = build_run(replace(CONTINUED, init_from=str(saved), mixer="uniform"), corpus=corpus, warn=lambda _: None)
    trainer, texts = run.trainer, run.trainer.texts
    losses = sequence_losses(trainer.loss, texts, 3, trainer.compute, trainer.ranks)
    np.testing.assert_allclose([losses_N.mean() for losses_N in losses], trainer.validate().losses_J, rtol=1e-6)


def test_no_index_leads_to_pickled_weights(saved: Path, corpus: Corpus, tmp_path: Path) -> None:
    """transformers would read what an index names, also a pickle in another folder."""
    weights = transformers.AutoModelForCausalLM.from_pretrained(saved).state_dict()
    for place, named in (("a", "evil.bin"), ("b", "../out.bin")):
        folder = tmp_path / place
        folder.mkdir()
        shutil.copy(saved / "config.json", folder)
        torch.save(weights, folder / named)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, named)}))  # fmt: skip
        with pytest.raises(UsageError, match="which is no safetensors file of this folder"):
            build_run(replace(CONTINUED, init_from=str(folder)), corpus=corpus, warn=lambda _: None)


def test_weights_come_without_the_code_that_a_configuration_names(saved: Path, tmp_path: Path) -> None:
    """transformers would fetch such a kernel from the hub and run it."""
    folder = shutil.copytree(saved, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {
        "_attn_implementation": "kernels-community/flash-attn3"
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(str(folder), torch.device("cpu"))
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def test_what_is_saved_can_be_gone_on_with(corpus: Corpus, tokenizer_file: Path, tmp_path: Path) -> None:
    """Also a model that has a row for every position, and was trained with dropout, which is not taken for forgetting."""
    source, again = tmp_path / "gpt2", tmp_path / "again"
    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=512, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    ).save_pretrained(source)
    shutil.copy(tokenizer_file, source)
    settings = replace(
        CONTINUED, init_from=str(source), mixer="ac-odm", keep=("code",), guide_every=1, lr=1e-9, keep_budget=0.02
    )
    run = finished(settings, corpus)
    assert run.schedule().per_step["keep.code.rise"][-1] == pytest.approx(0.0, abs=1e-5)
    run.save_model(again)
    assert transformers.AutoConfig.from_pretrained(again).n_positions == 64
    build_run(replace(settings, init_from=str(again)), corpus=corpus, warn=lambda _: None)


def test_the_end_of_documents_is_trained_where_it_is_padding_too(corpus: Corpus, tmp_path: Path) -> None:
    first = finished(replace(CONTINUED, model="llama-tiny", mixer="uniform"), corpus)
    first.save_model(tmp_path / "model")
    settings = replace(CONTINUED, init_from=str(tmp_path / "model"), mixer="uniform", lr=1e-3)
    run = build_run(settings, corpus=corpus, warn=lambda _: None)
    assert run.trainer.model.get_input_embeddings().padding_idx is None  # type: ignore[operator]


def test_the_weights_that_a_run_begins_with_are_not_replaced(saved: Path, corpus: Corpus) -> None:
    for place in (saved, saved / "below", saved.parent):
        with pytest.raises(UsageError, match="would replace --init-from"):
            build_run(replace(CONTINUED, init_from=str(saved), save_model=str(place)), corpus=corpus)


@pytest.mark.parametrize("source", ["~nosuchuser/x", "a" * 300])
def test_names_that_no_folder_can_have(source: str, corpus: Corpus) -> None:
    with pytest.raises(UsageError, match="--init-from"):
        build_run(replace(CONTINUED, init_from=source), corpus=corpus)


def test_mixers_that_do_not_heed_what_is_kept_say_so(saved: Path, corpus: Corpus) -> None:
    said: list[str] = []
    build_run(
        replace(CONTINUED, init_from=str(saved), mixer="natural", keep=("code",)), corpus=corpus, warn=said.append
    )
    assert any("is only measured: mixer natural does not heed it" in line for line in said)

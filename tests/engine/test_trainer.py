from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from acodm_cli.alignment.probe import select_layers
from acodm_cli.alignment.sketch import SketchProbe
from acodm_cli.corpus.corpus import Corpus
from acodm_cli.engine.estimate import flops_per_token
from acodm_cli.engine.models import build_model, model_config
from acodm_cli.engine.trainer import Trainer
from acodm_cli.errors import AcodmError
from acodm_cli.mixing.acodm.learner import AcOdmLearner
from acodm_cli.mixing.acodm.policy import load_policy
from acodm_cli.mixing.acodm.settings import DEFAULT
from acodm_cli.mixing.baselines.replay import ReplayMixer
from acodm_cli.mixing.baselines.static import StaticMixer, uniform_weights
from acodm_cli.mixing.mixer import Array, Mixer, Observation
from acodm_cli.runs.build import build_run
from acodm_cli.runs.settings import RunSettings
from acodm_cli.schedule.timeline import Timeline

SEQ_LEN = 32


def make_trainer(
    corpus: Corpus,
    mixer: Mixer,
    steps: int = 6,
    batch: int = 8,
    micro_batch: int = 8,
    model: str = "pythia-14m",
    compiled: bool = False,
    sketched: int | None = None,
) -> Trainer:
    """sketched: the least number of tokens that the sketch looks at in a step; None for exact gradients, of all tokens."""
    settings = RunSettings(
        model=model,
        steps=steps,
        batch=batch,
        micro_batch=micro_batch,
        seq_len=SEQ_LEN,
        lr=1e-3,
        lr_warmup=0.1,
        validate_every=3,
        validation_sequences=2,
        device="cpu",
        dtype="fp32",
        compile="on" if compiled else "off",
        alignment="sketch" if sketched else "exact",
        alignment_tokens=sketched or RunSettings.alignment_tokens,
    )
    return build_run(settings, corpus=corpus, mixer=mixer, warn=lambda _: None).trainer


def test_any_seed(corpus: Corpus) -> None:
    trainer = make_trainer(corpus, static())
    trainer.settings = replace(trainer.settings, seed=2**31 - 1)
    assert math.isfinite(next(trainer.steps()).train_loss)


def static(depths: tuple[float, ...] = ()) -> StaticMixer:
    mixer = StaticMixer(np.array([0.4, 0.3, 0.2, 0.1]))
    mixer.depths = depths
    return mixer


def test_learns_and_reports(corpus: Corpus) -> None:
    trainer = make_trainer(corpus, AcOdmLearner(uniform_weights(4), DEFAULT, seed=0), steps=30)
    events = list(trainer.steps())
    assert [event.step for event in events] == list(range(1, 31))
    assert events[-1].tokens == 30 * 8 * SEQ_LEN
    assert events[-1].train_loss < events[0].train_loss - 0.5
    validated = [event.step for event in events if event.validation_K is not None]
    assert validated == [1, *range(3, 31, 3)]
    for event in events:
        assert event.samples_K.sum() == 8
        assert event.weights_K.sum() == pytest.approx(1, abs=1e-6)
        assert (np.isnan(event.losses_K) == (event.samples_K == 0)).all()
        assert math.isfinite(event.self_energy)
        weighted = np.nansum(event.losses_K * event.samples_K) / 8
        assert weighted == pytest.approx(event.train_loss, rel=1e-6)
    assert {event.report.phase for event in events} == {"warm-up", "learning"}


def test_micro_batches_change_nothing(corpus: Corpus) -> None:
    runs = []
    for micro_batch in (8, 3):
        learner = AcOdmLearner(uniform_weights(4), DEFAULT, seed=0)
        runs.append(list(make_trainer(corpus, learner, steps=12, micro_batch=micro_batch).steps()))
    for whole, parts in zip(*runs, strict=True):
        assert whole.train_loss == pytest.approx(parts.train_loss, rel=1e-4)
        assert whole.interaction_energy == pytest.approx(parts.interaction_energy, rel=1e-2, abs=1e-4)
        assert np.allclose(whole.weights_K, parts.weights_K, atol=1e-3)


@pytest.mark.parametrize("sketched", [None, 64])
def test_state_continues_bit_for_bit(corpus: Corpus, sketched: int | None) -> None:
    """Also where the sketch looks at a quarter of the tokens, which are drawn in each step, of three micro-batches."""

    def trainer() -> Trainer:
        learner = AcOdmLearner(uniform_weights(4), DEFAULT, seed=0)
        return make_trainer(corpus, learner, steps=24, micro_batch=3 if sketched else 8, sketched=sketched)

    whole, first, second = trainer(), trainer(), trainer()
    expected = list(whole.steps())
    drawn = whole.probe.tokens if isinstance(whole.probe, SketchProbe) else None
    assert (None if drawn is None else drawn.positions_Bk.numel()) == sketched
    for event in first.steps():
        if event.step == 15:
            break
    second.load_state_dict(first.state_dict())
    for resumed, original in zip(second.steps(), expected[15:], strict=True):
        assert resumed.train_loss == original.train_loss
        assert resumed.interaction_energy == original.interaction_energy
        assert resumed.self_energy == original.self_energy
        assert np.array_equal(resumed.weights_K, original.weights_K)
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_batches_drawn_ahead_are_the_same_ones(corpus: Corpus) -> None:
    """Also after a resume, of a run with weights that change and a domain that is capped."""

    def trainer(ahead: bool) -> Trainer:
        weights_SK = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]], dtype=np.float32)
        mixer = ReplayMixer(Timeline(weights_SK, np.array([1, 6]), np.array([256, 1536])))
        mixer.open_loop = ahead
        built = make_trainer(corpus, mixer, micro_batch=3)
        built.sampler.limits_K = np.array([9.0, 100.0, 100.0, 100.0])
        return built

    expected = list(trainer(ahead=False).steps())
    first, second = trainer(ahead=True), trainer(ahead=True)
    events = []
    for event in first.steps():
        events.append(event)
        if event.step == 3:
            break
    second.load_state_dict(first.state_dict())
    events += second.steps()
    assert len(events) == 6
    for found, known in zip(events, expected, strict=True):
        assert np.array_equal(found.samples_K, known.samples_K)
        assert np.array_equal(found.weights_K, known.weights_K)
        assert found.train_loss == known.train_loss
    assert np.ptp([event.samples_K[0] for event in events]) > 2
    # The last batch of a validation is filled up with what does not count.
    measured = second.validate()
    second.settings = replace(second.settings, micro_batch=5)
    assert np.allclose(second.validate().losses_J, measured.losses_J, rtol=1e-6)
    assert np.allclose(second.validate().errors_J, measured.errors_J, rtol=1e-5)


def test_not_finite_stops_before_the_optimizer(corpus: Corpus) -> None:
    trainer = make_trainer(corpus, static())
    steps = trainer.steps()
    next(steps)
    with torch.no_grad():
        trainer.model.get_output_embeddings().weight[0, 0] = math.nan  # type: ignore[operator]
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    with pytest.raises(AcodmError, match=r"step 2 is not finite .*arithmetic nan"):
        next(steps)
    for a, b in zip(before, trainer.model.parameters(), strict=True):
        assert torch.equal(a, b.nan_to_num()) or torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("learning", [False, True])
def test_steps_that_are_not_finite_can_be_passed_over(corpus: Corpus, learning: bool) -> None:
    """They change neither weights nor optimiser nor agent, and the run goes on; one more than allowed stops it."""
    mixer: Mixer = AcOdmLearner(uniform_weights(4), DEFAULT, seed=0) if learning else static()
    trainer = make_trainer(corpus, mixer, steps=12)
    trainer.settings = replace(trainer.settings, skip_nonfinite=2)
    head = trainer.model.get_output_embeddings().weight  # type: ignore[operator]
    steps = trainer.steps()
    for _ in range(3):
        next(steps)
    for number in (4, 5):
        good = head[0, 0].item()
        with torch.no_grad():
            head[0, 0] = math.nan
        before = copy.deepcopy(trainer.optimizer.state_dict())
        transitions = len(mixer.agent.replay) if isinstance(mixer, AcOdmLearner) else 0
        event = next(steps)
        with torch.no_grad():
            head[0, 0] = good
        assert event.step == number
        assert event.report.phase == "skipped: not finite"
        after = trainer.optimizer.state_dict()
        for index, state in before["state"].items():
            assert all(torch.equal(value, after["state"][index][name]) for name, value in state.items())
        if isinstance(mixer, AcOdmLearner):
            assert len(mixer.agent.replay) == transitions
    assert math.isfinite(next(steps).train_loss)
    with torch.no_grad():
        head[0, 0] = math.nan
    with pytest.raises(AcodmError, match="step 7 is not finite"):
        next(steps)


def test_flops_per_token() -> None:
    """6 (P - input embedding) + 12 L H T, for pythia-160m: 85,056,000 parameters and the unembedding."""
    model = build_model(model_config("pythia-160m", 50304, 1024), 0, torch.device("meta"))
    expected = 6 * (85_056_000 + 768 * 50304) + 12 * 12 * 768 * 1024
    assert flops_per_token(model, 1024) == expected


@pytest.mark.slow
def test_compiled_blocks_do_the_same(corpus: Corpus) -> None:
    """One graph for all blocks per way of running them: watched, not watched, without gradients."""
    plain = [event.train_loss for event in make_trainer(corpus, static()).steps()]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # The last micro-batch is smaller.
    built = make_trainer(corpus, AcOdmLearner(uniform_weights(4), DEFAULT, seed=0), micro_batch=3, compiled=True)
    built.mixer = FixedLearner(uniform_weights(4), DEFAULT, seed=0)
    found = [event.train_loss for event in built.steps()]
    assert found == pytest.approx(plain, rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


class FixedLearner(AcOdmLearner):
    """Looks at the gradients, and draws as `static()` does."""

    def weights(self, observation: Observation) -> Array:
        super().weights(observation)
        return static().weights_K


def test_policy_of_six_layers_drives_twelve_without_domain_gradients(corpus: Corpus, tmp_path: Path) -> None:
    """In policy mode the model runs its own layers: no per-domain gradient is computed anywhere."""
    learner = AcOdmLearner(uniform_weights(4), DEFAULT, seed=0)
    proxy = make_trainer(corpus, learner, steps=30)
    list(proxy.steps())
    policy = load_policy(learner.policy_bytes(corpus.names), corpus.names, DEFAULT)
    config = model_config("pythia-14m", corpus.tokenizer.padded_vocab_size, SEQ_LEN)
    config.num_hidden_layers = 12
    config.save_pretrained(tmp_path)
    trainer = make_trainer(corpus, policy, model=str(tmp_path))
    target = trainer.model

    nodes: set[str] = set()

    def record(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        if output.grad_fn is not None:
            nodes.add(type(output.grad_fn).__name__)

    for layer in select_layers(target, "all").values():
        layer.register_forward_hook(record)
    events = list(trainer.steps())
    assert nodes
    assert not any("GroupedWeight" in name for name in nodes)
    assert all(math.isnan(event.interaction_energy) for event in events)
    assert len({tuple(event.weights_K) for event in events}) == len(events)  # it follows the live state

    # The same watch sees them where they are computed.
    nodes.clear()
    for layer in select_layers(proxy.model, "all").values():
        layer.register_forward_hook(record)
    proxy.step, proxy.settings = 0, make_trainer(corpus, static()).settings
    next(proxy.steps())
    assert any("GroupedWeight" in name for name in nodes)

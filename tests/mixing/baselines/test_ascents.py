"""DoGE, DGA, DoReMi and PiKE: exponentiated-gradient ascents, each on its own signal."""

from __future__ import annotations

import math

import numpy as np
import pytest

from acodm_cli.mixing.baselines.dga import DgaMixer, DgaSettings
from acodm_cli.mixing.baselines.doge import DogeMixer, DogeSettings
from acodm_cli.mixing.baselines.doremi import DoremiMixer, DoremiSettings
from acodm_cli.mixing.baselines.pike import PikeMixer, PikeSettings, gradient_noise
from tests.mixing.feedback import feedback, observation

PRIOR = np.array([0.5, 0.25, 0.25])
GRAM = [[9.0, 1.0, 2.0], [1.0, 8.0, 3.0], [2.0, 3.0, 7.0]]


def normalised(*values: float) -> list[float]:
    return [value / sum(values) for value in values]


def test_doge_by_hand() -> None:
    """η_t / μ = 1e-3 / 0.05 = 0.02; W with the unbiased self terms 4, 5, 6 in place of the noisy 9, 8, 7."""
    mixer = DogeMixer(PRIOR, DogeSettings(mu=0.05, uniform_share=0.0))
    mixer.observe(feedback((0.5, 0.25, 0.25), gram_KK=GRAM, self_K=[4.0, 5.0, 6.0]))
    exponents = [0.02 * (4 + 1 + 2), 0.02 * (1 + 5 + 3), 0.02 * (2 + 3 + 6)]
    expected = normalised(*(p * math.exp(e) for p, e in zip(PRIOR, exponents, strict=True)))
    assert mixer.weights(observation()) == pytest.approx(expected)


def test_doge_remembers_domains_that_a_batch_lacks() -> None:
    """The third is not in the second batch, and of the first only one sequence is: what was seen of them before holds."""
    mixer = DogeMixer(PRIOR, DogeSettings(uniform_share=0.0))
    mixer.observe(feedback((0.5, 0.25, 0.25), gram_KK=GRAM, self_K=[4.0, 5.0, 6.0]))
    before = mixer.alpha_K
    lacking = [[9.0, -1.0, 0.0], [-1.0, 8.0, 0.0], [0.0, 0.0, 0.0]]
    mixer.observe(feedback((0.5, 0.25, 0.25), samples=(1, 7, 0), gram_KK=lacking, self_K=[math.nan, 7.0, math.nan]))
    exponents = [0.02 * (4 - 1 + 2), 0.02 * (-1 + 7 + 3), 0.02 * (2 + 3 + 6)]
    expected = normalised(*(a * math.exp(e) for a, e in zip(before, exponents, strict=True)))
    assert mixer.weights(observation()) == pytest.approx(expected)


def test_doge_mixes_uniform_into_what_is_executed() -> None:
    mixer = DogeMixer(PRIOR, DogeSettings(uniform_share=0.3))
    assert mixer.weights(observation()) == pytest.approx(0.7 * PRIOR + 0.1)
    assert mixer.alpha_K == pytest.approx(PRIOR)


def test_dga_by_hand() -> None:
    """η = 0.5, targets that count 1 : 3. The second domain is not in the first batch, and counts as the mean of the others; the
    first is not in the second, and keeps its last alignment. The mean size of the first pass is kept by half."""
    settings = DgaSettings(step_size=0.5, ema=0.0, size_ema=0.5, uniform_share=0.0)
    mixer = DgaMixer(PRIOR, settings, np.array([0.25, 0.75]))
    report = mixer.observe(feedback((0.5, 0.25, 0.25), guide_KJ=[[4, 0], [math.nan, math.nan], [0, 4]]))
    assert report.reward_K == pytest.approx([1, math.nan, 3], nan_ok=True)
    expected = normalised(*(p * math.exp(0.5 * a / 2) for p, a in zip(PRIOR, [1, 2, 3], strict=True)))
    assert mixer.weights(observation()) == pytest.approx(expected)
    mixer.observe(feedback((0.5, 0.25, 0.25)))
    assert mixer.weights(observation()) == pytest.approx(expected), "no guide pass"
    mixer.observe(feedback((0.5, 0.25, 0.25), guide_KJ=[[math.nan, math.nan], [-8, 0], [9, 9]]))
    size = (2 + (1 + 2 + 9) / 3) / 2
    expected = normalised(*(e * math.exp(0.5 * a / size) for e, a in zip(expected, [1, -2, 9], strict=True)))
    assert mixer.weights(observation()) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_dga_descends_to_the_aligned_domain(scale: float) -> None:
    """Each domain pulls the model to its own point; the target is nearest to the second's. The scale of gradients is nothing."""
    points_KP = np.array([[-1.0, 0.0], [1.0, 0.2], [0.0, -1.0]])
    target_P, model_P = np.array([0.9, 0.3]), np.zeros(2)
    mixer = DgaMixer(np.full(3, 1 / 3), DgaSettings(), np.ones(1))
    for _ in range(60):
        weights_K = mixer.weights(observation())
        guide_KJ = scale * (points_KP - model_P) @ (target_P - model_P)[:, None]
        mixer.observe(feedback(tuple(weights_K), guide_KJ=guide_KJ))
        model_P = model_P + 0.1 * (weights_K @ points_KP - model_P)
    assert mixer.weights(observation())[1] > 0.9
    assert mixer.weights(observation()).min() >= 0.05 / 3
    assert np.linalg.norm(model_P - target_P) < 0.25


def test_doremi_by_hand() -> None:
    """η = 2, c = 0.1. Step 1: the third domain was not drawn, and has no excess yet. Step 2: it keeps its last one."""
    mixer = DoremiMixer(PRIOR, DoremiSettings(step_size=2.0, smoothing=0.1, uniform_share=0.0))
    expected = list(PRIOR)
    for told, excess in (([0.1, 0.5, math.nan], [0.1, 0.5, 0.0]), ([0.2, 0.0, 0.3], [0.2, 0.0, 0.3]), ([0.2, 0.4, math.nan], [0.2, 0.4, 0.3])):  # fmt: skip
        mixer.observe(feedback((0.5, 0.25, 0.25), excess_K=told))
        ascended = normalised(*(p * math.exp(2 * e) for p, e in zip(expected, excess, strict=True)))
        expected = [0.9 * a + 0.1 / 3 for a in ascended]
        assert mixer.weights(observation()) == pytest.approx(expected)


def test_doremi_lets_go_of_a_domain_that_has_learned() -> None:
    """The first domain's excess falls to zero; those that its weight of almost 1 keeps out of the batches still have theirs."""
    mixer = DoremiMixer(PRIOR, DoremiSettings())
    for _ in range(20):
        mixer.observe(feedback((0.5, 0.25, 0.25), excess_K=[3.0, 1.0, 1.0]))
    assert mixer.weights(observation())[0] > 0.9
    for _ in range(20):
        mixer.observe(feedback((0.5, 0.25, 0.25), excess_K=[0.0, math.nan, math.nan]))
    assert mixer.weights(observation())[0] < 0.1


def test_pike_by_hand() -> None:
    """First batch, 4, 2 and 2 sequences: σ² = n (‖ĝ‖² - ‖g‖²) = 20, 6, 2; ζ₁‖g‖² - ζ₂σ²/2B with B = 8."""
    mixer = PikeMixer(PRIOR, PikeSettings(zeta1=0.5, zeta2=0.5, update_share=0.01, uniform_share=0.0))
    mixer.observe(feedback((0.5, 0.25, 0.25), gram_KK=GRAM, self_K=[4.0, 5.0, 6.0]))
    exponents = [2.0 - 0.5 * 20 / 16, 2.5 - 0.5 * 6 / 16, 3.0 - 0.5 * 2 / 16]
    expected = normalised(*(p * math.exp(e) for p, e in zip(PRIOR, exponents, strict=True)))
    assert mixer.weights(observation()) == pytest.approx(expected)


def test_pike_updates_at_intervals() -> None:
    mixer = PikeMixer(PRIOR, PikeSettings(update_share=0.1, uniform_share=0.0))
    for step in range(11, 20):
        mixer.observe(feedback((0.5, 0.25, 0.25), step=step, gram_KK=GRAM, self_K=[4.0, 5.0, 6.0]))
        assert mixer.weights(observation(step)) == pytest.approx(PRIOR)
    mixer.observe(feedback((0.5, 0.25, 0.25), step=20, gram_KK=GRAM, self_K=[4.0, 5.0, 6.0]))
    assert mixer.weights(observation(20))[2] > PRIOR[2]


def test_pike_says_so_when_it_knows_nothing() -> None:
    """A domain with one sequence in the batch has no unbiased norm."""
    mixer = PikeMixer(PRIOR, PikeSettings(update_share=0.01, uniform_share=0.0))
    nothing = mixer.observe(feedback((0.5, 0.25, 0.25), gram_KK=GRAM, self_K=[math.nan] * 3)).reward_K
    assert nothing is not None
    assert np.isnan(nothing).all()
    assert mixer.weights(observation()) == pytest.approx(PRIOR)
    some = mixer.observe(feedback((0.5, 0.25, 0.25), gram_KK=GRAM, self_K=[4.0, math.nan, math.nan])).reward_K
    assert some is not None
    assert np.isnan(some).tolist() == [False, True, True]


def test_gradient_noise_is_that_of_a_sequence() -> None:
    """Gradients of single sequences with mean g and variance σ²: what a mean of n of them says of σ² is right on average."""
    generator = np.random.default_rng(0)
    mean_P, count = generator.standard_normal(20), 4
    samples_RnP = mean_P + 0.7 * generator.standard_normal((4000, count, 20))
    gram_R = (samples_RnP.mean(axis=1) ** 2).sum(axis=1)
    first_RP, second_RP = samples_RnP[:, :2].mean(axis=1), samples_RnP[:, 2:].mean(axis=1)
    self_R = (first_RP * second_RP).sum(axis=1)  # unbiased: two halves with noise of their own
    assert gradient_noise(gram_R, self_R, np.full(4000, count)).mean() == pytest.approx(20 * 0.49, rel=0.1)

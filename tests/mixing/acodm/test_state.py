from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from acodm_cli.mixing.acodm.state import RunningNormalizer, encode_state, state_size
from tests.mixing.feedback import observation


def test_layout_by_hand() -> None:
    state = encode_state(observation())
    assert len(state) == state_size(3, 5) == 20
    assert np.allclose(state[:3], [0.5, 0.25, 0.25])  # n
    assert np.isclose(state[3], 0.1)  # t
    assert np.allclose(state[4:7], np.array([3, 2, 4]) / 6)  # ℓ
    assert np.allclose(state[7:10], -0.1 / 6)  # Δℓ
    assert np.allclose(state[10:15], np.log(1.1))  # ‖ω‖
    assert np.allclose(state[15:], 0.01 / 1.1)  # ‖Δω‖


def test_scale_free() -> None:
    """Twice the batch, budget, vocabulary bits and model width give the same state."""
    small = observation()
    large = replace(
        small,
        step=20,
        total_steps=200,
        samples_K=2 * small.samples_K,
        losses_K=2 * small.losses_K,
        previous_losses_K=2 * small.previous_losses_K,
        max_loss=2 * small.max_loss,
        weight_norms_L=7 * small.weight_norms_L,
        initial_norms_L=7 * small.initial_norms_L,
        update_norms_L=7 * small.update_norms_L,
    )
    assert np.allclose(encode_state(small), encode_state(large))


def test_the_learning_rate_is_no_part_of_it() -> None:
    """So a policy sees the same under every schedule of the learning rate, but for what that does to losses and weights."""
    assert torch.equal(encode_state(replace(observation(), learning_rate=0.5)), encode_state(observation()))


def test_running_moments() -> None:
    states = np.random.default_rng(0).normal(3, 2, (200, 4))
    states[:, 3] = 1.0  # never moves
    normalizer = RunningNormalizer(4)
    for state in states:
        normalizer.update(torch.from_numpy(state))
    normal = normalizer(torch.from_numpy(states))
    expected = ((states - states.mean(0)) / np.where(states.std(0) > 0, states.std(0), 1)).clip(-5, 5)
    assert torch.allclose(normal, torch.from_numpy(expected).float(), atol=1e-5)
    assert (normal[:, 3] == 0).all()

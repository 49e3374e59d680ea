from __future__ import annotations

import numpy as np

from acodm_cli.alignment.gram import gradient_alignment, interaction_energy, self_magnitude


def test_energies_add_up_to_the_squared_norm_of_the_mixed_gradient() -> None:
    generator = np.random.default_rng(0)
    gradients_KP = generator.standard_normal((4, 50))
    weights_K = generator.dirichlet(np.ones(4))
    gram_KK = gradients_KP @ gradients_KP.T
    mixed = np.sum((weights_K @ gradients_KP) ** 2)
    assert np.isclose(
        self_magnitude(np.diag(gram_KK), weights_K) + interaction_energy(gram_KK, weights_K), mixed, rtol=1e-12
    )


def test_alignment_is_the_off_diagonal_row_sum() -> None:
    gram_KK = np.array([[1.0, 2.0, 3.0], [2.0, 10.0, -4.0], [3.0, -4.0, 100.0]])
    assert gradient_alignment(gram_KK).tolist() == [5.0, -2.0, -1.0]


def test_self_magnitude_leaves_out_what_is_unknown() -> None:
    assert self_magnitude(np.array([4.0, np.nan]), np.array([0.5, 0.5])) == 1.0

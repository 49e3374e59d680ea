from __future__ import annotations

import numpy as np
import pytest

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.preflight import domain_uses

SEQ_LEN = 32


@pytest.mark.parametrize("moments", [1, 7])
def test_what_max_epochs_cuts_goes_to_the_others(corpus: Corpus, moments: int) -> None:
    sizes_K = np.array([domain.train.num_sequences(SEQ_LEN) for domain in corpus.domains])
    weights_SK = np.tile([0.85, 0.05, 0.05, 0.05], (moments, 1))
    steps, batch = int(sizes_K.sum()) // 8, 8
    free = domain_uses(corpus, SEQ_LEN, batch, steps, weights_SK)
    capped = domain_uses(corpus, SEQ_LEN, batch, steps, weights_SK, max_epochs=1.5)
    assert free[0].epochs > 2
    assert capped[0].epochs == pytest.approx(1.5)
    assert capped[0].exhausted_at == pytest.approx(free[0].exhausted_at, abs=steps / 100), "it is cut later"
    for before, after in zip(free[1:], capped[1:], strict=True):
        assert before.weight < after.weight
        assert after.epochs <= 1.5 + 1e-9
    assert sum(use.weight for use in capped) == pytest.approx(1)

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


def test_a_cut_corpus_is_repeated_as_often_as_by_the_target(corpus: Corpus) -> None:
    """The proxy has a hundredth of the target's steps."""
    sizes_K = corpus.num_sequences(SEQ_LEN)
    weights_SK = np.array([[0.6, 0.2, 0.1, 0.1]])
    steps = int(sizes_K.sum()) // 8
    of_target = domain_uses(corpus, SEQ_LEN, 8, 100 * steps, weights_SK)
    of_proxy = domain_uses(corpus, SEQ_LEN, 8, steps, weights_SK, share=0.01)
    for proxy, target, size in zip(of_proxy, of_target, sizes_K, strict=True):
        assert proxy.epochs == pytest.approx(target.epochs * 0.01 * size / round(0.01 * size))
        assert target.epochs == pytest.approx(target.weight * 800 * steps / size)

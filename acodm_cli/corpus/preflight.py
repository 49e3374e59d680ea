"""Computes what a run would use of its corpus, before the run starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.sampler import cap_weights
from acodm_cli.errors import UsageError

MOMENTS = 200


@dataclass(frozen=True)
class DomainUse:
    """What a run would use of one domain.

    files: the number of its training files, None if it is not known. documents: the number of its training documents, None
    if it is not known. tokens, validation_tokens: the sizes of its stores. weight: the mean weight over the run. epochs: how often its
    training sequences would be seen. exhausted_at: the step at which the first epoch ends, None if it does not end."""

    name: str
    files: int | None
    documents: int | None
    tokens: int
    validation_tokens: int
    weight: float
    epochs: float
    exhausted_at: int | None


def domain_uses(
    corpus: Corpus,
    seq_len: int,
    batch: int,
    steps: int,
    weights_SK: NDArray[np.float64],
    max_epochs: float | None = None,
    share: float = 1.0,
) -> list[DomainUse]:
    """Computes what a run would use of each domain.

    weights_SK: the mixture over the run at S evenly spaced moments; a single row for constant weights. max_epochs: the
    limit of epochs per domain; the weight that a domain has no room for goes to the others, as in the run. share: of each
    domain's sequences, which are trained on."""
    sizes_K = corpus.num_sequences(seq_len, share)
    if max_epochs is not None:
        weights_SK = _capped(weights_SK, np.float64(max_epochs) * sizes_K, steps * batch)
    drawn_SK = np.cumsum(weights_SK, axis=0) * steps * batch / len(weights_SK)
    uses = []
    for index, domain in enumerate(corpus.domains):
        size = sizes_K[index]
        drawn_S = drawn_SK[:, index]
        exhausted_at = None
        if drawn_S[-1] > size:
            moment = int(np.searchsorted(drawn_S, size, side="right"))
            before = drawn_S[moment - 1] if moment else 0.0
            share = (size - before) / (drawn_S[moment] - before)
            exhausted_at = int(np.ceil((moment + share) * steps / len(weights_SK)))
        uses.append(
            DomainUse(
                domain.name,
                domain.provenance.files or None,
                domain.provenance.documents,
                len(domain.train),
                len(domain.validation),
                float(weights_SK[:, index].mean()),
                float(drawn_S[-1] / size),
                exhausted_at,
            )
        )
    return uses


def _capped(weights_SK: NDArray[np.float64], limits_K: NDArray[np.float64], sequences: int) -> NDArray[np.float64]:
    """The weights with the limit applied, at MOMENTS moments. limits_K: the sequences that each domain has room for."""
    moments = np.arange(MOMENTS) * len(weights_SK) // MOMENTS
    drawn_K, rows = np.zeros_like(limits_K), []
    for weights_K in weights_SK[moments]:
        rows.append(cap_weights(weights_K, np.maximum(limits_K - drawn_K, 0) * MOMENTS / sequences))
        drawn_K = drawn_K + rows[-1] * sequences / MOMENTS
    return np.stack(rows)


def check_room(
    corpus: Corpus, seq_len: int, batch: int, steps: int, max_epochs: float | None, share: float = 1.0
) -> None:
    """Raises UsageError if --max-epochs leaves fewer sequences than the run needs. share: of each domain's sequences, which are
    trained on."""
    if max_epochs is None:
        return
    if not np.isfinite(max_epochs):
        raise UsageError(f"--max-epochs {max_epochs}: give a number, or leave it out for no limit")
    sizes_K = corpus.num_sequences(seq_len, share)
    room = int(np.floor(max_epochs * sizes_K).sum()) - len(sizes_K)
    if room < steps * batch:
        raise UsageError(
            f"--max-epochs {max_epochs:g} leaves {max(room, 0):,} sequences of {seq_len} tokens, the run needs {steps * batch:,}; "
            f"at most --steps {max(room, 0) // batch}, or a higher --max-epochs"
        )

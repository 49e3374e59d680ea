from __future__ import annotations

import math

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from acodm_cli.corpus.held_out import HeldOutText, Windows, make_text
from acodm_cli.corpus.token_store import TokenStore
from acodm_cli.corpus.tokenizer import Tokenizer
from acodm_cli.engine.evaluate import plan_validation, shared, summarised
from acodm_cli.engine.settings import TrainSettings

END, T = 0, 8


def stream(lengths: list[int]) -> TokenStore:
    """Documents of these lengths; a token of document d is d + 1."""
    parts = [[*[number + 1] * length, END] for number, length in enumerate(lengths)]
    return TokenStore(np.concatenate(parts).astype(np.uint16))


@pytest.fixture(scope="module")
def store() -> TokenStore:
    return stream(np.random.default_rng(0).integers(1, 60, 400).tolist())


def windows(store: TokenStore, part: str, count: int) -> HeldOutText:
    return Windows(store, T, END, part).text("d", count, np.ones(1000, np.int64))  # type: ignore[arg-type]


def documents_of(text: HeldOutText) -> set[int]:
    return set(text.tokens_NU.flatten().tolist()) - {END}


def test_no_document_is_both_reported_and_a_guide(store: TokenStore) -> None:
    report, guide = (windows(store, part, 10**6) for part in ("report", "guide"))
    assert not documents_of(report) & documents_of(guide)
    assert len(report) > 0.65 * store.num_sequences(T)
    assert len(guide) > 0.2 * store.num_sequences(T)


def test_windows_are_those_of_the_stream_and_spread_over_it(store: TokenStore) -> None:
    chosen = Windows(store, T, END, "report")
    for count in (1, 5, 40, 200):
        starts = chosen.spread(count)
        assert len(set(starts.tolist())) == count
        assert (np.diff(starts) >= T).all()
        text = chosen.text("d", count, np.ones(1000, np.int64))
        assert all(
            np.array_equal(row, store.tokens[s : s + T + 1]) for row, s in zip(text.tokens_NU, starts, strict=True)
        )
    starts = chosen.spread(40)
    # No tenth of the split holds more than twice its share.
    assert np.histogram(starts, 10, (0, len(store)))[0].max() <= 9
    assert set(chosen.spread(20).tolist()) <= set(chosen.spread(60).tolist()), "more sequences are a superset"


def test_a_single_odd_document_is_not_the_validation_of_a_domain() -> None:
    text = windows(stream([2000, *[30] * 600]), "report", 16)
    assert np.mean(text.tokens_NU == 1) < 0.2


def test_documents_are_told_apart(store: TokenStore) -> None:
    text = windows(store, "report", 10**6)
    for row, documents, counted in zip(text.tokens_NU, text.documents_NT, text.counted_NT, strict=True):
        assert counted.all()
        labels = row[1:]
        same = labels[None, :] == labels[:, None]
        inside = (labels[None, :] != END) & (labels[:, None] != END)
        assert np.array_equal(same[inside], (documents[None, :] == documents[:, None])[inside])
    assert len(text.tokens_D) == pytest.approx(len(documents_of(text)), rel=0.1)


def test_a_small_split_has_no_guide_part() -> None:
    store = stream([10, 20])
    assert len(Windows(store, T, END, "report")) == store.num_sequences(T)
    assert len(Windows(store, T, END, "guide")) == 0


@pytest.mark.parametrize("lengths", [[5, 4000], [100, 4000], [100, 4000, 5], [4000, 5], [4000], [200, 3000, 900]])
def test_a_long_document_is_reported_on(lengths: list[int]) -> None:
    store = stream(lengths)
    assert len(Windows(store, T, END, "report")) >= store.num_sequences(T) // 2
    if len(Windows(store, T, END, "guide")):
        assert not documents_of(windows(store, "report", 10**6)) & documents_of(windows(store, "guide", 10**6))


def test_standard_error_is_that_of_documents() -> None:
    """By simulation: documents have losses of their own, and lengths; tokens of a document are alike."""
    generator = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(2000):
        lengths_D = generator.integers(1, 20, 60)
        losses_D = generator.normal(3, 1, 60) * lengths_D
        documents_NT = np.repeat(np.arange(60), lengths_D)[None].astype(np.int32)
        tokens_NU = np.ones((1, documents_NT.shape[1] + 1), np.int32)
        text = make_text("d", tokens_NU, np.ones(documents_NT.shape, bool), documents_NT, np.full(2, 4))
        found = summarised([losses_D], [text])
        assert found.bits_J[0] == pytest.approx(found.losses_J[0] / math.log(2) / 4)
        means.append(found.losses_J[0])
        errors.append(found.errors_J[0])
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.05)


def test_validation_takes_a_tenth_of_the_time_by_default() -> None:
    for steps, batch, domains in ((20, 16, 10), (300, 32, 10), (400, 32, 13), (10_000, 64, 22)):
        settings = TrainSettings(steps=steps, batch=batch)
        every, rows = plan_validation(settings, [2000] * domains)
        times = 1 + -(-steps // every)
        share = times * sum(rows) / 3 / (steps * batch)
        assert share <= 0.1 or (times == 2 and set(rows) == {4})
        assert min(rows) >= 4
        assert max(rows) <= 1024
    assert plan_validation(TrainSettings(steps=300, validation_sequences=16), [10, 100, 5]) == (30, [10, 16, 5])
    assert plan_validation(TrainSettings(steps=300, validate_every=7), [10**6])[0] == 7


def test_targets_have_half_of_what_validation_reads() -> None:
    settings = TrainSettings(steps=400, batch=32, validate_every=40)
    _, rows = plan_validation(settings, [2000] * 13, [2000, 2000])
    assert rows[13:] == [87, 87]
    assert sum(rows[:13]) == pytest.approx(174, abs=13)
    _, rows = plan_validation(settings, [2000] * 13, [10])
    assert rows[13:] == [10]
    assert sum(rows) == pytest.approx(349, abs=13)


def test_shares_of_a_budget() -> None:
    assert shared(30, [100, 5, 100]) == [12, 5, 13] or shared(30, [100, 5, 100]) == [13, 5, 12]
    assert shared(10**6, [3, 2, 1]) == [3, 2, 1]


def test_bytes_of_tokens_of_other_tokenizers() -> None:
    """A tokenizer in the manner of SentencePiece: a bar for a space, and single bytes."""
    vocabulary = [("<unk>", 0.0), ("<|endoftext|>", 0.0), ("\u2581the", -1.0), ("\u2581caf\u00e9", -2.0), ("s", -3.0)]
    vocabulary += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<|endoftext|>"])
    tokenizer = Tokenizer(backend, "t", len(vocabulary), 1, "f")
    text = " the caf\u00e9s the\u20ac"
    ids = backend.encode(text).ids
    assert tokenizer.token_bytes_V[ids].sum() == len(text.encode())
    assert tokenizer.token_bytes_V[1] == 0

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from acodm_cli.corpus.corpus import Corpus, open_corpus
from acodm_cli.corpus.settings import CorpusSettings, TargetSettings
from acodm_cli.corpus.targets import Target, open_targets, overlap
from acodm_cli.corpus.tokenizer import load_tokenizer
from acodm_cli.errors import UsageError
from tests.conftest import generate_documents, write_tokenizer


def jsonl(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def opened(corpus: Corpus, *targets: object, seq_len: int = 32, **settings: object) -> list[Target]:
    return open_targets(TargetSettings(tuple(map(str, targets)), **settings), corpus, "text", seq_len)  # type: ignore[arg-type]


def test_halves_are_disjoint_and_whole(corpus: Corpus, tmp_path: Path) -> None:
    texts = [*generate_documents("code", 31, 5), "", "  "]
    (target,) = opened(corpus, jsonl(tmp_path / "code.jsonl", [{"text": text} for text in [*texts, texts[0]]]))
    assert target.name == "code"
    assert not target.guide_hashes & target.report_hashes
    assert len(target.guide_hashes) + len(target.report_hashes) == 31, "each once, and none that is blank"
    assert abs(len(target.guide_hashes) - len(target.report_hashes)) <= 1
    for text in (target.guide, target.report):
        decoded = corpus.tokenizer.backend.decode(
            text.tokens_NU[:, 1:][text.counted_NT].tolist(), skip_special_tokens=True
        )
        assert decoded in {"".join(order) for order in [decoded]}
        assert text.bytes == len(decoded.encode())
    again = opened(corpus, jsonl(tmp_path / "code.jsonl", [{"text": text} for text in reversed(texts)]))[0]
    assert again.key == target.key, "the order of the file does not matter"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_only_answers_count(kind: str, corpus: Corpus, tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"q": f"{a} + {b} =", "a": f" {a + b}"} for a in range(9) for b in range(9)]
    records.append({"q": "x " * 100, "a": "end"})
    records.append({"q": "why", "a": "because " * 50})
    path = tmp_path / f"sums.{kind}"
    if kind == "jsonl":
        jsonl(path, records)
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    (target,) = opened(corpus, path, target_prompt_field="q", target_text_field="a")
    answers = [
        corpus.tokenizer.backend.decode(row[1:][counted].tolist())
        for text in (target.guide, target.report)
        for row, counted in zip(text.tokens_NU, text.counted_NT, strict=True)
    ]
    told = "".join(answers)
    assert "+" not in told
    assert "=" not in told
    assert "x x" not in told
    assert "end" in told
    assert told.count("because") in range(3, 50)
    sizes = [len(text) for text in (target.guide, target.report)]
    assert max(sizes) < 40, "several records share a sequence"


def test_a_single_text_is_cut(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n".join(generate_documents("prose", 20, 3)))
    (target,) = opened(corpus, f"novel={tmp_path / 'book.txt'}")
    assert target.name == "novel"
    assert min(len(target.guide), len(target.report)) > 5


def test_several_with_weights_and_in_a_manifest(data: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "guide", "test"):
        jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in generate_documents(f"t {name}", 8, 1)])
    jsonl(tmp_path / "qa.jsonl", [{"q": f"q{n}", "a": f"a{n}"} for n in range(20)])
    (tmp_path / "m.toml").write_text(
        "".join(f'[domains.{domain}]\nfiles = "{data}/{domain}/train.*"\n' for domain in ("code", "prose"))
        + '[targets.apart]\nvalidation = "guide.jsonl"\ntest = "test.jsonl"\nweight = 3\n'
        + '[targets.qa]\nfiles = ["qa.jsonl"]\nprompt_field = "q"\nanswer_field = "a"\n'
    )
    settings = CorpusSettings(
        data=str(tmp_path / "m.toml"), tokenizer=str(tokenizer_file), cache_dir=str(tmp_path / "cache")
    )
    corpus = open_corpus(settings)
    targets = opened(corpus, tmp_path / "a.jsonl", f"other={tmp_path / 'b.jsonl'}", target_weight={"other": "0.5"})
    assert {target.name: target.weight for target in targets} == {"a": 1, "other": 0.5, "apart": 3, "qa": 1}
    apart = targets[2]
    assert (len(apart.guide_hashes), len(apart.report_hashes)) == (8, 8)
    assert [overlap(target, corpus) for target in targets] == [0, 0, 0, 0]


def test_what_is_trained_on_too_is_counted(corpus: Corpus, data: Path, tmp_path: Path) -> None:
    of_training = generate_documents("code", 120, 0)[:3]
    records: list[dict[str, object]] = [{"text": text} for text in [*of_training, *generate_documents("code", 5, 77)]]
    (target,) = opened(corpus, jsonl(tmp_path / "code.jsonl", records))
    assert overlap(target, corpus) == 3
    tokens_only = [replace(d, provenance=replace(d.provenance, documents_N=None)) for d in corpus.domains]
    assert overlap(target, replace(corpus, domains=tokens_only)) == 0


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (None, {}, "target x: .*x.jsonl does not exist; "),
        ("", {}, "target x has too little text for its guide part"),
        ('{"text": "x"}\n', {}, "target x has too little text for its report part"),
        ('{"other": "x"}\n', {}, 'no text in field "text"'),
        ('{"text": "x"}\n{"text": "y"}\n', {"target_prompt_field": "q"}, 'no text in field "q"'),
        ('{"text": "x"}\n{"text": "y"}\n', {"target_weight": {"y": "1"}}, "there is no such target; there are x"),
        ('{"text": "x"}\n{"text": "y"}\n', {"target_weight": {"x": "-1"}}, "give a number above 0"),
    ],
)
def test_targets_that_cannot_be_used(
    content: str | None, settings: dict[str, object], message: str, corpus: Corpus, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(UsageError, match=message):
        opened(corpus, tmp_path / "x.jsonl", **settings)  # type: ignore[arg-type]


def test_names_are_told_apart(corpus: Corpus, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"text": "a b c"}, {"text": "d e f"}])
    with pytest.raises(UsageError, match="two targets named x"):
        opened(corpus, path, path)
    with pytest.raises(UsageError, match="has no dot"):
        opened(corpus, f"a.b={path}")
    assert [target.name for target in opened(corpus, path, f"y={path}")] == ["x", "y"]
    first, second = opened(corpus, path, f"y={path}")
    assert np.array_equal(first.guide.tokens_NU, second.guide.tokens_NU)


def test_bytes_do_not_depend_on_the_tokenizer(corpus: Corpus, tmp_path: Path) -> None:
    """Bits per byte compare across tokenizers, because all count the bytes of the same text."""
    texts = [*generate_documents("code", 9, 5), "größer als π, 你好 — naïve\n", "\ttabs  and   spaces\r\n"]
    path = jsonl(tmp_path / "x.jsonl", [{"text": text} for text in texts])
    coarse, fine = corpus.tokenizer, load_tokenizer(str(write_tokenizer(tmp_path / "fine.json", vocabulary=300)))
    tokens = []
    for tokenizer in (coarse, fine):
        (target,) = opened(replace(corpus, tokenizer=tokenizer), path)
        assert target.guide.bytes + target.report.bytes == sum(len(text.encode()) for text in texts)
        tokens.append(int(target.guide.counted_NT.sum() + target.report.counted_NT.sum()))
    assert tokens[1] > 1.1 * tokens[0]

from __future__ import annotations

import contextlib
import gzip
import json
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from acodm_cli.corpus import hub, store_writer
from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.readers import PLAIN, Document, Fields, read_items
from acodm_cli.corpus.sources import FileSource, HubSource, TokenSource, plan_corpus
from acodm_cli.corpus.token_store import DomainStore
from acodm_cli.corpus.token_store import open_source as open_any_source
from acodm_cli.corpus.tokenizer import Tokenizer, load_tokenizer
from acodm_cli.errors import AcodmError, UsageError
from tests.conftest import opened, write_corpus
from tests.corpus import forms


def open_source(*arguments: Any) -> list[DomainStore]:
    return open_any_source(*arguments).domains


@pytest.fixture(scope="module")
def texts(data: Path) -> forms.Texts:
    return forms.read_folders(data)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return load_tokenizer(str(tokenizer_file))


def assert_same(found: Corpus, expected: Corpus) -> None:
    assert found.names == expected.names
    for a, b in zip(found.domains, expected.domains, strict=True):
        assert np.array_equal(a.train.tokens, b.train.tokens)
        assert np.array_equal(a.validation.tokens, b.validation.tokens)
    assert found.fingerprint == expected.fingerprint


@pytest.mark.parametrize("form", forms.FORMS)
def test_every_form_gives_the_same_stores(
    form: str, texts: forms.Texts, corpus: Corpus, tokenizer_file: Path, tmp_path: Path
) -> None:
    write, inside, domain_field = forms.FORMS[form]
    write(texts, tmp_path / "data")
    found = opened(
        str(tmp_path / "data" / inside), str(tokenizer_file), str(tmp_path / "cache"), domain_field=domain_field
    )
    assert_same(found, corpus)


@pytest.mark.parametrize("form", forms.TOKEN_FORMS)
def test_pre_tokenised_files_are_used_where_they_lie(
    form: str, texts: forms.Texts, corpus: Corpus, tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    try:
        forms.TOKEN_FORMS[form][0](texts, tmp_path / "data", tokenizer)
    except ImportError:
        pytest.skip("megatron-core is not installed")
    assert_same(opened(str(tmp_path / "data"), str(tokenizer_file), str(tmp_path / "cache")), corpus)
    assert not (tmp_path / "cache").exists()


def test_a_hub_style_dataset_is_streamed(
    texts: forms.Texts, corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    forms.write_dataset(texts, tmp_path / "data")
    source = HubSource(None, str(tmp_path / "data"), Fields(domain="meta.pile_set_name"))
    stores = open_source(source, tokenizer, tmp_path / "cache", lambda *_: None)
    assert [store.name for store in stores] == corpus.names
    assert [store.key for store in stores] == [domain.key for domain in corpus.domains]
    again = open_source(source, tokenizer, tmp_path / "cache", lambda *_: pytest.fail("tokenised again"))
    assert [store.key for store in again] == [store.key for store in stores]


def test_a_budget_per_domain_ends_the_stream(texts: forms.Texts, tokenizer: Tokenizer, tmp_path: Path) -> None:
    forms.write_dataset(texts, tmp_path / "data")
    source = HubSource(None, str(tmp_path / "data"), Fields(domain="meta.pile_set_name"), tokens=3000)
    longest = max(len(tokenizer.backend.encode(text).ids) for splits in texts.values() for text in splits["train"])
    for store in open_source(source, tokenizer, tmp_path / "cache", lambda *_: None):
        assert 3000 <= len(store.train) <= 3000 + longest + 1


def test_a_domain_that_comes_late_is_not_missed(texts: forms.Texts, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [{"text": text, "set": name} for name in ("code", "prose") for text in texts[name]["train"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "train.parquet")
    source = HubSource(None, str(tmp_path / "data"), Fields(domain="set"), tokens=500)
    stores = open_source(source, tokenizer, tmp_path / "cache", lambda *_: None)
    assert [store.name for store in stores] == ["code", "prose"]


def test_a_stream_is_stored_alike_however_fast_it_is_written(
    texts: forms.Texts, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored is decided in the order of documents, not by how far the writer has come."""
    monkeypatch.setattr(store_writer, "_PATIENCE", 30)
    monkeypatch.setattr(store_writer, "_ENCODE_CHARACTERS", 2000)
    write = store_writer._StoreWriter._write
    (tmp_path / "data").mkdir()
    common, rare = texts["code"]["train"], texts["prose"]["train"]
    rows = [{"text": text, "set": "common"} for text in common[:40]]
    for number, text in enumerate(rare[:40]):
        rows += [{"text": text, "set": "rare"}, *[{"text": t, "set": "common"} for t in common[:number]]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "train.parquet")
    source = HubSource(None, str(tmp_path / "data"), Fields(domain="set"), tokens=3000)
    found = []
    for seconds in (0.0, 0.05):

        def slowly(*arguments: Any, seconds: float = seconds) -> None:
            time.sleep(seconds)
            write(*arguments)

        monkeypatch.setattr(store_writer._StoreWriter, "_write", slowly)
        found.append(open_source(source, tokenizer, tmp_path / f"cache {seconds}", lambda *_: None))
    for fast, slow in zip(*found, strict=True):
        assert fast.key == slow.key
    # The rare domain stopped after a run of 30 common documents, before it had all of its own.
    assert len(found[0][1].train) < sum(len(tokenizer.backend.encode(text).ids) + 1 for text in rare[:40])


def test_a_dataset_is_not_validated_on_its_training_split(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = pa.table({"text": [f"line {i}" for i in range(100)]})
    pq.write_table(table, tmp_path / "data" / "test.parquet")
    source = HubSource("a", str(tmp_path / "data"), Fields(), split="test")
    (store,) = open_source(source, tokenizer, tmp_path / "cache", lambda *_: None)
    total = len(store.train) + len(store.validation)
    assert total == sum(len(tokenizer.backend.encode(text).ids) + 1 for text in table["text"].to_pylist())
    with pytest.raises(UsageError, match="cannot be its own validation_split"):
        open_source(replace(source, validation_split="test"), tokenizer, tmp_path / "cache", lambda *_: None)


def test_without_the_network_a_dataset_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HubSource("a", "org/name", Fields())
    monkeypatch.setattr(hub, "_revision", lambda source: "abc")
    assert hub.pinned(source, tmp_path).revision == "abc"

    def offline(source: HubSource) -> str:
        raise UsageError("no network")

    monkeypatch.setattr(hub, "_revision", offline)
    assert hub.pinned(source, tmp_path).revision == "abc"
    with pytest.raises(UsageError, match="no network"):
        hub.pinned(replace(source, dataset="org/other"), tmp_path)


def test_held_out_end_of_indexed_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """About a twentieth, whatever the documents' lengths are."""
    for lengths in ([100, 50_000], [50_000, 100], [1000] * 50, [51_000]):
        np.zeros(sum(lengths), np.uint16).tofile(tmp_path / "a.bin")
        forms.write_index(tmp_path / "a.idx", lengths, code=8, item_size=2)
        (store,) = open_source(TokenSource("a", (tmp_path / "a.bin",), ()), tokenizer, tmp_path, lambda *_: None)
        assert sum(lengths) // 20 <= len(store.validation) <= sum(lengths) // 10 + 1, lengths


def test_held_out_documents_that_are_short_are_not_enough(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a b " * (1 if number == 19 else 200)}) for number in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (store,) = open_source(FileSource("a", (tmp_path / "a.jsonl",), (), Fields()), tokenizer, tmp_path, lambda *_: None)
    assert len(store.validation) >= (len(store.train) + len(store.validation)) // 40


def test_dataset_in_a_manifest(texts: forms.Texts, corpus: Corpus, tokenizer_file: Path, tmp_path: Path) -> None:
    for name in ("code", "prose"):
        forms.write_dataset({name: texts[name]}, tmp_path / f"{name}_data")
    (tmp_path / "mix.toml").write_text(
        '[domains.code]\ndataset = "code_data"\nweight = 3\n[domains.prose]\ndataset = "prose_data"\nweight = 1\n'
    )
    found = opened(str(tmp_path / "mix.toml"), str(tokenizer_file), str(tmp_path / "cache"))
    assert found.names == ["code", "prose"]
    assert [d.key for d in found.domains] == [d.key for d in corpus.domains if d.name in found.names]
    assert found.weights == {"code": 3.0, "prose": 1.0}


def test_a_manifest_says_what_is_kept(data: Path, tokenizer_file: Path, cache: Path, tmp_path: Path) -> None:
    tables = "".join(f'[domains.{name}]\nfiles = "{data}/{name}/train*"\nkeep = {word}\n' for name, word in (("code", "true"), ("prose", "false")))  # fmt: skip
    (tmp_path / "m.toml").write_text(tables + f'[targets.sums]\nfiles = "{data}/tables/train.jsonl*"\nkeep = true\n')
    assert opened(tmp_path / "m.toml", tokenizer_file, cache).keep == ["code", "sums"]


def test_arrow_files_and_streams(texts: forms.Texts, tmp_path: Path) -> None:
    table = pa.table({"text": texts["code"]["train"], "n": range(len(texts["code"]["train"]))})
    for name, new in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / name), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
        counts: list[int] = []
        found = [item.text for item in read_items(tmp_path / name, PLAIN, counts.append) if isinstance(item, Document)]
        assert found == texts["code"]["train"]
        assert sum(counts) == pytest.approx((tmp_path / name).stat().st_size, rel=0.2)


def test_names_of_files_name_domains_and_splits(tmp_path: Path) -> None:
    names = ["web-00000-of-00002.parquet", "web-00001-of-00002.parquet", "web_validation.jsonl", "dev_tools.jsonl",
             "code.train.jsonl.gz", "code.test.jsonl.gz", "pile_07_text_document.bin", "notes.rst", ".hidden.jsonl"]  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    plan = plan_corpus(str(tmp_path), Fields())
    found = {
        source.domain: (source.train, source.validation) for source in plan.sources if isinstance(source, FileSource)
    }
    assert {name: (len(t), len(v)) for name, (t, v) in found.items()} == {
        "code": (1, 1),
        "dev_tools": (1, 0),
        "web": (2, 1),
    }
    assert [source.domain for source in plan.sources] == ["code", "dev_tools", "pile_07", "web"]


def test_indexed_without_validation_holds_out_whole_documents(
    texts: forms.Texts, tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        forms.write_indexed({name: {"train": texts["code"]["train"]}}, tmp_path / "data", tokenizer)
    corpus = opened(str(tmp_path / "data"), str(tokenizer_file), None)
    train, validation = corpus.domains[0].train.tokens, corpus.domains[0].validation.tokens
    assert train[-1] == validation[-1] == tokenizer.end_of_document
    assert 0 < len(validation) < 0.1 * len(train)


# Bad data: one line, with where and what to do, and nothing left in the cache


def write_lines(path: Path, lines: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(lines) + b"\n")


GOOD = [json.dumps({"text": f"document {i} of many words", "meta": {"set": "a"}}).encode() for i in range(30)]


def broken_records(folder: Path, kind: str) -> None:
    lines = {
        "invalid JSON": b'{"text": ',
        "missing text field": b'{"body": "x", "meta": {"set": "a"}}',
        "missing domain field": b'{"text": "x", "meta": {}}',
        "non-UTF-8": b'{"text": "\xff", "meta": {"set": "a"}}',
        "surrogate": b'{"text": "\\ud800", "meta": {"set": "a"}}',
        "surrogate in a name": b'{"text": "x", "meta": {"set": "a\\ud800"}}',
    }
    write_lines(folder / "records.jsonl", [*GOOD, lines[kind]])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("invalid JSON", r"records.jsonl:31: not valid JSON .*; repair or remove the line"),
        (
            "missing text field",
            r'records.jsonl:31: no text in field "text", which is .* its fields are body, meta; every record needs one .*--skip-bad N',
        ),
        (
            "missing domain field",
            r'records.jsonl:31: no domain in field "meta.set", which is .*; every record needs one',
        ),
        ("non-UTF-8", r"records.jsonl:31: not UTF-8 .*; convert the file"),
        ("surrogate", r"records.jsonl:31: its text holds half a surrogate pair; repair"),
        ("surrogate in a name", r"records.jsonl:31: its domain holds half a surrogate pair; repair"),
    ],
)
def test_bad_records(kind: str, message: str, tokenizer_file: Path, tmp_path: Path) -> None:
    broken_records(tmp_path / "data", kind)
    with pytest.raises(UsageError, match=message):
        opened(str(tmp_path / "data"), str(tokenizer_file), str(tmp_path / "c"), domain_field="meta.set")
    assert not list((tmp_path / "c" / "tokens").iterdir())


def broken_corpora(folder: Path, kind: str) -> str:
    """Writes a corpus with one fault; returns what to give as --data."""
    write_lines(folder / "a" / "x.jsonl", GOOD)
    write_lines(folder / "b" / "x.jsonl", GOOD)
    if kind == "truncated gz":
        (folder / "b" / "y.jsonl.gz").write_bytes(gzip.compress(b"\n".join(GOOD * 50), mtime=0)[:-40])
    elif kind == "truncated zst":
        with pa.CompressedOutputStream(str(folder / "b" / "y.jsonl.zst"), "zstd") as stream:
            stream.write(b"\n".join(GOOD * 50))
        path = folder / "b" / "y.jsonl.zst"
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "no such column":
        pq.write_table(pa.table({"content": ["x"]}), folder / "b" / "y.parquet")
    elif kind == "damaged Parquet":
        (folder / "b" / "y.parquet").write_bytes(b"PAR1 and then nothing")
    elif kind == "empty domain":
        (folder / "b" / "x.jsonl").write_text("")
    elif kind == "no file in a domain":
        (folder / "b" / "x.jsonl").rename(folder / "b" / "x.csv")
    elif kind == "duplicate names":
        (folder / "m.toml").write_text('[domains.a]\nfiles = "a/*"\n[domains.a]\nfiles = "b/*"\n')
        return str(folder / "m.toml")
    elif kind == "matched twice":
        (folder / "m.toml").write_text('[domains.a]\nfiles = ["a/*", "*/x.jsonl"]\n')
        return str(folder / "m.toml")
    elif kind == "unknown key":
        (folder / "m.toml").write_text('[domains.a]\nfile = "a/*"\n')
        return str(folder / "m.toml")
    elif kind == "some weights":
        (folder / "m.toml").write_text('[domains.a]\nfiles = "a/*"\nweight = 1\n[domains.b]\nfiles = "b/*"\n')
        return str(folder / "m.toml")
    elif kind == "keep what":
        (folder / "m.toml").write_text('[domains.a]\nfiles = "a/*"\nkeep = 1\n[domains.b]\nfiles = "b/*"\n')
        return str(folder / "m.toml")
    elif kind == "one file":
        return str(folder / "a" / "x.jsonl")
    elif kind == "held out, as a domain":
        write_lines(folder / "flat" / "train.jsonl", GOOD)
        write_lines(folder / "flat" / "test-00000-of-00001.jsonl", GOOD)
        return str(folder / "flat")
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated gz", r"y.jsonl.gz: damaged or truncated archive .*; compress or fetch it again"),
        ("truncated zst", r"y.jsonl.zst: damaged or truncated archive .*; compress or fetch it again"),
        ("no such column", r'y.parquet: no column "text"; its columns are content'),
        ("damaged Parquet", r"y.parquet: not a readable parquet file"),
        ("empty domain", r"domain b has no text"),
        ("no file in a domain", r"domain b has no training file in .*; acodm reads"),
        ("duplicate names", r"m.toml: .*(overwrite|[Cc]annot declare).*line 3"),
        ("matched twice", r"x.jsonl is matched twice"),
        ("unknown key", r"unknown key 'file'; known: .*files"),
        ("some weights", r"no weight for b; give every domain a weight, or none"),
        ("keep what", r"domain a: keep = 1 is not of type bool"),
        (
            "held out, as a domain",
            r"test-00000-of-00001.jsonl is held out, but of which domain.* sub-folder .* DOMAIN.test-00000",
        ),
        ("one file", r"is one file; name the field with each record's domain \(--domain-field\)"),
    ],
)
def test_bad_corpora(kind: str, message: str, tokenizer_file: Path, tmp_path: Path) -> None:
    data = broken_corpora(tmp_path / "data", kind)
    with pytest.raises(UsageError, match=message) as caught:
        opened(data, str(tokenizer_file), str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    tokens = tmp_path / "cache" / "tokens"
    assert all((folder / "index.json").is_file() for folder in (tokens.iterdir() if tokens.exists() else ()))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "vocabulary",
            r"x.bin: holds token ids such as \d+, the tokenizer has \d+; give the --tokenizer it was made with",
        ),
        ("magic", r"x.idx: not an index of Megatron-LM or GPT-NeoX"),
        ("truncated index", r"x.idx: damaged or truncated"),
        ("truncated tokens", r"x.bin: \d+ bytes, its index says \d+"),
        ("no index", r"x.idx: cannot be read .*; a .bin needs its .idx"),
        ("floats", r"x.idx: version 1 with type code 7 is not supported"),
    ],
)
def test_bad_indexed_files(
    fault: str, message: str, texts: forms.Texts, tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    ids = list(forms.document_tokens(texts["code"]["train"][:20], tokenizer))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.concatenate(ids).astype("<u2").tofile(tmp_path / name / "x.bin")
        forms.write_index(tmp_path / name / "x.idx", [len(i) for i in ids], 8, 2)
    binary, index = tmp_path / "b" / "x.bin", tmp_path / "b" / "x.idx"
    content = index.read_bytes()
    if fault == "vocabulary":
        tokens = np.fromfile(binary, "<u2")
        tokens[5] = 60_000
        tokens.tofile(binary)
    elif fault == "magic":
        index.write_bytes(b"TNTIDX\x00\x00\x00" + content[9:])
    elif fault == "truncated index":
        index.write_bytes(content[:60])
    elif fault == "truncated tokens":
        binary.write_bytes(binary.read_bytes()[:-2])
    elif fault == "no index":
        index.unlink()
    else:
        index.write_bytes(content[:17] + b"\x07" + content[18:])
    with pytest.raises(UsageError, match=message):
        opened(tmp_path, str(tokenizer_file), None)


def test_a_flipped_byte_in_the_cache_is_found(tokenizer_file: Path, tmp_path: Path) -> None:
    data = str(write_corpus(tmp_path / "data", documents=30))
    opened(data, str(tokenizer_file), str(tmp_path / "cache"))
    path = next((tmp_path / "cache").rglob("0.train.bin"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(AcodmError, match=r"token cache .* is damaged; remove it"):
        opened(data, str(tokenizer_file), str(tmp_path / "cache"))


def test_a_vocabulary_beyond_two_bytes_takes_four(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import tokenizers

    write_lines(tmp_path / "data" / "x.jsonl", GOOD)
    large = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    large.add_tokens([f"token {i}" for i in range(70_000)])
    large.save(str(tmp_path / "tokenizer.json"))
    source = FileSource("a", (tmp_path / "data" / "x.jsonl",), (), Fields())
    (store,) = open_source(
        source, load_tokenizer(str(tmp_path / "tokenizer.json")), tmp_path / "cache", lambda *_: None
    )
    assert store.train.tokens.dtype == np.uint32


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """As on a full disk: a file cannot grow beyond 4 KB. Only around what is tested: the limit is the whole process's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_left(tokenizer_file: Path, data: Path, tmp_path: Path) -> None:
    message = r"cannot write the token cache in .*; make room .*, or use --cache-dir"
    with small_files(), pytest.raises(AcodmError, match=message):
        opened(str(data), str(tokenizer_file), str(tmp_path / "cache"))
    assert not list((tmp_path / "cache" / "tokens").iterdir())


def test_too_many_domains_are_a_wrong_field(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "MAX_DOMAINS", 10)
    records = [json.dumps({"text": "some text", "id": f"{i}"}).encode() for i in range(30)]
    write_lines(tmp_path / "data" / "x.jsonl", records)
    with pytest.raises(
        UsageError, match=r"more than 10 domains, such as '0', '1', '2'; is this the right --domain-field"
    ):
        opened(str(tmp_path / "data"), str(tokenizer_file), str(tmp_path / "c"), domain_field="id")

"""Corpora as people have them: what is read, what is held out, what is said, and what is refused.

Each case writes a small corpus in a layout that public corpora or tools have. Its documents begin with a mark, so that one
can see where they went.
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import os
import random
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from acodm_cli.corpus import readers, token_files
from acodm_cli.corpus.corpus import Corpus, open_corpus
from acodm_cli.corpus.readers import PLAIN, parquet_batches, read_documents
from acodm_cli.corpus.settings import CorpusSettings
from acodm_cli.corpus.tokenizer import Tokenizer, load_tokenizer
from acodm_cli.errors import UsageError
from tests.command_line import acodm
from tests.corpus.forms import write_index

WORDS = ["amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty"]


def texts(mark: str, count: int = 40, words: int = 10) -> list[str]:
    generator = random.Random(mark)
    return [f"{mark} {i} " + " ".join(generator.choices(WORDS, k=words)) for i in range(count)]


def records(mark: str, count: int = 40, words: int = 10, **more: Any) -> list[dict[str, Any]]:
    return [{"text": text, **more} for text in texts(mark, count, words)]


def lines(items: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(item) + "\n" for item in items).encode()


def put(path: Path, content: list[dict[str, Any]] | bytes | str) -> None:
    """Writes a file, records as JSON lines, in the compression that its name says."""
    data = lines(content) if isinstance(content, list) else content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    pack: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".bz2": bz2.compress,
        ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
        ".zstd": lambda data: pa.compress(data, "zstd", asbytes=True),
    }
    path.write_bytes(pack.get(path.suffix, bytes)(data))


def alternating(mark: str, names: tuple[str, ...], count: int = 60) -> list[dict[str, Any]]:
    return [{"text": text, "meta": {"set": names[i % len(names)]}} for i, text in enumerate(texts(mark, count))]


@dataclass(frozen=True)
class Case:
    """write: makes the corpus in a folder. data: what to give as --data inside. domains: those that are found. trained,
    held_out, neither: marks of documents by where they go. said: a pattern in what is said. refused: a pattern of the error.
    documents: how many there are in all, per domain."""

    write: Callable[[Path], None]
    data: str = ""
    domain_field: str | None = None
    domains: tuple[str, ...] = ("code", "web")
    trained: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    neither: tuple[str, ...] = ()
    said: str = ""
    refused: str = ""
    documents: dict[str, int] = field(default_factory=dict)
    skip_bad: int = 0
    follow_links: bool = False


def both(write: Callable[[Path, str], None]) -> Callable[[Path], None]:
    """A corpus of two domains that are written alike."""

    def of(folder: Path) -> None:
        for name in ("code", "web"):
            write(folder, name)

    return of


def beside_web(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """A corpus whose domain code is peculiar, and whose domain web is not."""

    def of(folder: Path) -> None:
        put(folder / "web" / "0.jsonl", records("web"))
        write(folder)

    return of


# Splits


def split_folders_of_records(folder: Path) -> None:
    for split in ("train", "validation", "test"):
        put(folder / split / "chunk1.jsonl.zst", alternating(f"In{split}", ("a", "b")))


def splits_in_domains(folder: Path, name: str) -> None:
    for split in ("train", "test"):
        put(folder / name / split / "0.jsonl", records(f"In{split}{name}"))


def domains_in_splits(folder: Path, name: str) -> None:
    for split in ("training", "partial-validation"):
        put(folder / split / name / "0.jsonl", records(f"In{split[:4]}{name}"))


def folders_named_for_both(folder: Path, name: str) -> None:
    for split in ("train", "test"):
        put(folder / f"{name}-{split}" / "0.jsonl", records(f"In{split}{name}"))


def tensorflow_names(folder: Path, name: str) -> None:
    for part in range(2):
        put(folder / f"{name}.tfrecord-0000{part}-of-00002.json.gz", records(f"Intrain{name}{part}"))
    put(folder / f"{name}-validation.tfrecord-00000-of-00001.json.gz", records(f"Inval{name}"))


def evaluation_names(folder: Path, name: str) -> None:
    put(folder / name / "train.jsonl", records(f"Intrain{name}"))
    for split in ("eval", "example_holdout_0", "held-out", "evaluation_set", "test_en", "val2"):
        put(folder / name / f"{split}.jsonl", records(f"In{split}{name}"))


def text_documents(folder: Path) -> None:
    for name in ("intro", "test-driven", "dev-guide", "valid_json", "how-to-test", "faq", "evaluation-of-models"):
        put(folder / "code" / f"{name}.md", " ".join(texts(f"In{name}", 12)))
    for number in range(30):
        put(folder / "web" / f"{number}.txt", texts(f"web{number}", 1, 60)[0])


def odd_folders(folder: Path, name: str) -> None:
    for split in ("train", "test_unseen", "dev-v2.0", "val_small", "validation_matched", "split=test"):
        put(folder / name / split / "0.jsonl", records(f"In{split[:7]}{name}"))


def odd_files(folder: Path, name: str) -> None:
    for split in ("train", "testset", "devtest", "TestSet2", "validate"):
        put(folder / name / f"{split}.jsonl", records(f"In{split}{name}"))


def first_words(folder: Path, name: str) -> None:
    for split in ("train", "test"):
        put(folder / f"{split}_{name}.jsonl", records(f"In{split}{name}"))


def languages(folder: Path, name: str) -> None:
    for split in ("train", "test"):
        put(folder / name / f"{split}.en.txt", " ".join(texts(f"In{split}{name}", 30)))


def by_spark(folder: Path, name: str) -> None:
    for split in ("", ".test"):
        table = pa.table({"text": texts(f"In{split[1:] or 'train'}{name}")})
        (folder / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / name / f"part{split}.snappy.parquet")


def named_in_a_manifest(folder: Path) -> None:
    for split in ("train", "test"):
        put(folder / "c" / split / "0.jsonl", records(f"In{split}"))
    put(folder / "w" / "0.jsonl", records("web"))
    put(folder / "m.toml", '[domains.code]\nfiles = ["c/train/*", "c/test/*"]\n[domains.web]\nfiles = "w/*"\n')


def one_long_document(folder: Path) -> None:
    put(folder / "code" / "0.jsonl", [*records("Short"), {"text": " ".join(texts("Long", 400))}])


def text_splits(folder: Path, name: str) -> None:
    for split in ("train", "valid", "test"):
        put(folder / name / f"wiki.{split}.txt", " ".join(texts(f"In{split}{name}", 30)))


def only_a_test_split(folder: Path) -> None:
    put(folder / "code" / "test-00000-of-00001.jsonl", records("code"))


def manifest_with_dots(folder: Path) -> None:
    put(folder / "data" / "a.jsonl", records("Intrain"))
    put(folder / "data" / "held.jsonl", records("Inheld"))
    put(folder / "b" / "0.jsonl", records("b"))
    put(folder / "c.toml", '[domains.code]\nfiles = "data/*.jsonl"\nvalidation = "b/../data/held.jsonl"\n[domains.web]\nfiles = "b/*.jsonl"\n')  # fmt: skip


SPLITS = {
    "folders of splits, records name domains": Case(
        split_folders_of_records,
        domain_field="meta.set",
        domains=("a", "b"),
        trained=("Intrain",),
        held_out=("Invalidation",),
        neither=("Intest",),
        said="also held out, but not validated on: test/chunk1.jsonl.zst",
    ),
    "splits in domains": Case(
        both(splits_in_domains), trained=("Intraincode",), held_out=("Intestcode", "Intestweb"), said="test/0.jsonl"
    ),
    "domains in splits": Case(both(domains_in_splits), trained=("Intraicode",), held_out=("Inpartcode", "Inpartweb")),
    "folders named for both": Case(both(folders_named_for_both), trained=("Intraincode",), held_out=("Intestcode",)),
    "names of TFDS": Case(
        both(tensorflow_names),
        trained=("Intraincode0", "Intrainweb1"),
        held_out=("Invalcode",),
        said="code is one domain of 2 parts",
    ),
    "names of evaluation splits": Case(
        both(evaluation_names),
        trained=("Intrain",),
        held_out=("Inval2code",),
        neither=("Ineval", "Inexample", "Inheld", "Inevaluation", "Intest_en"),
    ),
    "documents about tests": Case(
        text_documents,
        trained=("Intest-driven", "Indev-guide", "Invalid_json", "Inhow-to-test", "Inevaluation-of-models"),
        said="trained on although their names hold a word such as test: .*md",
    ),
    "text files of splits": Case(both(text_splits), trained=("Intrain",), held_out=("Invalid",), neither=("Intest",)),
    "words that are not the last of a folder's name": Case(
        both(odd_folders),
        trained=("Intraincode",),
        held_out=("Invalidatcode", "Invalidatweb"),
        neither=("Intest_un", "Indev-v2", "Inval_sma", "Insplit=t"),
    ),
    "words of several kinds": Case(
        both(odd_files),
        trained=("Intraincode",),
        held_out=("Invalidatecode",),
        neither=("Intestset", "Indevtest", "InTestSet"),
    ),
    "words before the domain": Case(both(first_words), trained=("Intraincode",), held_out=("Intestcode", "Intestweb")),
    "text files of splits and languages": Case(both(languages), trained=("Intraincode",), held_out=("Intestcode",)),
    "files of Spark": Case(both(by_spark), trained=("Intraincode",), held_out=("Intestcode",)),
    "folders that a manifest names": Case(
        named_in_a_manifest,
        data="m.toml",
        trained=("Intest",),
        said="trained on although their folders are named as held out: 0.jsonl",
    ),
    "one long document": Case(beside_web(one_long_document), trained=("Short", "Long")),
    "only a test split": Case(
        beside_web(only_a_test_split),
        refused=r"code has no training file .*test-00000-of-00001.jsonl held out .*rename",
    ),
    "another spelling of a path": Case(
        manifest_with_dots, data="c.toml", trained=("Intrain",), held_out=("Inheld",), documents={"code": 80}
    ),
}


# Files


def with_furniture(folder: Path) -> None:
    for name in ("code", "web"):
        put(folder / f"{name}.jsonl", records(name))
    put(folder / "README.md", "Card " * 300)
    put(folder / "SHA256SUMS.txt", "abc  code.jsonl")
    put(folder / "assets" / "figure.png", b"x")
    put(folder / "scripts" / "requirements.txt", "numpy")
    put(folder / "__MACOSX" / "code.jsonl", records("Mac"))
    put(folder / ".cache" / "code.jsonl", records("Hidden"))
    put(folder / "notes.txt", "Stray " * 300)


def records_with_furniture(folder: Path) -> None:
    put(folder / "train" / "00.jsonl.zst", alternating("Record", ("code", "web")))
    put(folder / "README.md", "# Card")
    put(folder / "SHA256SUMS.txt", "abc")
    put(folder / "train" / ".ipynb_checkpoints" / "00-checkpoint.jsonl", alternating("Record", ("code", "web")))


def nested(folder: Path) -> None:
    put(folder / "code" / "0.jsonl", records("Top"))
    put(folder / "code" / "2023" / "06" / "1.jsonl", records("Deep"))


def other_formats(folder: Path) -> None:
    put(folder / "code" / "0.jsonl", records("Plain"))
    put(folder / "code" / "1.jsonl.xz", records("Xz"))
    put(folder / "code" / "2.jsonl.bz2", records("Bz"))
    put(folder / "code" / "3.jsonl.zstd", records("Zstd"))
    put(folder / "code" / "4.csv", b"text\nCsv\n")


def saved_by_datasets(folder: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    splits = {split: datasets.Dataset.from_dict({"text": texts(f"In{split}")}) for split in ("train_sft", "test_sft")}
    datasets.DatasetDict(splits).save_to_disk(str(folder / "code"))
    other = pa.table({"text": texts("Stale")})
    with pa.OSFile(str(folder / "code" / "train_sft" / "cache-0123456789abcdef.arrow"), "wb") as sink, pa.ipc.new_stream(sink, other.schema) as writer:  # fmt: skip
        writer.write_table(other)


def linked_domain(folder: Path) -> None:
    (folder / "zeb").symlink_to(folder / "web")


def blank_domain(folder: Path) -> None:
    put(folder / "x.jsonl", [*alternating("x", ("code", "web")), {"text": " \n", "meta": {"set": "blank"}}])


def brackets(folder: Path) -> None:
    put(folder / "v[1]" / "a[0].jsonl", records("Bracket"))
    put(folder / "v[1]" / "b.jsonl", records("b"))
    put(folder / "v[1]" / "c.toml", '[domains.code]\nfiles = "a[0].jsonl"\n[domains.web]\nfiles = "b*"\n')


def incomplete_save(folder: Path) -> None:
    saved_by_datasets(folder)
    (folder / "code" / "train_sft" / "data-00000-of-00001.arrow").unlink()


def linked(folder: Path) -> None:
    put(folder.parent / "elsewhere" / "1.jsonl", records("Linked"))
    put(folder / "code" / "0.jsonl", records("Here"))
    (folder / "code" / "more").symlink_to(folder.parent / "elsewhere")


def linked_inside(folder: Path) -> None:
    put(folder / "code" / "0.jsonl", records("Here", 40))
    (folder / "code" / "again.jsonl").symlink_to(folder / "code" / "0.jsonl")
    os.link(folder / "code" / "0.jsonl", folder / "code" / "hard.jsonl")
    (folder / "code" / "up").symlink_to(folder)


def pointers(folder: Path) -> None:
    put(folder / "code" / "0.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")


def text_beside_records(folder: Path) -> None:
    put(folder / "code" / "0.jsonl", records("Record"))
    put(folder / "code" / "log.txt", " ".join(texts("Text")))


def not_text(folder: Path) -> None:
    put(folder / "code" / "0.txt", "in sixteen bits".encode("utf-16-le"))


def scripts(folder: Path) -> None:
    put(folder / "code" / "main.py", "print()")
    put(folder / "tv" / "0.jsonl", records("tv"))


def empty_files(folder: Path) -> None:
    put(folder / "code" / "0.jsonl", records("code"))
    put(folder / "code" / "1.jsonl", b"")
    put(folder / "code" / "2.json", b"[]")


def missing_part(folder: Path) -> None:
    for part in (0, 2):
        put(folder / "code" / f"train-0000{part}-of-00003.jsonl", records(f"code{part}"))


def copied_tokens(folder: Path) -> None:
    for name in ("a.npy", "a - Copy.npy"):
        put(folder / "code" / name, np.arange(100, dtype="<u2").tobytes())


def cut_stream(folder: Path) -> None:
    (folder / "code").mkdir(parents=True)
    table = pa.table({"text": texts("code")})
    with pa.OSFile(str(folder / "code" / "0.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    path = folder / "code" / "0.arrow"
    path.write_bytes(path.read_bytes()[:-8])


def own_splits(folder: Path) -> None:
    for name in ("code", "web"):
        put(folder / name / "0.jsonl", records(name))
    put(folder / "dataset_dict.json", json.dumps({"splits": ["code", "web"]}))


def unused_keys(folder: Path) -> None:
    put(folder / "w" / "0.jsonl", records("web"))
    put(folder / "m.toml", '[domains.code]\nfiles = "w/*"\ntokens = 5\n')


def broken_link(folder: Path) -> None:
    put(folder / "code" / "0.jsonl", records("Here"))
    (folder / "code" / "1.jsonl").symlink_to(folder / "gone.jsonl")


def shared_by_two(folder: Path) -> None:
    put(folder / "data" / "a.jsonl", records("a"))
    put(folder / "b" / "0.jsonl", records("b"))
    put(folder / "c.toml", '[domains.code]\nfiles = "data/a.jsonl"\n[domains.web]\nfiles = ["data/*", "b/*.jsonl"]\n')


def manifest_of_folders(folder: Path) -> None:
    put(folder / "a" / "x" / "0.jsonl", records("Inner"))
    put(folder / "a" / ".x" / "0.jsonl", records("Hidden"))
    put(folder / "a" / "x" / "test" / "0.jsonl", records("Intest"))
    put(folder / "b" / "y" / "0.jsonl", records("b"))
    put(folder / "c.toml", '\ufeff[domains.code]\nfiles = "a"\n[domains.web]\nfiles = "b/**/*.jsonl"\n')


def too_deep(folder: Path) -> None:
    for name in ("code", "web"):
        put(folder / "v1" / name / "0.jsonl", records(name))


def beside_folders(folder: Path) -> None:
    put(folder / "code.jsonl", records("Named"))


def nothing_but(folder: Path) -> None:
    put(folder / "a" / "0.csv", b"text\nx\n")


FILES = {
    "furniture beside files": Case(
        with_furniture, neither=("Card", "Mac", "Hidden", "Stray"), said=r"files not read: 1 \(notes.txt\)"
    ),
    "furniture beside records": Case(
        records_with_furniture, domain_field="meta.set", documents={"code": 30, "web": 30}
    ),
    "shards in sub-folders": Case(beside_web(nested), trained=("Top", "Deep")),
    "other compressions": Case(
        beside_web(other_formats), trained=("Xz", "Bz", "Zstd"), said=r"files not read: 1 \(4.csv\)"
    ),
    "a saved dataset": Case(
        beside_web(saved_by_datasets), trained=("Intrain_sft",), held_out=("Intest_sft",), neither=("Stale",)
    ),
    "a saved dataset without a file": Case(
        beside_web(incomplete_save), refused="data-00000-of-00001.arrow is not there"
    ),
    "a link that leads out": Case(beside_web(linked), refused=r"more is a link that leads out of .*--follow-links"),
    "a link that leads out, allowed": Case(beside_web(linked), trained=("Linked",), follow_links=True),
    "links to the same": Case(
        beside_web(linked_inside), documents={"code": 40}, said="is read once.*is read once.*is read once"
    ),
    "a broken link": Case(beside_web(broken_link), refused="1.jsonl is a broken link .*does not exist"),
    "a file of two domains": Case(shared_by_two, data="c.toml", refused="a.jsonl would be read for .*code, and .*web"),
    "folders in a manifest": Case(
        manifest_of_folders, data="c.toml", trained=("Inner",), held_out=("Intest",), neither=("Hidden",)
    ),
    "a link to the folder of another domain": Case(
        beside_web(linked_domain), refused="zeb and .*web are the same folder"
    ),
    "a pointer of git-lfs": Case(beside_web(pointers), refused=r"0.txt: a pointer of git-lfs.*git lfs pull"),
    "text beside records": Case(
        beside_web(text_beside_records),
        trained=("Record", "Text"),
        said="text files beside records are taken for documents too: code/log.txt",
    ),
    "bytes that are no text": Case(beside_web(not_text), refused="0.txt: holds NUL bytes"),
    "a folder of scripts": Case(beside_web(scripts), domains=("tv", "web"), said=r"files not read: 1 \(main.py\)"),
    "empty files": Case(beside_web(empty_files), said=r"files without any document: .*1.jsonl, .*2.json \(2\)"),
    "a part that is missing in a folder": Case(beside_web(missing_part), said="code: 2 of 3 parts are there"),
    "copies of tokens": Case(beside_web(copied_tokens), refused="hold the same tokens; remove one"),
    "a stream that is cut": Case(beside_web(cut_stream), refused="0.arrow: truncated"),
    "splits that are domains": Case(own_splits),
    "keys that do nothing": Case(unused_keys, data="m.toml", refused="domain code: tokens does nothing with files"),
    "brackets in names": Case(brackets, data="v[1]/c.toml", trained=("Bracket",)),
    "one folder too deep": Case(too_deep, refused=r"one folder with data, v1, .* --data .*/data/v1"),
    "a file beside folders": Case(beside_web(beside_folders), trained=("Named",)),
    "nothing that is read": Case(nothing_but, refused=r"nothing to read .*, only files such as 0.csv; acodm reads"),
    "a folder of unread data": Case(
        beside_web(lambda folder: put(folder / "code" / "0.csv", b"text\nx\n")),
        refused="code has no training file .*0.csv",
    ),
}


# Names


def snapshots(folder: Path) -> None:
    for name in ("CC-MAIN-2013-20", "CC-MAIN-2014-10", "wiki-20220301", "part_0", "part_1"):
        put(folder / f"web{name}.jsonl", records(name))


def numbers_only(folder: Path) -> None:
    for number in range(3):
        put(folder / "train" / f"0{number}.jsonl", records(f"{number}"))


NAMES = {
    "snapshots are domains": Case(
        snapshots,
        domains=("webCC-MAIN-2013-20", "webCC-MAIN-2014-10", "webpart", "webwiki-20220301"),
        said="webCC-MAIN-2013-20, webCC-MAIN-2014-10 are domains of their own.* webpart is one domain of 2 parts",
    ),
    "numbers name no domain": Case(numbers_only, refused=r"00.jsonl names no domain; .*--domain-field"),
}


# Records


def whole_numbers(folder: Path) -> None:
    put(folder / "x.jsonl", [{"text": text, "meta": {"set": i % 2 + 3}} for i, text in enumerate(texts("x", 60))])


def labels(folder: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "set": datasets.ClassLabel(names=["code", "web"])})
    rows = {"text": texts("x", 60), "set": [i % 2 for i in range(60)]}
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "x.parquet"))


def json_in_a_text(folder: Path) -> None:
    rows = [
        {"text": text, "meta": json.dumps({"set": ("code", "web")[i % 2]})} for i, text in enumerate(texts("x", 60))
    ]
    put(folder / "x.jsonl", rows)


def some_without_domain(folder: Path) -> None:
    put(
        folder / "x.jsonl",
        [*alternating("x", ("code", "web")), {"text": "Nowhere"}, {"text": "Null", "meta": {"set": None}}],
    )


def bad_records(folder: Path) -> None:
    bad = b'{"text": null}\n{"text": 7}\n{"text": "\\ud83d"}\n{"text": \n{"body": "x"}\n"x"\n{"text": "\xff"}\n'
    put(folder / "code" / "0.jsonl", lines(records("Good")) + bad)


def empties(folder: Path) -> None:
    put(folder / "code" / "0.jsonl", [x for r in records("code", 60) for x in (r, {"text": ""}, {"text": " \n"})])


def marks(folder: Path) -> None:
    put(folder / "code" / "0.jsonl", b"\xef\xbb\xbf" + lines(records("code")))
    put(folder / "code" / "1.txt", b"\xef\xbb\xbf" + " ".join(texts("Marked")).encode())


def arrays(folder: Path) -> None:
    put(folder / "code" / "0.json", json.dumps(records("Indented", 40), indent=1))
    put(folder / "code" / "1.json", json.dumps(records("Dense", 40)))
    put(folder / "code" / "2.json", "\n".join(json.dumps(record, indent=1) for record in records("Spread", 40)))


def quoted_separators(folder: Path) -> None:
    put(
        folder / "code" / "0.jsonl",
        [{"text": f"The marker <|endoftext|> is text. {text}"} for text in texts("code", 60)],
    )


def utf16(folder: Path) -> None:
    put(folder / "code" / "0.jsonl", lines(records("code")).decode().encode("utf-16"))


RECORDS = {
    "whole numbers name domains": Case(whole_numbers, domain_field="meta.set", domains=("3", "4")),
    "labels name domains": Case(labels, domain_field="set"),
    "JSON in a text": Case(json_in_a_text, domain_field="meta.set"),
    "records without a domain": Case(
        some_without_domain, domain_field="meta.set", refused="x.jsonl:61: no domain .*--skip-bad"
    ),
    "records without a domain, left out": Case(
        some_without_domain,
        domain_field="meta.set",
        documents={"code": 30, "web": 30},
        skip_bad=2,
        said="2 records were left out: .*x.jsonl:61: no domain",
    ),
    "a domain without text": Case(
        blank_domain, domain_field="meta.set", said="domains left out, because none of their documents has text: blank"
    ),
    "bad records": Case(beside_web(bad_records), refused="0.jsonl:41: no text .*null.*--skip-bad"),
    "one bad record too many": Case(
        beside_web(bad_records), skip_bad=6, refused=r"not UTF-8.* \(6 such records were left"
    ),
    "bad records, left out": Case(
        beside_web(bad_records), skip_bad=7, documents={"code": 40}, said="7 records were left out: .*which is a number"
    ),
    "empty documents": Case(beside_web(empties), documents={"code": 60}, said="left out: 120 empty documents"),
    "byte order marks": Case(beside_web(marks), trained=("code 1", "Marked")),
    "JSON that is not in lines": Case(beside_web(arrays), documents={"code": 120}),
    "a document that quotes a separator": Case(beside_web(quoted_separators), documents={"code": 60}),
    "UTF-16": Case(beside_web(utf16), refused="0.jsonl: not UTF-8 but UTF-16"),
}


def said_of(case: Case, data: Path, tokenizer: Path, cache: Path) -> str:
    """What the command line prints of a corpus."""
    arguments: list[object] = ["--data", data / case.data, "--tokenizer", tokenizer, "--cache-dir", cache]
    arguments += ["--domain-field", case.domain_field] if case.domain_field else []
    arguments += ["--skip-bad", case.skip_bad, *(["--follow-links"] if case.follow_links else [])]
    run = ["--model", "llama-tiny", "--seq-len", 8, "--batch", 8, "--steps", 2, "--device", "cpu"]
    outcome = acodm("proxy-train", "--dry-run", *run, *arguments)
    assert outcome.code == 0, outcome.stderr
    return " ".join(outcome.stderr.split())


def documents(tokenizer: Tokenizer, tokens: np.ndarray) -> list[str]:
    cuts = np.flatnonzero(tokens == tokenizer.end_of_document)
    return [tokenizer.backend.decode(part[part != tokenizer.end_of_document].tolist()) for part in np.split(tokens, cuts + 1) if len(part)]  # fmt: skip


def check_documents(case: Case, corpus: Corpus) -> None:
    sides: list[list[str]] = [[], []]
    for domain in corpus.domains:
        found = [documents(corpus.tokenizer, store.tokens) for store in (domain.train, domain.validation)]
        assert all(found), f"{domain.name} has both splits"
        assert all(text.strip() for side in found for text in side)
        if domain.name in case.documents:
            assert sum(map(len, found)) == case.documents[domain.name]
        for side, texts_ in zip(sides, found, strict=True):
            side += texts_
    train, validation = ("\n".join(side) for side in sides)
    for mark in case.trained:
        assert mark in train, mark
    for mark in case.held_out:
        assert mark in validation, mark
        assert mark not in train, mark
    for mark in case.neither:
        assert mark not in train + validation, mark


CASES = SPLITS | FILES | NAMES | RECORDS


@pytest.mark.parametrize("name", CASES)
def test_layout(name: str, tokenizer_file: Path, tmp_path: Path) -> None:
    case, data = CASES[name], tmp_path / "data"
    data.mkdir()
    case.write(data)
    settings = CorpusSettings(
        str(data / case.data),
        str(tokenizer_file),
        case.domain_field,
        cache_dir=str(tmp_path / "cache"),
        skip_bad=case.skip_bad,
        follow_links=case.follow_links,
    )
    if case.refused:
        with pytest.raises(UsageError, match=case.refused) as caught:
            open_corpus(settings)
        assert "\n" not in str(caught.value)
        return
    corpus = open_corpus(settings)
    assert tuple(corpus.names) == case.domains
    check_documents(case, corpus)
    if case.said:
        said = said_of(case, data, tokenizer_file, tmp_path / "cache")
        assert re.search(case.said, said), said


# Tokens of other tools


def ids(tokenizer: Tokenizer, mark: str, count: int = 40, end: bool = True) -> list[list[int]]:
    ending = [tokenizer.end_of_document] if end else []
    return [tokenizer.backend.encode(text).ids + ending for text in texts(mark, count)]


def write_indexed(stem: Path, rows: list[list[int]]) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    np.concatenate(rows).astype("<u2").tofile(stem.with_suffix(".bin"))
    write_index(stem.with_suffix(".idx"), [len(row) for row in rows], 8, 2)


def write_raw(path: Path, rows: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.concatenate(rows).astype("<u2").tofile(path)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return load_tokenizer(str(tokenizer_file))


def test_tokens_in_several_files_and_formats(tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path) -> None:
    """The same documents as .bin in one and three parts, .npy with and without a header, and .ds are the same stream."""
    parts = [ids(tokenizer, f"part{number}") for number in range(3)]
    rows = [row for part in parts for row in part]
    write_indexed(tmp_path / "data" / "one" / "x_text_document", rows)
    for number, part in enumerate(parts):
        write_indexed(tmp_path / "data" / "several" / f"x_{number}_text_document", part)
    write_raw(tmp_path / "data" / "raw" / "x.npy", rows)
    (tmp_path / "data" / "numpy").mkdir()
    np.save(tmp_path / "data" / "numpy" / "x.npy", np.concatenate(rows).astype("<u2"))
    write_raw(tmp_path / "data" / "datatrove" / "x.ds", rows)
    ends = np.cumsum([len(row) for row in rows]).astype("<u8")
    ends.tofile(tmp_path / "data" / "datatrove" / "x.ds.index")
    (tmp_path / "data" / "datatrove" / "x.ds.metadata").write_text(f"tok|2\n{ends[-1]}\n1T")
    corpus = open_corpus(CorpusSettings(str(tmp_path / "data"), str(tokenizer_file)))
    assert corpus.names == ["datatrove", "numpy", "one", "raw", "several"]
    first = corpus.domains[0]
    for domain in corpus.domains:
        assert domain.key == first.key
        assert np.array_equal(domain.train.tokens, first.train.tokens)
        assert np.array_equal(domain.validation.tokens, first.validation.tokens)
        assert domain.provenance.documents == (domain.train.tokens == tokenizer.end_of_document).sum()
        assert not domain.provenance.warnings
        for index in range(first.train.num_sequences(16)):
            assert np.array_equal(domain.train.sequence(index, 16), first.train.tokens[16 * index : 16 * index + 17])
    assert (corpus.account.read, corpus.account.furniture, corpus.account.unread) == (13, [], [])


def test_tokens_without_separators_are_warned_of(tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path) -> None:
    write_indexed(tmp_path / "data" / "a", ids(tokenizer, "a", end=False))
    write_raw(tmp_path / "data" / "b.npy", ids(tokenizer, "b", end=False))
    write_indexed(tmp_path / "data" / "c", ids(tokenizer, "c"))
    corpus = open_corpus(CorpusSettings(str(tmp_path / "data"), str(tokenizer_file)))
    warned = [warning for warning in corpus.warnings if "do not end with the end-of-document token" in warning]
    assert [warning.split(":")[0] for warning in warned] == ["domain a", "domain b"]
    assert "100% of the documents of a.bin" in warned[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\nx", "array of object"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr'", "not a readable .npy"),
        (b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<u2', 'fortran_order': False, 'shape': (99999,), }".ljust(117) + b"\n12", "truncated"),
        (b"abc", "not a whole number of ids"),
        (b"", "holds no tokens"),
        (struct.pack("<100I", *range(100)), "ids seem to take 4 bytes each"),
    ],
)  # fmt: skip
def test_bad_files_of_tokens(content: bytes, message: str, tokenizer_file: Path, tmp_path: Path) -> None:
    put(tmp_path / "data" / "a" / "0.npy", content)
    put(tmp_path / "data" / "b" / "0.npy", content)
    with pytest.raises(UsageError, match=message):
        open_corpus(CorpusSettings(str(tmp_path / "data"), str(tokenizer_file)))


def test_parquet_rows_of_any_size(tmp_path: Path) -> None:
    """Few values that stand for many rows do not become many copies at once."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["word " * 800_000]))
    pq.write_table(pa.table({"text": values}), tmp_path / "x.parquet")
    batches = (batch for batch, _ in parquet_batches(tmp_path / "x.parquet", "x", PLAIN))
    assert max(batch.nbytes for batch in itertools.islice(batches, 5)) < 1 << 29


def test_the_key_of_tokens_does_not_depend_on_how_they_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only samples of them are hashed."""
    monkeypatch.setattr(token_files, "_PIECE", 64)
    monkeypatch.setattr(token_files, "_CHECKED_TOKENS", 500)
    monkeypatch.setattr(token_files, "_SAMPLES", 7)
    tokens = np.random.default_rng(0).integers(0, 500, 5000)
    keys = set()
    for cuts in ([], [1000, 1001, 3333], list(range(100, 5000, 100))):
        files = []
        for number, part in enumerate(np.split(tokens, cuts)):
            dtype = np.dtype(("<u2", "<u4")[number % 2])
            path = tmp_path / f"{len(cuts)}.{number}"
            part.astype(dtype).tofile(path)
            files.append(token_files.TokenFile(path, dtype, 0, 0, len(part)))
        keys.add(token_files.content_key(files))
    assert len(keys) == 1


def test_archives_that_follow_each_other(tmp_path: Path) -> None:
    """None is passed over because its beginning is damaged."""
    for suffix, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        parts = [pack(lines(records(mark, 20))) for mark in ("First", "Second")]
        path = tmp_path / f"x.jsonl{suffix}"
        path.write_bytes(b"".join(parts))
        assert len(list(read_documents(path))) == 40
        path.write_bytes(parts[0] + bytes([parts[1][0] ^ 1]) + parts[1][1:])
        with pytest.raises(UsageError, match="damaged or truncated archive"):
            list(read_documents(path))
        path.write_bytes(b"")
        with pytest.raises(UsageError, match="damaged or truncated archive"):
            list(read_documents(path))


def test_an_array_in_one_line_may_be_longer_than_any_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 4096)
    (tmp_path / "x.json").write_text("\n\n" + json.dumps(records("a", 500)))
    assert [document.text for document in read_documents(tmp_path / "x.json")] == texts("a", 500)

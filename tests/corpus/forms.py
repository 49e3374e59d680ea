"""The same documents in every form that --data takes. Of each domain the order of documents is kept."""

from __future__ import annotations

import gzip
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from acodm_cli.corpus.tokenizer import Tokenizer

SPLITS = ("train", "validation")
# domain -> split -> texts
Texts = dict[str, dict[str, list[str]]]


def read_folders(folder: Path) -> Texts:
    """A corpus with one sub-folder per domain of train and validation .jsonl or .jsonl.gz."""
    texts: Texts = {}
    for domain in sorted(path for path in folder.iterdir() if path.is_dir()):
        texts[domain.name] = {}
        for split in SPLITS:
            (path,) = domain.glob(f"{split}.jsonl*")
            with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
                texts[domain.name][split] = [json.loads(line)["text"] for line in lines]
    return texts


def interleaved(texts: Texts, split: str) -> Iterator[tuple[str, str]]:
    """(domain, text) in random turns of the domains."""
    turns = [name for name, splits in texts.items() for _ in splits[split]]
    random.Random(0).shuffle(turns)
    streams = {name: iter(splits[split]) for name, splits in texts.items()}
    return ((name, next(streams[name])) for name in turns)


def write_one_file(texts: Texts, folder: Path) -> None:
    """Records of all domains in one file per split, as in The Pile."""
    folder.mkdir(parents=True)
    for split in SPLITS:
        with (folder / f"{split}.jsonl").open("w") as file:
            for name, text in interleaved(texts, split):
                file.write(json.dumps({"text": text, "meta": {"pile_set_name": name}}) + "\n")


def write_parquet(texts: Texts, folder: Path) -> None:
    """A Parquet file per domain and split, the training split in two parts."""
    folder.mkdir(parents=True)
    for name, splits in texts.items():
        half = len(splits["train"]) // 2
        parts = {
            f"{name}-00000-of-00002": splits["train"][:half],
            f"{name}-00001-of-00002": splits["train"][half:],
            f"{name}.validation": splits["validation"],
        }
        for stem, part in parts.items():
            pq.write_table(pa.table({"text": part, "id": range(len(part))}), folder / f"{stem}.parquet")


def write_dataset(texts: Texts, folder: Path) -> None:
    """A hub-style dataset: Parquet splits with a struct column that holds the domain."""
    (folder / "data").mkdir(parents=True)
    for split in SPLITS:
        records = list(interleaved(texts, split))
        meta = pa.array([{"pile_set_name": name, "length": len(text)} for name, text in records])
        table = pa.table({"text": [text for _, text in records], "meta": meta})
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet", row_group_size=500)


def write_manifest(texts: Texts, folder: Path) -> None:
    """A manifest over zstd files with texts in a field of another name."""
    folder.mkdir(parents=True)
    lines = ['name = "manifested"', 'text_field = "content"']
    for name, splits in texts.items():
        for split in SPLITS:
            with pa.CompressedOutputStream(str(folder / f"{split}_{name}.jsonl.zst"), "zstd") as stream:
                for text in splits[split]:
                    stream.write((json.dumps({"content": text}) + "\n").encode())
        lines += [f'[domains."{name}"]', f'files = "train_{name}.*"', f'validation = ["validation_{name}.jsonl.zst"]']
    (folder / "corpus.toml").write_text("\n".join(lines) + "\n")


def write_indexed(texts: Texts, folder: Path, tokenizer: Tokenizer) -> None:
    """.bin and .idx per domain and split, written from the description of the format."""
    for name, splits in texts.items():
        (folder / name).mkdir(parents=True)
        for split, documents in splits.items():
            lengths = []
            with (folder / name / f"{split}.bin").open("wb") as file:
                for ids in document_tokens(documents, tokenizer):
                    np.array(ids, dtype="<u2").tofile(file)
                    lengths.append(len(ids))
            write_index(folder / name / f"{split}.idx", lengths, code=8, item_size=2)


def document_tokens(documents: list[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    for start in range(0, len(documents), 256):
        for encoding in tokenizer.backend.encode_batch(documents[start : start + 256], add_special_tokens=False):
            yield [*encoding.ids, tokenizer.end_of_document]


def write_index(path: Path, lengths: list[int], code: int, item_size: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * item_size
    with path.open("wb") as file:
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, code, len(lengths), len(lengths) + 1))
        np.array(lengths, dtype="<i4").tofile(file)
        offsets.astype("<i8").tofile(file)
        np.arange(len(lengths) + 1, dtype="<i8").tofile(file)


def write_indexed_by_megatron(texts: Texts, folder: Path, tokenizer: Tokenizer) -> None:
    """The same by Megatron-LM's own writer. Raises ImportError where megatron-core is not installed."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    folder.mkdir(parents=True)
    for name, splits in texts.items():
        for split, documents in splits.items():
            stem = f"{name}_text_document" if split == "train" else f"{name}-validation"
            builder = IndexedDatasetBuilder(str(folder / f"{stem}.bin"), dtype=np.uint16)
            for ids in document_tokens(documents, tokenizer):
                builder.add_document(torch.tensor(ids), [len(ids)])
            builder.finalize(str(folder / f"{stem}.idx"))


# form -> (writer, what to give as --data inside of its folder, --domain-field)
FORMS = {
    "one shuffled file": (write_one_file, "", "meta.pile_set_name"),
    "Parquet": (write_parquet, "", None),
    "manifest": (write_manifest, "corpus.toml", None),
}
TOKEN_FORMS = {
    ".bin/.idx": (write_indexed, ""),
    ".bin/.idx by megatron-core": (write_indexed_by_megatron, ""),
}

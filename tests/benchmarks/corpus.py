"""The corpus's promises, measured.

    python -m tests.benchmarks.corpus forms --data DIR --tokenizer FILE        every form of --data gives the same stores
    python -m tests.benchmarks.corpus throughput --data DIR --tokenizer FILE   against bare encode_batch, in turns
    python -m tests.benchmarks.corpus batches                                  sampler time, 10 to 1000 domains
    python -m tests.benchmarks.corpus memory                                   of a streamed dataset, 200 MB and 2 GB

DIR has a folder per domain with train and validation .jsonl or .jsonl.gz.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
from tokenizers import models, pre_tokenizers

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.readers import Fields
from acodm_cli.corpus.sampler import Sampler
from acodm_cli.corpus.sources import HubSource
from acodm_cli.corpus.token_store import DomainStore, TokenStore, open_source
from acodm_cli.corpus.tokenizer import load_tokenizer
from tests.benchmarks.environment import save
from tests.conftest import opened
from tests.corpus import forms


def same(found: Corpus, expected: Corpus) -> bool:
    return found.fingerprint == expected.fingerprint and all(
        a.name == b.name
        and np.array_equal(a.train.tokens, b.train.tokens)
        and np.array_equal(a.validation.tokens, b.validation.tokens)
        for a, b in zip(found.domains, expected.domains, strict=True)
    )


def measure_forms(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(options.tokenizer)
    cache = str(folder / "cache")
    expected = opened(options.data, options.tokenizer, cache)
    texts = forms.read_folders(Path(options.data))
    result: dict[str, Any] = {"tokens": int(expected.tokens_K.sum()), "domains": len(expected.names), "same": {}}

    def compare(form: str, data: Path, domain_field: str | None) -> None:
        result["same"][form] = same(opened(data, options.tokenizer, cache, domain_field), expected)
        print(f"{form:30} {result['same'][form]}", flush=True)
        shutil.rmtree(folder / "data")

    for form, (write, inside, domain_field) in forms.FORMS.items():
        write(texts, folder / "data")
        compare(form, folder / "data" / inside, domain_field)
    for form, (write_tokens, inside) in forms.TOKEN_FORMS.items():
        try:
            write_tokens(texts, folder / "data", tokenizer)
        except ImportError:
            result["same"][form] = "not installed"
            continue
        compare(form, folder / "data" / inside, None)
    forms.write_dataset(texts, folder / "data")
    source = HubSource(None, str(folder / "data"), Fields(domain="meta.pile_set_name"))
    stores = open_source(source, tokenizer, folder / "cache", lambda *_: None).domains
    result["same"]["streamed dataset"] = [s.key for s in stores] == [d.key for d in expected.domains]
    print(f"{'streamed dataset':30} {result['same']['streamed dataset']}")
    return result


def measure_throughput(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Bare: the same texts, already in memory, in one call of encode_batch. Ours: from compressed files to the store."""
    backend = load_tokenizer(options.tokenizer).backend
    texts = [text for splits in forms.read_folders(Path(options.data)).values() for s in splits.values() for text in s]
    size = sum(len(text.encode()) for text in texts)
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    for turn in range(options.turns):
        for kind in ("bare", "ours") if turn % 2 else ("ours", "bare"):
            started = time.perf_counter()
            if kind == "bare":
                backend.encode_batch(texts, add_special_tokens=False)
            else:
                opened(options.data, options.tokenizer, folder / f"cache{turn}")
            seconds[kind].append(time.perf_counter() - started)
            print(kind, f"{seconds[kind][-1]:.2f} s", flush=True)
    ratios = [bare / ours for bare, ours in zip(seconds["bare"], seconds["ours"], strict=True)]
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    return {
        "bytes": size,
        "seconds": medians,
        "megabytes_per_second": {kind: size / 1e6 / value for kind, value in medians.items()},
        "throughput_ratio": statistics.median(ratios),
    }


class SimulatedTokens:
    """As many tokens as one likes, all the same."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: slice) -> np.ndarray:
        return np.zeros(key.stop - key.start, np.uint16)


def measure_batches(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Of 32 x 256 tokens: from weights to a batch on the host."""
    rows = []
    for num_domains in (10, 100, 1000):
        store = TokenStore(SimulatedTokens(10**9 * 256 + 1))  # type: ignore[arg-type]
        corpus = Corpus("simulated", None, [DomainStore(str(k), store, store, "") for k in range(num_domains)])  # type: ignore[arg-type]
        sampler = Sampler(corpus, 32, 256, 0)
        generator = np.random.default_rng(0)
        weights = [generator.dirichlet(np.ones(num_domains)) for _ in range(300)]
        seconds: dict[str, list[float]] = {"pick": [], "draw": []}
        for index, weights_K in enumerate(weights):
            kind = ("pick", "draw")[index % 2]
            started = time.perf_counter()
            getattr(sampler, kind)(weights_K)
            seconds[kind].append(time.perf_counter() - started)
        row = {"domains": num_domains} | {f"{k}_microseconds": 1e6 * statistics.median(v) for k, v in seconds.items()}
        print(row, flush=True)
        rows.append(row)
    return {"sequences_per_domain": 10**9, "batch": [32, 256], "rows": rows}


def write_generated(folder: Path, megabytes: int) -> None:
    """A Parquet dataset of random words in four domains, in row groups of 1000."""
    (folder / "data").mkdir(parents=True)
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghij", k=6)) for _ in range(2000)]
    schema = pa.schema([("text", pa.string()), ("meta", pa.struct([("set", pa.string())]))])
    with pq.ParquetWriter(folder / "data" / "train-00000-of-00001.parquet", schema, compression="none") as writer:
        paragraphs = [" ".join(generator.choices(words, k=280)) for _ in range(500)]  # 2 KB each
        for _ in range(megabytes // 2):
            texts = generator.choices(paragraphs, k=1000)
            meta = [{"set": "abcd"[i % 4]} for i in range(1000)]
            writer.write_table(pa.table({"text": texts, "meta": meta}, schema=schema))


def measure_memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    peaks = {}
    for megabytes in options.megabytes:
        write_generated(folder / str(megabytes), megabytes)
        command = [sys.executable, "-m", "tests.benchmarks.corpus", "stream", "--data", str(folder / str(megabytes))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[str(megabytes)] = json.loads(done.stdout)
        print(megabytes, "MB:", peaks[str(megabytes)], flush=True)
        shutil.rmtree(folder / str(megabytes))
    first, last = (peaks[str(size)]["peak_bytes"] for size in (options.megabytes[0], options.megabytes[-1]))
    return {"peaks": peaks, "peak_ratio": last / first}


def stream(options: argparse.Namespace, folder: Path) -> None:
    """In a process of its own: tokenise a dataset and print what it took."""
    backend = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "<|endoftext|>": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(folder / "tokenizer.json"))
    source = HubSource(None, options.data, Fields(domain="meta.set"))
    started = time.perf_counter()
    stores = open_source(
        source, load_tokenizer(str(folder / "tokenizer.json")), folder / "cache", lambda *_: None
    ).domains
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    tokens = sum(len(store.train) for store in stores)
    print(json.dumps({"peak_bytes": peak, "tokens": tokens, "seconds": time.perf_counter() - started}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {
        "forms": measure_forms,
        "throughput": measure_throughput,
        "batches": measure_batches,
        "memory": measure_memory,
    }
    parser.add_argument("kind", choices=[*kinds, "stream"])
    parser.add_argument("--data")
    parser.add_argument("--tokenizer")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.kind == "stream":
            stream(options, Path(folder))
            return
        result = kinds[options.kind](options, Path(folder))
    print(json.dumps({k: v for k, v in result.items() if k.endswith("ratio")}))
    save(f"corpus_{options.kind}", result, options.out)


if __name__ == "__main__":
    main()

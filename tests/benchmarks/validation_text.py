"""How well validation stands for its domains: the beginning of each split, as it was once read, against windows spread over it.

    python -m tests.benchmarks.validation_text --data DIR --tokenizer FILE

A model is trained for some steps, and measured on 16 sequences from the beginning of each validation split, on the sequences that
a run of --steps steps takes, and on many more.
"""

from __future__ import annotations

import argparse

import numpy as np

from acodm_cli.corpus.held_out import HeldOutText, Windows, validation_texts, validation_windows
from acodm_cli.engine.evaluate import measure
from acodm_cli.runs.build import build_run
from acodm_cli.runs.run import Run
from acodm_cli.runs.settings import RunSettings


def beginnings(run: Run, count: int) -> list[HeldOutText]:
    """The first sequences of each validation split."""
    corpus, seq_len = run.corpus, run.settings.seq_len
    texts = []
    for domain in corpus.domains:
        windows = Windows(domain.validation, seq_len, corpus.tokenizer.end_of_document, "report")
        windows.blocks, windows.ends = [(0, count)], np.array([count])
        texts.append(windows.text(domain.name, count, corpus.tokenizer.token_bytes_V))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--model", default="pythia-14m")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--train", type=int, default=60)
    parser.add_argument("--many", type=int, default=128)
    options = parser.parse_args()
    run = build_run(
        RunSettings(
            model=options.model, steps=options.steps, mixer="uniform", data=options.data, tokenizer=options.tokenizer
        )
    )
    trainer, corpus = run.trainer, run.corpus
    for event in run.steps():
        if event.step == options.train:
            break
    many = validation_texts(
        corpus, validation_windows(corpus, run.settings.seq_len), [options.many] * len(corpus.names)
    )
    kinds = {"first 16": beginnings(run, 16), "spread": trainer.texts, f"{options.many}": many}
    found = {kind: measure(trainer.loss, texts, 32, trainer.compute, trainer.ranks) for kind, texts in kinds.items()}
    print(f"{'domain':<20}", *(f"{kind:>10} documents, loss, error" for kind in kinds))
    for index, name in enumerate(corpus.names):
        cells = []
        for kind, texts in kinds.items():
            loss, error = found[kind].losses_J[index], found[kind].errors_J[index]
            cells.append(f"{len(texts[index].tokens_D):>10} {loss:10.3f} {error / loss:10.1%}")
        print(f"{name:<20}", *cells)
    truth = found[f"{options.many}"].losses_J
    for kind in ("first 16", "spread"):
        distance = np.sqrt(np.mean((found[kind].losses_J - truth) ** 2))
        print(f"{kind}: {distance:.3f} nats from {options.many} sequences, root mean square over domains")


if __name__ == "__main__":
    main()

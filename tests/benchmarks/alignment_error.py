"""How well estimates of the gradient alignment W agree with that of the full-parameter gradient.

    python -m tests.benchmarks.alignment_error --data DIR --tokenizer FILE

Trains a pythia-14m with a uniform mixture. At each of several points of training it stops to look, with the weights held,
at fresh batches (--looks, 40). For each batch the truth is W (and H) of the gradient by *all* parameters, from one autograd pass per
domain; the estimates come from watched linear layers in one backward pass. Reported: Pearson correlation over domains of
W, per batch (mean of the first 20) and after a moving average with ξ = 0.9 over all of them; the relative error of H off the
diagonal; and the unbiased self term against the naive one.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acodm_cli.alignment.estimators import make_probe
from acodm_cli.alignment.gram import gradient_alignment
from acodm_cli.alignment.probe import DomainGradients, GradientProbe
from acodm_cli.alignment.settings import AlignmentSettings
from acodm_cli.corpus.sampler import Batch
from acodm_cli.engine.loss import token_losses
from acodm_cli.engine.trainer import Trainer
from acodm_cli.mixing.baselines.static import uniform_weights
from acodm_cli.mixing.mixer import Array
from acodm_cli.runs.build import build_run
from acodm_cli.runs.settings import RunSettings
from tests.benchmarks.environment import save

PER_BATCH, EMA = 20, 0.9
THREE_MLP_LAYERS = "*.layers.0.mlp.dense_4h_to_h,*.layers.2.mlp.dense_4h_to_h,*.layers.4.mlp.dense_4h_to_h"
# size, rotation, one token in so many, one step in so many
SKETCHES = [
    *[(size, 1, 1, 1) for size in (32, 64, 128)], (32, 3, 1, 1), (64, 2, 1, 1), (64, 3, 1, 1), (128, 3, 1, 1), (128, 6, 1, 1),
    *[(64, 6, every, steps) for steps in (1, 2, 4, 8) for every in (1, 2, 4, 8, 16)], (64, 12, 4, 1), (64, 1, 4, 1), (64, 1, 16, 1),
]  # fmt: skip


@dataclass(frozen=True)
class Way:
    """What to look at and how, in one of so many steps. The average then keeps ξ^steps per look, the same share per step."""

    settings: AlignmentSettings
    steps: int = 1


def ways(pattern: str, tokens: int) -> dict[str, Way]:
    """The ways whose name fits a pattern, by name. tokens: those of a batch."""

    def exact(layers: str) -> Way:
        return Way(AlignmentSettings("exact", alignment_layers=layers))

    chosen = {
        "exact, all layers": exact("all"),
        "exact, all but the input embedding": exact("attention,mlp,unembedding"),
        "exact, the publication's three MLP layers": exact(THREE_MLP_LAYERS),
        "exact, unembedding": exact("unembedding"),
    }
    for size, rotation, every, steps in SKETCHES:
        name = f"sketch, size {size}, rotation {rotation}, 1 in {every} tokens, 1 in {steps} steps"
        chosen[name] = Way(AlignmentSettings("sketch", size, rotation, tokens // every), steps)
    return {name: way for name, way in chosen.items() if fnmatchcase(name, pattern)}


def draw_at_once(trainer: Trainer, batch: int) -> None:
    """Makes the following batches of the run so large."""
    trainer.sampler.batch, trainer.sampler.rows = batch, slice(0, batch)


def full_gradients(model: nn.Module, batch: Batch, num_domains: int) -> Tensor:
    """G over all parameters, float32. [K, P]"""
    parameters = list(model.parameters())
    rows = []
    for domain in range(num_domains):
        tokens_BU = batch.tokens_BU[batch.domains_B == domain]
        loss = token_losses(model, tokens_BU[:, :-1], tokens_BU[:, 1:]).mean()
        rows.append(torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


def look(
    trainer: Trainer, probes: dict[AlignmentSettings, GradientProbe], batch: Batch, number: int
) -> dict[AlignmentSettings, DomainGradients]:
    """What every probe sees of one and the same forward and backward pass."""
    for probe in probes.values():
        probe.start(number, batch.domains_B, torch.full_like(batch.domains_B, trainer.settings.seq_len))
        probe.begin(slice(None), trainer.settings.seq_len)
    losses_BT = token_losses(trainer.model, batch.tokens_BU[:, :-1], batch.tokens_BU[:, 1:])
    losses_BT.mean().backward()
    found = {settings: probe.finish() for settings, probe in probes.items()}
    trainer.model.zero_grad()
    return found


def averaged(values: list[Array], steps: int = 1) -> Array:
    """Moving average with ξ = 0.9, started by the first value. steps: only every so manyth value is known."""
    average = values[0]
    for value in values[steps::steps]:
        average = EMA**steps * average + (1 - EMA**steps) * value
    return average


def pearson(a: Array, b: Array) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def measure(trainer: Trainer, chosen: dict[str, Way], num_looks: int) -> dict[str, Any]:
    num_domains = len(trainer.corpus.names)
    off_diagonal = ~np.eye(num_domains, dtype=bool)
    batches = [trainer.sampler.draw(uniform_weights(num_domains)) for _ in range(num_looks)]
    truths, mean_KP, naive_K = [], torch.zeros(()), np.zeros(num_domains)
    for batch in batches:
        gradients_KP = full_gradients(trainer.model, batch, num_domains)
        truths.append((gradients_KP @ gradients_KP.T).double().numpy())
        naive_K += np.diag(truths[-1]) / num_looks
        mean_KP = mean_KP + gradients_KP / num_looks
    different = dict.fromkeys(way.settings for way in chosen.values())
    probes = {settings: make_probe(trainer.model, num_domains, settings, seed=0) for settings in different}
    looks = [look(trainer, probes, batch, number) for number, batch in enumerate(batches)]
    for probe in reversed(probes.values()):
        probe.remove()
    squared_K = _squared(mean_KP, naive_K, num_looks)
    true_W = [gradient_alignment(gram_KK) for gram_KK in truths]
    rows: dict[str, Any] = {}
    for name, way in chosen.items():
        grams = [seen[way.settings].gram_KK.numpy() for seen in looks]
        selfs = [seen[way.settings].self_K.numpy() for seen in looks]
        found_W = [gradient_alignment(gram_KK) for gram_KK in grams]
        with_self = averaged([w + s for w, s in zip(found_W, selfs, strict=True)], way.steps)
        errors = [
            np.linalg.norm((h - t)[off_diagonal]) / np.linalg.norm(t[off_diagonal])
            for h, t in zip(grams, truths, strict=True)
        ]
        rows[name] = {
            "pearson_per_batch": float(
                np.mean([pearson(a, b) for a, b in zip(found_W, true_W, strict=True)][:PER_BATCH])
            ),
            "pearson_after_ema": pearson(averaged(found_W, way.steps), averaged(true_W)),
            "pearson_after_ema_with_self_term": pearson(with_self, averaged(true_W) + squared_K),
            "relative_error_of_gram": float(np.mean(errors)),
            "self_term_mean": float(np.mean(selfs)),
            "diagonal_mean": float(np.mean([np.diag(gram_KK) for gram_KK in grams])),
        }
        row = rows[name]
        print(
            f"  {name:68} {row['pearson_per_batch']:.3f}  {row['pearson_after_ema']:.3f}  {row['pearson_after_ema_with_self_term']:.3f}",
            flush=True,
        )
    return {
        "estimators": rows,
        # ‖mean of g‖² still holds 1/looks of the sampling variance; corrected with the naive term's excess.
        "self_term_truth_mean": float(squared_K.mean()),
        "self_term_naive_mean": float(naive_K.mean()),
    }


def _squared(mean_KP: Tensor, naive_K: Array, num_looks: int) -> Array:
    """‖E g_i‖² from the mean of n batches: E‖ḡ‖² = ‖E g‖² + σ²/n and E‖g‖² = ‖E g‖² + σ². [K]"""
    of_mean_K = mean_KP.square().sum(1).double().numpy()
    return (num_looks * of_mean_K - naive_K) / (num_looks - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--tokenizer")
    parser.add_argument("--cache-dir")
    parser.add_argument("--points", type=int, nargs="+", default=[50, 200, 500])
    parser.add_argument("--looks", type=int, default=40)
    parser.add_argument("--batch", type=int, default=52)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--train-batch", type=int, default=32)
    parser.add_argument("--ways", default="*", help="a pattern of names, such as 'sketch, size 64, rotation 6*'")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings = RunSettings(
        data=options.data, tokenizer=options.tokenizer, cache_dir=options.cache_dir, mixer="uniform", steps=1000,
        batch=options.train_batch, seq_len=options.seq_len, lr=1e-3, validate_every=10**6, validation_sequences=1, device="cpu",
        dtype="fp32",
    )  # fmt: skip
    trainer = build_run(settings).trainer
    points = {}
    steps = trainer.steps()
    for point in options.points:
        while trainer.step < point:
            next(steps)
        print(f"after {point} steps", flush=True)
        draw_at_once(trainer, options.batch)
        points[str(point)] = measure(trainer, ways(options.ways, options.batch * options.seq_len), options.looks)
        draw_at_once(trainer, options.train_batch)
    save(
        "alignment_error",
        {"batch": options.batch, "seq_len": options.seq_len, "looks": options.looks, "points": points},
        options.out,
    )


if __name__ == "__main__":
    main()

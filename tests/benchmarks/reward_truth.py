"""Whether a reward foretells: what happens to an objective if one domain is drawn more often, or less, from here on.

    python -m tests.benchmarks.study_corpora --corpus both --data DIR --eval DIR --out FOLDER
    python -m tests.benchmarks.reward_truth --corpus FOLDER --point 150
    python -m tests.benchmarks.reward_truth --report-only

Trains a pythia-14m with constant weights (--mixture), 16 x 128 tokens a step in a run of 400. At --point the run forks: into one branch
that goes on as before, and for each domain one that raises its weight by --raise at the cost of all others, and one that lowers it by as
much, or to zero. After --horizons steps all are measured on held-out text: of the domains, and of the targets HumanEval and MMLU. All
that is repeated with text in another order. What came of a domain, by --horizons, is the loss of its lowered branch less that of its
raised one, for four objectives: mean loss, log of the mean perplexity, and the loss of each target.

What could have been known at the fork: gradients of domains and of the targets' guide text by all parameters, each in two halves, and the
optimiser's second moments. Out of these, rewards are made (`candidates`), and their Pearson correlation over domains with what
came is reported, beside the noise ceiling: √(2r / (1 + r)), with r the correlation of two repeats, is what the truth itself would
have. Points are kept in results/reward_truth.json, each under its name.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acodm_cli.corpus.sampler import Sampler
from acodm_cli.engine.loss import IGNORED, token_losses
from acodm_cli.engine.trainer import Trainer
from acodm_cli.mixing.baselines.static import StaticMixer
from acodm_cli.mixing.mixer import Array
from acodm_cli.runs.build import build_run
from acodm_cli.runs.run import Run
from acodm_cli.runs.settings import RunSettings
from tests.benchmarks.alignment_error import pearson
from tests.benchmarks.environment import RESULTS, save

OBJECTIVES = ("mean loss", "mean perplexity", "humaneval", "mmlu")
BATCH, SEQ_LEN, STEPS = 16, 128, 400
# Batches per half of a domain, sequences of guide text, and held-out sequences of a domain and of a target.
LOOKS, GUIDES, DOMAIN_ROWS, TARGET_ROWS = 3, 192, 16, 64
LOOKS_SEED = 999
RESULT = "reward_truth"


# What is known at the fork


def gradient(trainer: Trainer, tokens_BU: Tensor, labels_BT: Tensor) -> tuple[Tensor, float]:
    """(gradient of the mean loss by all parameters [P], the loss)."""
    parameters = list(trainer.model.parameters())
    loss = token_losses(trainer.model, tokens_BU[:, :-1], labels_BT).sum() / (labels_BT != IGNORED).sum()
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]), float(loss.detach())


def gradients(run: Run) -> tuple[Tensor, Array]:
    """(the mean gradient of each domain and target in each half of what was looked at [2, K + J, P], their losses [K + J])."""
    trainer, targets = run.trainer, run.targets
    num_domains, size = len(run.corpus.names), run.parameters
    found_2NP, losses_N = torch.zeros(2, num_domains + len(targets), size), np.zeros(num_domains + len(targets))
    for domain in range(num_domains):
        # In an order of its own, so that no branch trains on just the text that was looked at.
        sampler = Sampler(run.corpus, BATCH, SEQ_LEN, LOOKS_SEED, None)
        for half in range(2):
            for _ in range(LOOKS):
                tokens_BU = sampler.draw(np.eye(num_domains)[domain]).tokens_BU
                gradient_P, loss = gradient(trainer, tokens_BU, tokens_BU[:, 1:])
                found_2NP[half, domain] += gradient_P / LOOKS
                losses_N[domain] += loss / (2 * LOOKS)
    for number, target in enumerate(targets, num_domains):
        rows = np.random.default_rng(0).permutation(len(target.guide))[:GUIDES]
        for half in range(2):
            chosen = rows[half::2]
            for start in range(0, len(chosen), BATCH):
                part = chosen[start : start + BATCH]
                tokens_RU = torch.from_numpy(target.guide.tokens_NU[part]).long()
                counted_RT = torch.from_numpy(target.guide.counted_NT[part])
                gradient_P, loss = gradient(trainer, tokens_RU, tokens_RU[:, 1:].masked_fill(~counted_RT, IGNORED))
                found_2NP[half, number] += gradient_P * len(part) / len(chosen)
                losses_N[number] += loss * len(part) / len(chosen) / 2
    return found_2NP, losses_N


def metrics(trainer: Trainer) -> dict[str, Tensor]:
    """name -> what the square of each coordinate counts. [P]

    `adam` is 1/√v, the preconditioner of the optimiser; `adam, bounded` bounds √v below by its 90% quantile, because of small v little
    is known; `rows, bounded` has only the mean of v over each row of a matrix."""
    parameters = list(trainer.model.parameters())
    steps = float(trainer.optimizer.state[parameters[0]]["step"])
    moments = [trainer.optimizer.state[each]["exp_avg_sq"] / (1 - 0.95**steps) for each in parameters]
    root_P = torch.cat([moment.flatten() for moment in moments]).sqrt()
    floor = float(np.quantile(root_P.numpy(), 0.9))
    of_rows = [m.mean(1, keepdim=True).expand_as(m).flatten() if m.dim() == 2 else m for m in moments]
    return {
        "plain": torch.ones_like(root_P),
        "adam": 1 / (root_P + 1e-8),
        "adam, bounded": 1 / root_P.clamp(min=floor),
        "rows, bounded": 1 / torch.cat(of_rows).sqrt().clamp(min=floor),
    }


def statistics(found_2NP: Tensor, metric_P: Tensor, num_domains: int) -> dict[str, Any]:
    """gram_NN: unbiased ⟨g_i, g_j⟩ of domains and targets. noise_K: the variance of the gradient of one sequence."""
    first_NP, second_NP = (half_NP * metric_P.sqrt() for half_NP in found_2NP)
    cross_NN = (first_NP @ second_NP.T).double().numpy()
    gram_NN = (cross_NN + cross_NN.T) / 2
    of_half_N = (first_NP.square().sum(1) + second_NP.square().sum(1)).double().numpy() / 2
    noise_N = (of_half_N - np.diag(gram_NN)).clip(min=0) * LOOKS * BATCH
    return {"gram_NN": gram_NN.tolist(), "noise_K": noise_N[:num_domains].tolist()}


def candidates(stats: dict[str, Any], losses_N: Array, weights_K: Array, objective: str) -> dict[str, Array]:
    """name -> reward [K], of one metric.

    h: the first-order gain ⟨g_i, ∇J⟩. P: the weight. z: the size of the domain's gradient in a batch, noise included. s and κ: as of
    `acodm_cli/mixing/acodm/fixed_step.py`."""
    num_domains = len(weights_K)
    gram_NN = np.array(stats["gram_NN"])
    gram_KK, noise_K = gram_NN[:num_domains, :num_domains], np.array(stats["noise_K"]) / BATCH
    costs_K = np.ones(num_domains) if objective == "mean loss" else np.exp(losses_N[:num_domains])
    gain_K = gram_KK @ (costs_K / costs_K.sum())
    if objective in OBJECTIVES[2:]:
        gain_K = gram_NN[:num_domains, num_domains + OBJECTIVES.index(objective) - 2]
    squares_K = np.diag(gram_KK).clip(min=0) + noise_K
    sizes_K = np.sqrt(squares_K + weights_K @ squares_K)
    mixed_K = gram_KK @ weights_K
    crowded_K = gain_K @ weights_K / (weights_K @ mixed_K) * mixed_K
    found = {
        "h": gain_K,
        "h / P": gain_K / weights_K,
        "h / loss": gain_K / losses_N[:num_domains],
        "h / z": gain_K / np.sqrt(squares_K),
        "h / s (κ = 0)": gain_K / sizes_K,
        "κ = ½": (gain_K - crowded_K / 2) / sizes_K,
        "κ = 1": (gain_K - crowded_K) / sizes_K,
        "κ = 1, without s": gain_K - crowded_K,
    }
    if objective in OBJECTIVES[:2]:
        found["W, the paper's"] = gram_KK.sum(axis=1) - np.diag(gram_KK)
        found["W / P, the paper's"] = found["W, the paper's"] / weights_K
    # With uniform weights and κ = 1, the reward for the mean loss is zero, which correlates with nothing.
    least = 1e-9 * np.abs(gain_K).max()
    return {name: np.where(np.abs(reward_K).max() > least, reward_K, np.nan) for name, reward_K in found.items()}


# What came


def branch(
    trainer: Trainer, state: dict[str, Any], weights_K: Array, repeat: int, horizons: list[int]
) -> list[list[float]]:
    """The losses of domains and targets after each horizon, from `state` with these weights. Text comes in the run's own order, or, in
    further repeats, in another."""
    trainer.load_state_dict(copy.deepcopy(state))
    trainer.sampler = Sampler(trainer.corpus, BATCH, SEQ_LEN, 1000 + repeat if repeat else trainer.settings.seed, None)
    if not repeat:
        trainer.sampler.load_state_dict(copy.deepcopy(state["sampler"]))
    trainer.mixer = StaticMixer(weights_K)
    steps, found = trainer.steps(), []
    for step in range(1, max(horizons) + 1):
        next(steps)
        if step in horizons:
            found.append(trainer.validate().losses_J.tolist())
    return found


def moved(weights_K: Array, domain: int, by: float) -> Array:
    """The weights with that of one domain changed by so much, at most to zero, and the others in proportion."""
    by = max(by, -weights_K[domain])
    result_K = weights_K * (1 - by / (1 - weights_K[domain]))
    result_K[domain] = weights_K[domain] + by
    return result_K / result_K.sum()


def values(losses: Any, objective: str, num_domains: int) -> float:
    losses_N = np.array(losses)
    if objective == "mean loss":
        return float(losses_N[:num_domains].mean())
    if objective == "mean perplexity":
        return float(np.log(np.exp(losses_N[:num_domains]).mean()))
    return float(losses_N[num_domains + OBJECTIVES.index(objective) - 2])


def came(point: dict[str, Any], objective: str, horizon: int) -> list[Array]:
    """What came of each domain per unit of its weight, in each repeat. Raising α_i at the cost of all others in proportion moves in
    the direction (e_i - α) / (1 - α_i), so that this times 1 - α_i is what a reward of domain i foretells, but for what all have in
    common. [K]"""
    place, number = point["horizons"].index(horizon), len(point["domains"])
    weights_K = np.array(point["weights"])
    moved_K = point["raise"] + np.minimum(point["raise"], weights_K)
    return [
        (1 - weights_K) / moved_K * np.array([
            values(lowered[place], objective, number) - values(raised[place], objective, number)
            for raised, lowered in repeat["branches"]
        ])
        for repeat in point["repeats"]
    ]  # fmt: skip


def measure(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    corpus = options.corpus
    settings = RunSettings(
        data=str(corpus / "both.toml"), tokenizer=str(corpus / "tokenizer.json"), mixer="uniform", steps=STEPS, batch=BATCH,
        seq_len=SEQ_LEN, seed=0, validate_every=10**6, validation_sequences=DOMAIN_ROWS, device="cpu", dtype="bf16",
    )  # fmt: skip
    run = build_run(settings)
    trainer, names = run.trainer, run.corpus.names
    of_targets = [target.report.part(TARGET_ROWS, run.corpus.tokenizer.token_bytes_V) for target in run.targets]
    trainer.texts = trainer.texts[: len(names)] + of_targets
    weights_K = np.full(len(names), 1 / len(names))
    if options.mixture != "uniform":
        domain, _, weight = options.mixture.partition(":")
        weights_K = np.full(len(names), (1 - float(weight)) / (len(names) - 1))
        weights_K[names.index(domain)] = float(weight)
    trainer.mixer = StaticMixer(weights_K)
    steps = trainer.steps()
    while trainer.step < options.point:
        next(steps)
    state = copy.deepcopy(trainer.state_dict())
    found_2NP, losses_N = gradients(run)
    known = {name: statistics(found_2NP, metric_P, len(names)) for name, metric_P in metrics(trainer).items()}
    del found_2NP
    point: dict[str, Any] = {
        "mixture": options.mixture, "after": options.point, "horizons": options.horizons, "raise": options.raised,
        "domains": names, "weights": weights_K.tolist(), "losses": losses_N.tolist(), "known": known, "repeats": [],
    }  # fmt: skip
    for repeat in range(options.repeats):
        branches = []
        for domain in range(len(names)):
            pair = [moved(weights_K, domain, by) for by in (options.raised, -options.raised)]
            branches.append([branch(trainer, state, each_K, repeat, options.horizons) for each_K in pair])
            print(f"repeat {repeat + 1}: {names[domain]}", flush=True)
        point["repeats"].append({"branches": branches})
    return f"{options.mixture}@{options.point}", point


# The table


def report(points: dict[str, Any]) -> list[dict[str, Any]]:
    """Prints a table per point and objective: correlations of metrics by candidates. Returns all rows."""
    rows = []
    for name, point in points.items():
        losses_N, weights_K = np.array(point["losses"]), np.array(point["weights"])
        for objective in OBJECTIVES:
            for horizon in point["horizons"]:
                repeats = came(point, objective, horizon)
                truth_K = np.mean(repeats, axis=0)
                # Of the same fork and held-out text, so of the noise of the text that is trained on.
                between = pearson(repeats[0], repeats[1]) if len(repeats) == 2 else float("nan")
                ceiling = float(np.sqrt(max(0.0, 2 * between / (1 + between))))
                row: dict[str, Any] = {"point": name, "objective": objective, "horizon": horizon, "ceiling": ceiling}
                row["spread"] = float(truth_K.std())
                row["loss"] = pearson(losses_N[: len(weights_K)], truth_K)
                row["rewards"] = {
                    metric: {
                        each: (pearson(reward_K, truth_K), interval(reward_K, truth_K))
                        for each, reward_K in candidates(stats, losses_N, weights_K, objective).items()
                    }
                    for metric, stats in point["known"].items()
                }
                rows.append(row)
                print(
                    f"\n{name}, {objective}, {horizon} steps on: ceiling {ceiling:.2f}, spread {row['spread']:.4f} nats; loss {row['loss']:.2f}"
                )
                for metric, of_metric in row["rewards"].items():
                    cells = [
                        f"{each} {r:.2f} ({low:.2f} to {high:.2f})" for each, (r, (low, high)) in of_metric.items()
                    ]
                    print(f"  {metric:14} " + "  ".join(cells))
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """In Markdown: a line per reward, a column per objective, in it the correlations at all points after the longest horizon."""
    longest = max(row["horizon"] for row in rows)
    of = {name: [row for row in rows if row["objective"] == name and row["horizon"] == longest] for name in OBJECTIVES}
    print(f"\n{', '.join(row['point'] for row in of[OBJECTIVES[0]])}; {longest} steps on\n")
    print("| reward | " + " | ".join(OBJECTIVES) + " |\n|" + "---|" * (1 + len(OBJECTIVES)))
    lines: list[tuple[str, list[list[float]]]] = [
        ("noise ceiling", [[row["ceiling"] for row in of[name]] for name in OBJECTIVES]),
        ("training loss", [[row["loss"] for row in of[name]] for name in OBJECTIVES]),
    ]
    for metric in rows[0]["rewards"]:
        for reward in rows[0]["rewards"][metric]:
            found = [
                [row["rewards"][metric][reward][0] for row in of[name] if reward in row["rewards"][metric]]
                for name in OBJECTIVES
            ]
            lines.append((reward if metric == "plain" else f"{reward}, {metric}", found))
    for label, values_of in lines:
        print(
            f"| {label} | "
            + " | ".join(
                " / ".join("none" if np.isnan(value) else f"{value:.2f}" for value in cells) for cells in values_of
            )
            + " |"
        )


def interval(a_K: Array, b_K: Array) -> tuple[float, float]:
    """The 95% interval of a correlation over domains, by drawing domains with replacement."""
    generator, number = np.random.default_rng(0), len(a_K)
    rows = [generator.integers(0, number, number) for _ in range(500)]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = [np.corrcoef(a_K[each], b_K[each])[0, 1] for each in rows]
    low, high = np.nanquantile(found, [0.025, 0.975]) if np.isfinite(found).any() else (np.nan, np.nan)
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder that study_corpora has written")
    parser.add_argument("--point", type=int, default=150, help="steps before the fork")
    parser.add_argument("--mixture", default="uniform", help="until there: uniform, or DOMAIN:WEIGHT, the others alike")
    parser.add_argument("--horizons", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--repeats", type=int, default=2, choices=(1, 2))
    parser.add_argument("--raise", type=float, default=0.15, dest="raised", help="of the weight")
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    path = RESULTS / f"{RESULT}.json"
    added = {}
    if not options.report_only:
        torch.set_num_threads(1)
        added = dict([measure(options)])
    # Read only now, for another point may have been added meanwhile.
    points = (json.loads(path.read_text())["points"] if path.exists() else {}) | added
    save(RESULT, {"points": points}, None)
    rows = report(points)
    print_table(rows)
    save(RESULT, {"table": rows, "points": points}, None)


if __name__ == "__main__":
    main()

"""Whether the reward says what comes of it: what happens to validation if one domain is drawn more often from here on.

    python -m tests.benchmarks.reward_truth

Trains a pythia-14m with a uniform mixture, as `sample_efficiency` does. At each of several points the run forks: into one
branch that goes on as before, and one per domain that raises that domain's weight by --raise at the cost of all others. After
--branch steps, all branches are validated. Reported: Pearson correlation over domains of what a branch gained over the one
that went on as before, in mean perplexity and in mean loss, with what was known at the fork: the reward of the default agent, that
of the paper (each over --looks batches), and the domain's training loss, which is the reward of ODM.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np

from acodm_cli.alignment.estimators import make_probe
from acodm_cli.alignment.settings import AlignmentSettings
from acodm_cli.engine.trainer import Trainer
from acodm_cli.mixing.acodm.reward import AlignmentReward, domain_costs
from acodm_cli.mixing.baselines.static import StaticMixer, uniform_weights
from acodm_cli.mixing.mixer import Array
from acodm_cli.runs.build import build_run
from acodm_cli.runs.settings import RunSettings
from tests.benchmarks.alignment_error import EMA, look, pearson
from tests.benchmarks.environment import save


def rewards(trainer: Trainer, looks: int) -> dict[str, Array]:
    """name -> [K], at the model's present weights. The training loss of a domain is that of its last batch."""
    num_domains = len(trainer.corpus.names)
    weights_K = uniform_weights(num_domains)
    losses_K = trainer.observation.losses_K
    costs_K = domain_costs(losses_K, "perplexity")
    probe = make_probe(trainer.model, num_domains, AlignmentSettings(), seed=0)
    default, paper = AlignmentReward(num_domains, EMA), AlignmentReward(num_domains, EMA)
    found: dict[str, Array] = {"loss": losses_K}
    for number in range(looks):
        batch = trainer.sampler.draw(weights_K)
        seen = look(trainer, {"default": probe}, batch, number)["default"]
        gram_KK, self_K, present_K = seen.gram_KK.numpy(), seen.self_K.numpy(), batch.samples_K > 0
        found["default"] = default.update(gram_KK * costs_K, weights_K, present_K, self_K * costs_K)
        found["paper"] = paper.update(gram_KK, weights_K, present_K)
    probe.remove()
    return found


def branch(trainer: Trainer, state: dict[str, Any], weights_K: Array, steps: int) -> Array:
    """Validation losses in nats after so many more steps from `state` with these weights. [K]"""
    trainer.load_state_dict(copy.deepcopy(state))
    trainer.mixer = StaticMixer(weights_K)
    run = trainer.steps()
    for _ in range(steps):
        next(run)
    return trainer.validate().losses_J


def measure(trainer: Trainer, state: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    num_domains = len(trainer.corpus.names)
    known = rewards(trainer, options.looks)
    uniform_K = uniform_weights(num_domains)
    before_K = branch(trainer, state, uniform_K, options.branch)
    gained: dict[str, list[float]] = {"perplexity": [], "loss": []}
    for domain in range(num_domains):
        raised_K = uniform_K * (1 - options.raised / (1 - 1 / num_domains))
        raised_K[domain] = 1 / num_domains + options.raised
        after_K = branch(trainer, state, raised_K, options.branch)
        gained["perplexity"].append(float(100 * (1 - np.exp(after_K).mean() / np.exp(before_K).mean())))
        gained["loss"].append(float((before_K - after_K).mean()))
    correlations = {
        of: {name: pearson(values_K, np.array(gains)) for name, values_K in known.items()}
        for of, gains in gained.items()
    }
    for of, row in correlations.items():
        print(f"  {of:10} " + "  ".join(f"{name} {value:5.2f}" for name, value in row.items()), flush=True)
    return {
        "correlation_of_gain_in": correlations,
        "gain_percent_of_perplexity": gained["perplexity"],
        "gain_nats": gained["loss"],
        "known": {name: values_K.tolist() for name, values_K in known.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--tokenizer")
    parser.add_argument("--cache-dir")
    parser.add_argument("--points", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--branch", type=int, default=40, help="steps")
    parser.add_argument("--raise", type=float, default=0.15, dest="raised", help="of the weight")
    parser.add_argument("--looks", type=int, default=40, help="batches that the rewards are averaged over")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings = RunSettings(
        data=options.data, tokenizer=options.tokenizer, cache_dir=options.cache_dir, mixer="uniform", steps=600, seed=options.seed,
        validate_every=10**6, validation_sequences=32, device="cpu", dtype="bf16",
    )  # fmt: skip
    trainer = build_run(settings).trainer
    mixer = trainer.mixer
    points: dict[str, Any] = {}
    for point in options.points:
        run = trainer.steps()
        while trainer.step < point:
            next(run)
        state = copy.deepcopy(trainer.state_dict())
        print(f"after {point} steps", flush=True)
        points[str(point)] = measure(trainer, state, options)
        trainer.load_state_dict(state)
        trainer.mixer = mixer
    fork = {"branch": options.branch, "raise": options.raised, "looks": options.looks, "seed": options.seed}
    save("reward_truth", {**fork, "domains": trainer.corpus.names, "points": points}, options.out)


if __name__ == "__main__":
    main()

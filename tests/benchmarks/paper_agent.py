"""Why the paper's agent runs into corners in a short run: what its critic knows, step by step.

    python -m tests.benchmarks.paper_agent

Trains a pythia-14m on the embedded corpus with `--agent paper`, 300 steps of 16 x 128 tokens. Given the critic, the actor climbs
Σ_i α_i Q_i(s, α), whose gradient in the action has two terms: Q_i itself, and the slope Σ_j α_j ∂Q_j / ∂α_i, which alone could say that
a domain has enough. Every 25 steps it prints how much each of the two differs between domains (the standard deviation over them), the largest
weight and whose it is, the largest reward and whose, and the share of the critic that its target network holds by now, 1 - (1 - τ)^updates.
Written is results/paper_agent.json.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass

import torch

from acodm_cli.mixing.acodm.agent import Agent
from acodm_cli.mixing.acodm.learner import AcOdmLearner
from acodm_cli.mixing.acodm.state import encode_state
from acodm_cli.mixing.mixer import Array, Observation
from acodm_cli.runs.build import build_run
from acodm_cli.runs.settings import RunSettings
from tests.benchmarks.environment import save

EVERY = 25


@dataclass(frozen=True)
class Row:
    """One line of the table. spread_*: standard deviations over domains."""

    step: int
    spread_of_values: float
    spread_of_slopes: float
    largest_weight: float
    its_domain: str
    most_rewarded: str
    target_holds: float


def two_terms(agent: Agent, observation: Observation, weights_K: Array) -> tuple[float, float]:
    """(standard deviation over domains of Q_i; of Σ_j α_j ∂Q_j / ∂α_i), for the executed action."""
    states_NF = agent.normalizer(encode_state(observation))[None].float()
    action_NK = torch.from_numpy(weights_K).float()[None].requires_grad_()
    values_NK = agent.critics[0](states_NF, action_NK)
    # α_j is held: only the action that the critic is told counts here.
    (slopes_NK,) = torch.autograd.grad((action_NK.detach() * values_NK).sum(), action_NK)
    return float(values_NK.detach().std()), float(slopes_NK.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run = build_run(
        RunSettings(
            agent="paper", model="pythia-14m", steps=options.steps, batch=16, seq_len=128, seed=options.seed, dtype="bf16",
            validate_every=options.steps,
        )
    )  # fmt: skip
    mixer, names = run.mixer, run.corpus.names
    assert isinstance(mixer, AcOdmLearner)
    rows = []
    print(
        f"{'step':>5} {'spread of Q':>12} {'of slopes':>10} {'weight':>7}  {'of':18} {'most rewarded':18} {'target holds':>12}"
    )
    for event in run.steps():
        if event.step % EVERY:
            continue
        assert event.report.reward_K is not None
        values, slopes = two_terms(mixer.agent, run.trainer.observation, event.weights_K)
        top = int(event.weights_K.argmax())
        row = Row(
            event.step, values, slopes, float(event.weights_K[top]), names[top], names[int(event.report.reward_K.argmax())],
            1 - (1 - mixer.agent_settings.tau) ** mixer.agent.updates,
        )  # fmt: skip
        rows.append(row)
        print(
            f"{row.step:5} {values:12.3f} {slopes:10.3f} {row.largest_weight:7.2f}  {row.its_domain:18} {row.most_rewarded:18} "
            f"{row.target_holds:12.0%}",
            flush=True,
        )
    save("paper_agent", {"seed": options.seed, "rows": [asdict(row) for row in rows]}, None)


if __name__ == "__main__":
    main()

"""What a user should know of a run that is unlike the one in which its schedule was learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.preflight import domain_uses
from acodm_cli.engine.settings import LrSchedule, TrainSettings
from acodm_cli.mixing.domain_map import DomainMap
from acodm_cli.runs.settings import RunSettings
from acodm_cli.schedule.schedule import Schedule

# A schedule that is replayed over so many times its tokens is warned of.
STRETCHED = 10
# A domain that is seen so many times as often as the schedule was learned with is warned of, or so many times more seldom.
REPEATED = 2
# With fewer sequences of a domain, rounding to whole ones changes its epochs by 5% or more, and few texts stand for it.
TINY = 10


def warn_of_differences(
    settings: RunSettings,
    schedule: Schedule,
    corpus: Corpus,
    domain_map: DomainMap,
    fresh: bool,
    warn: Callable[[str], None],
) -> None:
    """Warns of what makes the schedule's weights mean something else in this run.

    settings: with the mode decided. corpus: with its domains in the order of the map's, and a sequence in each. domain_map: how the
    schedule's domains are the corpus's. fresh: whether the run begins with weights that were not trained. warn: told a line for each
    difference."""
    run = schedule.run
    if run.caveat:
        warn(f"the schedule: {run.caveat}")
    if run.tokenizer_fingerprint not in ("", corpus.tokenizer.fingerprint):
        warn("the schedule was learned with another tokenizer; its weights are shares of that one's tokens")
    _warn_of_stretching(settings, schedule, warn)
    if run.trained == fresh and settings.mode != "replay":
        whose, ours = ("trained", "fresh") if run.trained else ("fresh", "trained")
        warn(
            f"the policy was learned with {whose} weights, and this run begins with {ours} ones; its losses mean other things"
        )
    recorded = run.lr_schedule, run.lr_decay_share
    if run.lr_schedule in get_args(LrSchedule) and recorded != (settings.lr_schedule, settings.decay_share):
        warn(
            f"the schedule was learned while the learning rate followed {_named(*recorded)}, and in this run it follows "
            f"{_named(settings.lr_schedule, settings.decay_share)}; losses fall at other times than it was learned with"
        )
    _warn_of_repetition(settings, schedule, corpus, domain_map, warn)


def warn_of_cut(settings: TrainSettings, corpus: Corpus, warn: Callable[[str], None]) -> None:
    """Warns if --for-tokens cuts nothing, or leaves so little of a domain that it is not repeated as often as by the target."""
    if settings.for_tokens is None:
        return
    if settings.corpus_share == 1:
        warn(
            f"--for-tokens {settings.for_tokens} is not more than the {settings.steps * settings.tokens_per_step} tokens of this run, "
            "so nothing of the corpus is cut"
        )
        return
    whole_K = corpus.num_sequences(settings.seq_len)
    left_K = corpus.num_sequences(settings.seq_len, settings.corpus_share)
    tiny = np.flatnonzero((left_K < TINY) & (left_K < whole_K))
    if len(tiny):
        named = ", ".join(f"{corpus.names[index]} {left_K[index]}" for index in tiny[:8])
        more = f" and {len(tiny) - 8} more domains" if len(tiny) > 8 else ""
        warn(
            f"--for-tokens leaves few sequences of {named}{more}: what is learned of these says little; train the proxy for longer"
        )


def _named(lr_schedule: str, decay_share: float | None) -> str:
    return lr_schedule if decay_share is None else f"{lr_schedule} (a decay over {decay_share:g} of the run)"


def _warn_of_stretching(settings: RunSettings, schedule: Schedule, warn: Callable[[str], None]) -> None:
    """Warns if recorded weights are to be stretched over a budget that is another one altogether."""
    recorded, budget = int(schedule.tokens_S[-1]), settings.steps * settings.tokens_per_step
    stretched = settings.mode == "replay" and settings.replay_by == "progress" and len(schedule) > 1
    if stretched and 0 < STRETCHED * recorded < budget:
        warn(
            f"weights recorded over {recorded:.3g} tokens are stretched over {budget:.3g}, {budget / recorded:.0f} times as "
            "many: what was learned early holds for long"
        )


def _warn_of_repetition(
    settings: RunSettings, schedule: Schedule, corpus: Corpus, domain_map: DomainMap, warn: Callable[[str], None]
) -> None:
    """Warns of the domain whose epochs differ most from those that the schedule was learned at, by its weights. A domain that is not
    seen once in either run does not matter; one that is none or several of the schedule's is not compared."""
    learned_M = schedule.epochs() if "samples" in schedule.per_domain else None
    if learned_M is None or not learned_M.any():
        return
    s = settings
    weights_SK = domain_map.divided(schedule.learned.weights_SK)
    uses = domain_uses(corpus, s.seq_len, s.batch, s.steps, weights_SK, s.max_epochs)
    here_K = np.array([use.epochs for use in uses])
    is_one_K = domain_map.is_part_MK.sum(axis=0) == 1
    learned_K = np.where(is_one_K, learned_M @ domain_map.is_part_MK, here_K)
    most_K, least_K = np.maximum(learned_K, here_K), np.minimum(learned_K, here_K)
    differs_K = (most_K >= 1) & (most_K > REPEATED * least_K)
    if not differs_K.any():
        return
    # Whether a domain is seen half or a tenth of once is no repetition.
    worst = int(np.where(differs_K, most_K / least_K.clip(1), 0).argmax())
    here, learned = here_K[worst], learned_K[worst]
    budget, meant = s.steps * s.tokens_per_step, schedule.run.for_tokens
    if meant:
        said = f"; it was learned for {meant:.3g} tokens, and this run has {budget:.3g}"
    else:
        said = f"; learn one with proxy-train --for-tokens {budget}" if here > learned else ""
    warn(
        f"domain {corpus.names[worst]} will be seen {here:.3g} times, and was seen {learned:.3g} times where the schedule was "
        f"learned{said}"
    )

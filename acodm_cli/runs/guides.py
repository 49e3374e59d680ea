"""What a mixture is for, what the model must not forget meanwhile, and the held-out text that guides it.

targets, --keep -> objective of the run (what is reported) -> objective of the mixer (what guides) -> texts of guide passes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.held_out import GUIDE_OF_DOMAINS, LEAST_WINDOWS, HeldOutText, guide_of_domain, guide_of_domains
from acodm_cli.corpus.targets import Target, named_weights
from acodm_cli.errors import UsageError
from acodm_cli.mixing.mixer import Mixer
from acodm_cli.mixing.objective import Objective
from acodm_cli.runs.settings import RunSettings

# So many sequences at most of each part that is kept are compared with what their losses were before training.
KEPT_SEQUENCES = 32
# What the guide part of a domain that is to be learned beside kept ones is called.
HELD_OUT = "held-out "


def kept_names(
    settings: RunSettings, corpus: Corpus, targets: Sequence[Target], warn: Callable[[str], None]
) -> tuple[str, ...]:
    """Returns the names of the domains and targets that must not be forgotten, each once, in the order of corpus and targets.

    Raises:
        UsageError: there is no such domain or target, nothing is left to learn, or the weights are fresh.
    """
    if settings.init_from is None:
        if settings.keep or "keep_budget" in settings.changed():
            raise UsageError("--keep is for trained weights; give them with --init-from, or leave it out")
        if corpus.keep:
            warn(f"{', '.join(corpus.keep)}: fresh weights have nothing to keep; give trained ones with --init-from")
        return ()
    names = [*corpus.names, *(target.name for target in targets)]
    asked = [*corpus.keep]
    for text in settings.keep:
        asked += [text] if text in names else text.split(",")
    for name in asked:
        if names.count(name) != 1:
            why = "is both a domain and a target; rename one" if name in names else f"is none of {', '.join(names)}"
            raise UsageError(f"--keep {name} {why}")
    kept = tuple(name for name in names if name in asked)
    if not kept and "keep_budget" in settings.changed():
        raise UsageError("--keep-budget is for what --keep names; name something, or leave it out")
    if kept and settings.episodes > 1:
        raise UsageError("--keep is for one episode; leave --episodes out")
    if set(names) == set(kept) or (settings.guide == "domains" and set(corpus.names) <= set(kept)):
        raise UsageError("--keep names all that could be learned, so that nothing guides the mixture; leave one out")
    return kept


def objective_of(
    settings: RunSettings, domains: Sequence[str], targets: Sequence[Target], kept: Sequence[str]
) -> Objective:
    """Returns what the run is for: the targets, or else the domains, but for what is only kept.

    Raises:
        UsageError: a weight does not suit.
    """
    learned = [target for target in targets if target.name not in kept]
    given = settings.objective_weights
    if given and (learned or settings.guide == "domains" or kept):
        raise UsageError("--objective-weight is for training losses of domains, which do not count here; leave it out")
    if kept and settings.target_balance != "sum" and len(learned) < 2:
        raise UsageError("--target-balance is for several targets that are not kept; leave it out")
    if of_kept := sorted(set(settings.target_weight or {}) & set(kept)):
        raise UsageError(f"--target-weight {of_kept[0]}: what is kept has a budget, and no weight; leave one out")
    number = len(learned) or len(set(domains) - set(kept))
    objective = Objective(kept=tuple(kept), budget=settings.keep_budget, learned=number) if kept else Objective()
    if learned:
        names, weights = zip(*((target.name, target.weight) for target in learned), strict=True)
        return replace(objective, targets=names, weights_J=weights, balance=settings.target_balance)
    if given:
        of_domain = named_weights(given, domains, "--objective-weight", "domain", zero=True)
        weights_J = tuple(of_domain.get(name, 1.0) for name in domains)
        if not any(weights_J):
            raise UsageError("--objective-weight is 0 for every domain, so that nothing counts; leave one out")
        return replace(objective, weights_J=weights_J)
    if set(kept) & set(domains):
        return replace(objective, weights_J=tuple(float(name not in kept) for name in domains))
    return objective


def guides_of(
    settings: RunSettings, domains: Sequence[str], objective: Objective, mixer: Mixer | type[Mixer]
) -> Objective:
    """Returns what guides the mixer: parts of held-out text, or nothing where training losses do. Where some domains are kept, each
    of the others is a part, so that every look has some text of it."""
    if not mixer.keeps:
        objective = replace(objective, kept=())
    if settings.guide == "domains":
        number = len(set(domains) - set(objective.kept)) if objective.kept else 0
        return replace(objective, targets=(GUIDE_OF_DOMAINS,), weights_J=(1.0,), balance="sum", learned=number)
    if objective.kept and not objective.targets:
        learned = tuple(HELD_OUT + name for name in domains if name not in objective.kept)
        return replace(objective, targets=learned, weights_J=(1.0,) * len(learned))
    return objective


def guide_texts(
    settings: RunSettings, corpus: Corpus, targets: Sequence[Target], guides: Objective, kept: Sequence[str]
) -> list[HeldOutText]:
    """Returns the text of each part that guides, then of each that is kept.

    Raises:
        UsageError: there is not enough of it.
    """
    of_targets = {target.name: target.guide for target in targets}
    texts: list[HeldOutText | None] = []
    for name in guides.targets:
        if name == GUIDE_OF_DOMAINS:
            texts.append(guide_of_domains(corpus, settings.seq_len, set(corpus.names) - set(kept)))
        elif name in of_targets:
            texts.append(of_targets[name])
        else:
            texts.append(guide_of_domain(corpus, name.removeprefix(HELD_OUT), settings.seq_len))
    for name in guides.kept:
        if name in of_targets:
            texts.append(of_targets[name].part(KEPT_SEQUENCES, corpus.tokenizer.token_bytes_V))
        else:
            texts.append(guide_of_domain(corpus, name, settings.seq_len, KEPT_SEQUENCES))
    enough = [text for text in texts if text is not None]
    if len(enough) < len(texts):
        raise UsageError(
            f"{'--guide domains' if settings.guide == 'domains' else '--keep'} needs validation text of at least {LEAST_WINDOWS} "
            "sequences of every domain that counts; give more, or a smaller --seq-len"
        )
    return enough

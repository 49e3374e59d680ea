"""Checks and notes shared by the exports to trainers that take one path per domain."""

from __future__ import annotations

from acodm_cli.errors import UsageError
from acodm_cli.exports.plan import Array, Plan


def domain_paths(plan: Plan, trainer: str, forbidden: str = "") -> list[str]:
    """Returns the path of every domain, after checking them.

    forbidden: characters that the trainer would expand. Raises: UsageError if two paths are equal or one holds such.
    """
    domains: dict[str, str] = {}
    for domain in plan.domains:
        path = plan.target.path_of(domain)
        if path in domains:
            raise UsageError(
                f"domains {domains[path]!r} and {domain!r} both lie at {path!r}; put {{domain}} into the path of the tokens"
            )
        expanded = sorted(set(forbidden) & set(path))
        if expanded:
            raise UsageError(
                f"{trainer} would expand {' '.join(expanded)} in {path!r}; rename what holds the tokens of {domain!r}"
            )
        domains[path] = domain
    return list(domains)


def notes_of_zeros(plan: Plan, realised_NK: Array) -> list[str]:
    """Returns a sentence for every domain that some stage does not draw from."""
    notes = []
    for index, domain in enumerate(plan.domains):
        asked_N, realised_N = plan.weights_NK[:, index], realised_NK[:, index]
        zero = [str(stage + 1) for stage in (asked_N == 0).nonzero()[0]]
        lost = [str(stage + 1) for stage in ((asked_N > 0) & (realised_N == 0)).nonzero()[0]]
        if zero:
            notes.append(f"{domain!r} has weight 0 in stage {', '.join(zero)} and is left out there.")
        if lost:
            notes.append(f"{domain!r} rounds to zero in stage {', '.join(lost)}: nothing is drawn from it there.")
    return notes

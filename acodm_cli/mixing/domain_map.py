"""How the domains of a schedule are those of a corpus: renamed, split, merged, left out or new.

Shape letters: K domains of the corpus, M domains of the schedule, S rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acodm_cli.errors import ScheduleError, UsageError

Array = NDArray[np.float64]

# A split of more parts than these is not shown as an example.
MOST_SHOWN = 8


@dataclass(frozen=True)
class DomainMap:
    """Divides the weights of a schedule's M domains among a corpus's K domains, in proportion to tokens.

    With n_k the tokens of domain k, and M' the domains of the schedule that are not left out:

        w_k = (1 - ν) Σ_{m ∈ M'} α_m E_mk / Σ_{m ∈ M'} α_m    E_mk = n_k / Σ_{j part of m} n_j for the parts of m, else 0
        w_k = n_k / Σ_j n_j                                   for a new domain; ν is the sum of these

    If all domains of M' have no weight, they are taken in proportion to their tokens.

    parts: what each domain of the schedule is in the corpus, in the schedule's order: one domain, several into which it is split,
    or none if it is left out. A domain of the corpus is part of several only if it is all of each. tokens: the training tokens of
    each domain of the corpus, upsampling included, in the order of the run. Those that are part of none are new.
    """

    parts: dict[str, tuple[str, ...]]
    tokens: dict[str, float]

    @cached_property
    def shares(self) -> dict[str, dict[str, float]]:
        """E by name: which shares of each of the schedule's domains its parts get."""
        totals = {old: sum(self.tokens[name] for name in parts) for old, parts in self.parts.items()}
        return {old: {name: self.tokens[name] / totals[old] for name in parts} for old, parts in self.parts.items()}

    @cached_property
    def new(self) -> dict[str, float]:
        """The weight of each new domain."""
        total, known = sum(self.tokens.values()), set().union(*self.parts.values())
        return {name: tokens / total for name, tokens in self.tokens.items() if name not in known}

    @cached_property
    def shares_MK(self) -> Array:
        """E. [M, K]"""
        index = {name: number for number, name in enumerate(self.tokens)}
        shares_MK = np.zeros((len(self.parts), len(index)))
        for row, shares in enumerate(self.shares.values()):
            for name, share in shares.items():
                shares_MK[row, index[name]] = share
        return shares_MK

    @cached_property
    def is_part_MK(self) -> Array:
        """1 where a domain of the corpus is part of one of the schedule, else 0. [M, K]"""
        return (self.shares_MK > 0).astype(np.float64)

    @cached_property
    def new_K(self) -> Array:
        """The weight of each new domain, 0 for the others. [K]"""
        return np.array([self.new.get(name, 0.0) for name in self.tokens])

    @property
    def only_renames(self) -> bool:
        """Whether every domain of the schedule is one of the corpus, and every one of the corpus is one of the schedule."""
        single = all(len(parts) == 1 for parts in self.parts.values())
        return single and not self.new and len(self.parts) == len(self.tokens)

    def divided(self, weights_XM: Array) -> Array:
        """Returns w for the schedule's weights α, which may have any leading shape. [X, K]"""
        if self.only_renames:
            return weights_XM
        kept_XM = weights_XM * self.is_part_MK.any(axis=1)
        tokens_M = self.gathered(np.array(list(self.tokens.values())), np.ones(len(self.parts)))
        kept_XM = np.where(kept_XM.sum(axis=-1, keepdims=True) > 0, kept_XM, tokens_M)
        kept_XM = kept_XM / kept_XM.sum(axis=-1, keepdims=True)
        return (1 - self.new_K.sum()) * (kept_XM @ self.shares_MK) + self.new_K

    def gathered(self, amounts_K: Array, weights_M: Array) -> Array:
        """Returns the sum over its parts for each domain of the schedule; of a part of several it has what is in proportion to its
        weight. amounts_K: of the corpus, such as sequences or tokens. [M]"""
        claims_MK = self.is_part_MK * weights_M[:, None]
        claims_MK = np.where(claims_MK.sum(axis=0) > 0, claims_MK, self.is_part_MK)
        return claims_MK @ (amounts_K / np.maximum(claims_MK.sum(axis=0), 1e-30))

    def said(self) -> list[str]:
        """Says in a line each what becomes of domains that are not the same in the schedule and the corpus."""
        lines, owners = [], _owners(self.parts)
        for old, parts in self.parts.items():
            if not parts:
                lines.append(f"{old} -> left out; the others share its weight")
            elif len(parts) > 1:
                lines.append(f"{old} -> {' + '.join(f'{n} {s:.2g}' for n, s in self.shares[old].items())} (by tokens)")
            elif owners[parts[0]][0] == old and (merged := owners[parts[0]]) != [parts[0]]:
                lines.append(f"{' + '.join(merged)} -> {parts[0]}")
        return lines + [f"{name}: new, {weight:.2g} of the whole (by tokens)" for name, weight in self.new.items()]

    def info(self) -> dict[str, Any]:
        """Returns what the record says of the map, as JSON values."""
        return {"domains": self.shares, "new": self.new}


def read_map(given: Mapping[str, str] | None, in_schedule: list[str], tokens: Mapping[str, float]) -> DomainMap:
    """Reads what --map gives. Domains that it does not name are the same by name.

    given: `{"old": "new"}`, `{"old": "one+other"}` for a split, the same value twice for a merger, `{"old": ""}` to leave a domain
    out, `{"": "new"}` for a new one. in_schedule: the names of the schedule's domains, in order. tokens: of the corpus's domains.

    Raises:
        ScheduleError: domains of the schedule and the corpus are left that are not each other's.
        UsageError: the map names a domain that does not exist, or contradicts itself.
    """
    mapped: dict[str, tuple[str, ...]] = {}
    new: list[str] = []
    for name, value in (given or {}).items():
        old, parts = _read(name, value, in_schedule, tokens)
        if old == "":
            new += parts
        elif old in mapped:
            raise UsageError(f"--map names {old} twice; map it once, to several domains with --map {old}=ONE+OTHER")
        else:
            mapped[old] = parts
    all_parts = {old: mapped.get(old, (old,)) for old in in_schedule}
    owners = _owners(all_parts)
    _check_parts(all_parts, owners, new)
    only_schedule = [old for old in in_schedule if old not in mapped and old not in tokens]
    only_corpus = sorted(set(tokens) - set(owners) - set(new))
    if only_schedule or only_corpus:
        raise ScheduleError(
            "the schedule's domains do not match the corpus; only in the schedule: "
            f"{', '.join(only_schedule) or 'none'}; only in the corpus: {', '.join(only_corpus) or 'none'}; "
            f"{_ways_out(only_schedule, only_corpus)}, or give the corpus it was learned on with --data"
        )
    if not any(all_parts.values()):
        raise UsageError("--map leaves out every domain of the schedule; keep one, or leave --schedule out")
    return DomainMap(all_parts, {name: tokens[name] for name in [*owners, *new]})


def _owners(all_parts: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Returns, for every part, the domains of the schedule that it is part of; once for each time that it is."""
    owners = defaultdict(list)
    for old, parts in all_parts.items():
        for name in parts:
            owners[name].append(old)
    return dict(owners)


def _check_parts(all_parts: Mapping[str, tuple[str, ...]], owners: Mapping[str, list[str]], new: list[str]) -> None:
    """Raises UsageError if a domain of the corpus would be two things at once."""
    for name in new:
        if name in owners:
            raise UsageError(
                f"--map ={name}: it is not new, but the schedule's {owners[name][0]}; leave one out, as in --map {owners[name][0]}="
            )
        if new.count(name) > 1:
            raise UsageError(f"--map ={name} is given twice; give it once")
    for name, olds in owners.items():
        if len(olds) > 1 and any(len(all_parts[old]) > 1 for old in olds):
            whose = f"both {olds[0]} and {olds[1]}" if olds[0] != olds[1] else f"{olds[0]} twice"
            raise UsageError(f"--map makes {name} of the corpus a part of {whose}; make it a part of one domain, once")


def _ways_out(only_schedule: list[str], only_corpus: list[str]) -> str:
    ways = []
    if only_schedule and only_corpus:
        ways.append(f"rename with --map {only_schedule[0]}={only_corpus[0]}")
    for old in only_schedule:
        parts = [name for name in only_corpus if name.startswith(old)]
        if 1 < len(parts) <= MOST_SHOWN:
            ways.append(f"split with --map {old}={'+'.join(parts)}")
            break
    if only_schedule:
        ways.append(f"leave out with --map {only_schedule[0]}=")
    if only_corpus:
        ways.append(f"add with --map ={only_corpus[0]}")
    return ", ".join(ways)


def _read(
    name: str, value: str, in_schedule: Collection[str], in_corpus: Collection[str]
) -> tuple[str, tuple[str, ...]]:
    """Cuts OLD=ONE+OTHER where all are domains, because names may hold `=` and `+` themselves. Returns (the domain of the
    schedule, empty for new ones; the domains of the corpus)."""
    text = name if "=" in name and not value else f"{name}={value}"
    cuts = [index for index, character in enumerate(text) if character == "="]
    ways: list[tuple[str, tuple[str, ...]]] = []
    for old, right in ((text[:cut], text[cut + 1 :]) for cut in cuts):
        if old in in_schedule and not right:
            ways.append((old, ()))
        elif old in in_schedule or not old:
            ways += [(old, parts) for parts in _sums(right, in_corpus)]
    if len(ways) == 1:
        return ways[0]
    if ways:
        raise UsageError(f"--map {text}: this can be cut in two ways; rename a domain")
    raise UsageError(
        f"--map {text}: the schedule has {', '.join(in_schedule)}; the corpus has {', '.join(in_corpus)}; give OLD=NEW, OLD=ONE+OTHER, "
        "OLD= or =NEW"
    )


def _sums(text: str, names: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Yields every way to read a text as names with + between them."""
    if text in names:
        yield (text,)
    for cut in (index for index, character in enumerate(text) if character == "+"):
        if text[:cut] in names:
            yield from ((text[:cut], *others) for others in _sums(text[cut + 1 :], names))

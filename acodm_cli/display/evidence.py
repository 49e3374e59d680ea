"""What a study measured, in words."""

from __future__ import annotations

from acodm_cli.display.style import human_count
from acodm_cli.schedule.evidence import seeds_needed, shows_nothing, unbeaten
from acodm_cli.schedule.info import Comparison, Evidence

MOST_BASELINES = 12
# The difference in percent that users want to see.
WANTED = 1.0


def evidence_lines(evidence: Evidence | None) -> list[str]:
    """Returns a line for each baseline, the most important first: what was measured, and whether it says anything."""
    if evidence is None:
        return []
    lines = [recommendation(evidence)] if evidence.guarded else []
    # Whose differences these are goes without saying where the schedule is that mixer's.
    whose = "" if evidence.recommended == evidence.mixer else f"{evidence.mixer} "
    lines += [f"{whose}{_compared(each, evidence.objective)}" for each in evidence.against[:MOST_BASELINES]]
    if len(evidence.against) > MOST_BASELINES:
        lines.append(f"{len(evidence.against) - MOST_BASELINES} more in --json")
    if kept := [
        f"{each.mixer} {each.forgotten} of {each.kept}" for each in evidence.curves[: 1 + MOST_BASELINES] if each.kept
    ]:
        lines.append(f"above the budget of what is kept, over all seeds: {', '.join(kept)}")
    mixers, seeds = len(evidence.curves), len(evidence.seeds)
    cost = f"{human_count(evidence.trained_steps)} steps trained in all, by {mixers} mixer{'s' * (mixers != 1)}"
    return [*lines, f"{cost} with {_seeds(seeds)}"]


def recommendation(evidence: Evidence) -> str:
    """Returns whether a guarded schedule is the learned one."""
    if evidence.recommended == evidence.mixer:
        kept = any(curve.kept for curve in evidence.curves)
        whom = "every baseline that forgets no more" if kept else "every baseline"
        return f"this is the schedule of {evidence.mixer}, which is better than {whom}"
    unsure = unbeaten(evidence.mixer, evidence.against, evidence.curves)
    return (
        f"this is the schedule of {evidence.recommended}, the best baseline: {evidence.mixer} was not shown to be better than "
        f"{' and '.join(unsure[:MOST_BASELINES])}"
    )


def _compared(each: Comparison, objective: str) -> str:
    interval = "" if each.interval is None else f" ± {each.interval:.1f}"
    said = f"against {each.baseline}, {_seeds(each.seeds)}: {objective} {each.difference:+z.1f}%{interval}"
    if shows_nothing(each):
        return f"{said}, no difference that {_spelled(each.seeds)} can show"
    reached = "its best never" if each.share_to_best is None else f"its best in {each.share_to_best:.0%} of the steps"
    return f"{said}, {reached}"


def needed_lines(evidence: Evidence) -> list[str]:
    """Returns how many seeds it takes to see a difference of 1% from each baseline, where two or more say how much runs differ."""
    lines = []
    for each in evidence.against:
        if each.deviation is None:
            continue
        needed = seeds_needed(each.deviation, WANTED)
        enough = f"the {each.seeds} seeds are enough" if needed <= each.seeds else f"it takes about {needed:,} seeds"
        lines.append(
            f"to see a difference of {WANTED:g}% from {each.baseline}, {enough}: paired differences have a standard deviation of "
            f"{each.deviation:.2g}%"
        )
    return lines


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number != 1)}"


def _spelled(number: int) -> str:
    words = ("no seeds", "one seed", "two seeds", "three seeds", "four seeds", "five seeds")
    return words[number] if number < len(words) else _seeds(number)

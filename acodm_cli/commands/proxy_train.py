"""`acodm proxy-train`: learn a mixture policy on a small model and export it as a schedule."""

from __future__ import annotations

import shlex

from rich.console import Console

from acodm_cli.commands.evaluate import evaluate_saved
from acodm_cli.commands.train import carry_out
from acodm_cli.corpus.settings import CorpusSettings
from acodm_cli.display.progress import make_console
from acodm_cli.runs.settings import RunSettings, StartSettings
from acodm_cli.settings import declared

# What the target should have as the proxy had it, besides the corpus.
LEARNED_WITH = ("lr_schedule", "lr_decay_share")


def run_proxy_train(settings: RunSettings, start: StartSettings) -> None:
    """Carries the run out, and prints what to do next."""
    written = carry_out(settings, start, None)
    if written is None:
        return
    evaluate_saved(settings, start, written)
    say_what_next(settings, start, make_console())


def say_what_next(settings: RunSettings, start: StartSettings, console: Console) -> None:
    """Prints commands that look at the schedule and use it, and where it is."""
    of_target = ["--init-from", "FOLDER"] if settings.init_from else ["--model", _larger(settings.model)]
    target = ["acodm", "apply", "--schedule", str(start.out), *of_target]
    if settings.for_tokens is not None:
        target += ["--steps", str(max(1, settings.for_tokens // settings.tokens_per_step))]
    known = declared(RunSettings)
    for name in (*LEARNED_WITH, *declared(CorpusSettings)):
        if (value := getattr(settings, name)) != known[name].default and name != "cache_dir":
            target += [str(known[name].option), str(value)]
    look = shlex.join(["acodm", "inspect", str(start.out)])
    console.print(f"\nlook at it:  {look}\nuse it:      {shlex.join(target)}", highlight=False, soft_wrap=True)
    print(start.out)  # noqa: T201 - the result, for scripts


def _larger(model: str) -> str:
    """Returns a target for the hint: a model that a proxy of this size would be for."""
    targets = {
        "pythia-14m": "pythia-31m",
        "pythia-31m": "pythia-70m",
        "pythia-70m": "pythia-410m",
        "llama-tiny": "llama-160m",
        "llama-160m": "llama-0.9b",
    }
    return targets.get(model, "pythia-1b")

"""`acodm proxy-train`: learn a mixture policy on a small model and export it as a schedule."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from acodm_cli.commands.files import RunFiles
from acodm_cli.commands.run import StopRequest, finish, prepare, resume, say_how_long, show_preflight, train
from acodm_cli.config import RunSettings
from acodm_cli.display.progress import make_console
from acodm_cli.display.summary import print_summary, print_title


def run_proxy_train(settings: RunSettings, out: Path, resuming: bool, force: bool, dry: bool) -> None:
    console = make_console()
    files = RunFiles(out)
    if not (resuming or dry):
        files.check(settings, force)
    with StopRequest().installed() as stop, nullcontext() if dry else files.locked():
        run = prepare(settings, files, None, console)
        print_title(console, run.info(), run.compute.label)
        show_preflight(run, None, console)
        if dry:
            return
        if resuming:
            resume(run, console)
        else:
            files.begin(settings)
        say_how_long(run, console)
        train(run, stop, console)
        schedule = finish(run)
    print_summary(console, schedule)
    target = ["acodm apply", f"--schedule {out}", f"--model {_larger(settings.model)}"]
    for name in ("data", "tokenizer", "domain_field", "domain_tokens"):
        if (value := getattr(settings, name)) is not None:
            target.append(f"--{name.replace('_', '-')} {value}")
    if settings.text_field != "text":
        target.append(f"--text-field {settings.text_field}")
    console.print(
        f"\nlook at it:  acodm inspect {out}\nuse it:      {' '.join(target)}", highlight=False, soft_wrap=True
    )
    print(out)  # noqa: T201 - the result, for scripts


def _larger(model: str) -> str:
    """A target for the hint: the model a proxy of this size would be for."""
    targets = {
        "pythia-14m": "pythia-31m",
        "pythia-31m": "pythia-70m",
        "pythia-70m": "pythia-410m",
        "llama-tiny": "llama-160m",
        "llama-160m": "llama-0.9b",
    }
    return targets.get(model, "pythia-1b")

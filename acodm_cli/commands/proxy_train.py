"""`acodm proxy-train`: learn a mixture policy on a small model and export it as a schedule."""

from __future__ import annotations

from pathlib import Path

from acodm_cli.commands.files import RunFiles
from acodm_cli.commands.run import carry_out
from acodm_cli.config import RunSettings
from acodm_cli.display.progress import make_console


def run_proxy_train(settings: RunSettings, out: Path, resuming: bool, force: bool, dry: bool) -> None:
    if not carry_out(settings, RunFiles(out), None, resuming, force, dry):
        return
    target = ["acodm apply", f"--schedule {out}", f"--model {_larger(settings.model)}"]
    for name in ("data", "tokenizer", "domain_field", "domain_tokens"):
        if (value := getattr(settings, name)) is not None:
            target.append(f"--{name.replace('_', '-')} {value}")
    if settings.text_field != "text":
        target.append(f"--text-field {settings.text_field}")
    make_console().print(
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

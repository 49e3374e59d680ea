"""The command line. Its options are the fields of settings classes. All work and heavy imports are in commands/."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from acodm_cli import __version__, errors
from acodm_cli.commands.inspect_settings import InspectSettings
from acodm_cli.commands.launch import end_with_launcher, is_a_rank, run_ranks
from acodm_cli.commands.options import Given, takes
from acodm_cli.errors import AcodmError, Interrupted, ResourceError, UsageError
from acodm_cli.mixing.settings import MIXER_OF_MODE
from acodm_cli.runs.settings import Command, RunSettings, StartSettings, StudySettings
from acodm_cli.settings import as_given, declared
from acodm_cli.writing import send_nowhere

# By which the user says how PyTorch takes a GPU's memory; each release that we support reads the first.
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")

app = typer.Typer(
    name="acodm",
    help="Learn pretraining data mixtures on a small model and transfer them to a large one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Learn pretraining data mixtures on a small model and transfer them to a large one."""
    if version:
        print(f"acodm {__version__}")  # noqa: T201
        raise typer.Exit


@app.command("proxy-train")
@takes(RunSettings, StartSettings, StudySettings, command="proxy-train", defaults={"out": Path("out.parquet")})
def proxy_train(given: Given) -> None:
    """Learn a mixture policy on a small model, or run a baseline, and export it as a schedule."""
    start = StartSettings(**given.of(StartSettings))
    study = StudySettings(**given.of(StudySettings))
    if study.seeds is not None:
        _check_study(start, given.named)
    settings = _settings(given, "proxy-train", start)
    if settings is not None and study.seeds is not None:
        from acodm_cli.commands.study import run_study

        run_study(settings, start, study)
        return
    if settings is None or _ran_in_ranks(start.nproc):
        return
    from acodm_cli.commands.proxy_train import run_proxy_train

    run_proxy_train(settings, start)


# What the user leaves open is taken from the schedule, but for the model, which must be given.
_OPEN: dict[str, Any] = {"model": None, "steps": None, "batch": None, "seq_len": None, "seed": None}


@app.command()
@takes(RunSettings, StartSettings, command="apply", defaults={"out": Path("applied.parquet")} | _OPEN)
def apply(given: Given) -> None:
    """Train a target model with a learned policy or schedule, or online without one."""
    start = StartSettings(**given.of(StartSettings))
    settings = _settings(given, "apply", start)
    if settings is None or _ran_in_ranks(start.nproc):
        return
    from acodm_cli.commands.apply import run_apply

    run_apply(settings, start, given.named)


@app.command()
@takes(InspectSettings, command="inspect")
def inspect(given: Given) -> None:
    """Show a schedule, compare several, compose new ones, export to other trainers."""
    settings = InspectSettings(**given.of(InspectSettings))
    from acodm_cli.commands.inspect import run_inspect

    try:
        run_inspect(settings)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output left; nothing is wrong, but Typer would exit with 1
        send_nowhere(sys.stdout)


def _settings(given: Given, command: Command, start: StartSettings) -> RunSettings | None:
    """Returns the settings from the options, or with --resume from the run folder; None if nothing is left to do."""
    if "help" in (given.values.get("mixer_options") or ()):
        from acodm_cli.commands.mixer_options import print_mixer_options

        mode = given.values.get("mode", "auto")
        mixer = given.values.get("mixer") or MIXER_OF_MODE.get("online" if mode == "auto" else mode, mode)
        print_mixer_options(mixer, given.values["agent"])
        return None
    values = given.of(RunSettings)
    if start.resume:
        return _resumed_settings(values, given.named, command, start.out)
    if "model" not in values and values.get("init_from") is None:
        raise UsageError("give the target with --model, for example --model pythia-1b, or its weights with --init-from")
    if command == "apply" and "save_model" not in values:
        values["save_model"] = str(start.out.parent / f"{start.out.stem}.model")
    settings = RunSettings(command=command, **values)
    if not is_a_rank():
        _check_places(settings)
    return settings


def _check_study(start: StartSettings, named: set[str]) -> None:
    """Raises UsageError for an option that is for one run."""
    if start.resume:
        raise UsageError("the same command again continues a study; leave --resume out")
    if start.dry_run:
        raise UsageError("--dry-run is for one run; give --seed in place of --seeds")
    if start.profile is not None:
        raise UsageError("--profile is for one run; give --seed in place of --seeds")
    if "seed" in named:
        raise UsageError("give either --seed, for one run, or --seeds, for a study")


def _check_places(settings: RunSettings) -> None:
    """Raises UsageError or ScheduleError for a place that is not there, before PyTorch takes seconds to be imported."""
    if settings.data is not None:
        from acodm_cli.corpus.sources import place_of

        place_of(settings.data, settings.domain_field)
    if settings.schedule is not None:
        from acodm_cli.schedule.library import find_schedule

        find_schedule(settings.schedule)


def _resumed_settings(values: dict[str, Any], named: set[str], command: Command, out: Path) -> RunSettings | None:
    from acodm_cli.mixing.catalog import mixer_class
    from acodm_cli.runs.folder import RunFolder

    folder = RunFolder(out)
    if out.exists() and not folder.settings_file.is_file():
        folder.clear()
        _check_complete(values, named, out)
        print(f"{out} is complete; nothing to resume", file=sys.stderr)  # noqa: T201
        return None
    stored = folder.resumable_settings()
    if stored.command != command:
        raise UsageError(f"the unfinished run of {out} is of acodm {stored.command}; resume it with that command")
    given = [name for name in named if name in values]
    mixer = MIXER_OF_MODE.get(stored.mode, stored.mixer) if command == "apply" else stored.mixer
    files = mixer_class(mixer).files
    asked = replace(stored, **{name: values[name] for name in given}).anchored(files)
    for name in given:
        each, before, value = declared(RunSettings)[name], getattr(stored, name), getattr(asked, name)
        if name == "mixer_options" and _but_for(files, before) == _but_for(files, value):
            continue  # a file may have moved: what is in it is compared
        if value != before and not each.changeable:
            was = "default" if before is None else as_given(before)
            raise UsageError(
                f"{each.option} {as_given(value)} differs from the unfinished run's {was}; leave it out, or start over with --force"
            )
    return asked


def _but_for(names: tuple[str, ...], options: dict[str, str] | None) -> dict[str, str]:
    return {name: value for name, value in (options or {}).items() if name not in names}


def _check_complete(values: dict[str, Any], named: set[str], out: Path) -> None:
    """Raises UsageError if a run is to be resumed that is complete, with another number of steps."""
    from acodm_cli.schedule.schedule import Schedule

    steps = Schedule.load(str(out)).run.steps
    if "steps" in named and steps is not None and values["steps"] != steps:
        raise UsageError(
            f"{out} is complete with {steps} steps, and a finished run cannot be made longer: its learning rate has come to its "
            "end; start a new run with another --out"
        )


def _ran_in_ranks(nproc: int | None) -> bool:
    """Returns whether --nproc asked for ranks; they have run by now. If one failed, this process exits as it did."""
    if nproc is None or nproc == 1:
        return False
    if code := run_ranks(nproc, sys.argv[1:]):
        raise typer.Exit(code)
    return True


def _set_up_allocator() -> None:
    """Lets the memory that PyTorch has taken on a GPU grow in place, so that less is lost between pieces, unless the user says how. It
    is read when PyTorch is imported."""
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. Known errors become one line and their exit code."""
    _set_up_allocator()
    end_with_launcher()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the terminal's encoding is, output must not fail for it
            with suppress(OSError):  # where the stream was led elsewhere since it was opened
                stream.reconfigure(errors="replace")
    try:
        code = app(arguments, standalone_mode=False)
        sys.stdout.flush()
    except Interrupted as error:
        code = _fail(str(error), error.exit_code, "")
    except AcodmError as error:
        code = _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _fail("interrupted", 130, "")
    except BrokenPipeError:
        send_nowhere(sys.stdout)
        code = 0
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        send_nowhere(sys.stdout)
        code = _fail(f"the output cannot be written: {error.strerror}; make room where it goes", 1)
    except Exception as error:
        # Typer's usage errors are known by their interface, because the module that defines them is private to Typer.
        if not hasattr(error, "format_message"):
            if errors.joined:
                if not errors.ending:
                    _tell_of_rank(error)
                _end_rank(1)
            raise
        code = _fail(f"{error.format_message()} (see --help)", getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)


def _shown(message: str) -> str:
    """A message on one line, in which control characters are seen instead of obeyed."""
    text = " ".join(message.replace("\r", "\\r").split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fail(message: str, code: int, prefix: str = "error: ") -> int:
    rank = os.environ.get("RANK", "0") if is_a_rank() else "0"
    # The first rank says what all ranks know.
    if rank in ("", "0") or not errors.joined or code == ResourceError.exit_code:
        where = "" if rank in ("", "0") else f"rank {rank}: "
        with suppress(OSError):
            print(prefix + _shown(where + message), file=sys.stderr)  # noqa: T201
    if errors.joined:
        _end_rank(code)
    return code


def _tell_of_rank(error: Exception) -> None:
    """Prints why a rank fails. Where another has gone, which PyTorch knows by its connection only, a traceback would look like
    the cause."""
    if "gloo/transport" in str(error) or type(error).__name__ in ("DistBackendError", "DistNetworkError"):
        rank = os.environ.get("RANK", "0")
        print(f"rank {rank} ends, because another rank is gone: {_shown(str(error))[:100]}", file=sys.stderr)  # noqa: T201
    else:
        traceback.print_exc()


def _end_rank(code: int) -> NoReturn:
    """Ends a rank that failed, without destructors: after a failed collective, that of DDP joins a thread of gloo's that needs
    the interpreter's lock, which it holds itself."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)

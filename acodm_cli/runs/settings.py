"""The settings of a run, which join the groups of its parts, and the settings of how a command begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from acodm_cli.alignment.settings import AlignmentSettings
from acodm_cli.corpus.settings import CorpusSettings, TargetSettings
from acodm_cli.engine.settings import TrainSettings
from acodm_cli.errors import UsageError
from acodm_cli.mixing.settings import MixingSettings
from acodm_cli.runs.trackers import TRACKERS
from acodm_cli.settings import check_options, declared, setting

Command = Literal["proxy-train", "apply"]


@dataclass(frozen=True)
class FileSettings:
    """The settings that say what a run keeps on disk."""

    PANEL: ClassVar = "Files"

    save_model: str | None = setting(None, changeable=True)
    """The folder for the trained model (of several --episodes, the last one's), as a Hugging Face checkpoint. Default: none
    of proxy-train, beside --out of apply."""

    checkpoint_every: int | None = setting(None, least=1, changeable=True)
    """The number of steps between checkpoints. Default: a fifth of the run, at most 1000."""

    keep_checkpoints: int = setting(2, least=1, changeable=True)
    """The number of the newest checkpoints that are kept."""

    track: tuple[str, ...] = setting((), choices=(*TRACKERS, "none"), changeable=True)
    """Write the run's numbers to a tracker too, beside --out. The option may be given several times. none: to no tracker,
    also if the run that is resumed had some."""

    @property
    def trackers(self) -> list[str]:
        """The names of the trackers, each once."""
        return [name for name in dict.fromkeys(self.track) if name != "none"]


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings that say how lm-evaluation-harness evaluates the saved model when the run is complete."""

    PANEL: ClassVar = "Evaluation"

    evaluate: str | None = setting(None, changeable=True)
    """Evaluate the saved model (of several --episodes, the last one's) on these tasks of lm-evaluation-harness (acodm[eval]),
    with commas between them, when the run is complete. none: on no task, also if the run that is resumed had some."""

    evaluate_tasks: str | None = setting(None, changeable=True)
    """A folder with task definitions of your own, beside those that lm-evaluation-harness has."""

    evaluate_limit: int | None = setting(None, least=1, changeable=True)
    """The number of samples of each task. Default: all."""

    evaluate_unsafe: bool = setting(False, changeable=True)
    """Allow tasks, such as humaneval, that execute what the model writes on this machine. Use a container."""

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks to evaluate on, each once."""
        names = [name.strip() for name in (self.evaluate or "").split(",")]
        return [name for name in dict.fromkeys(names) if name not in ("", "none")]


@dataclass(frozen=True)
class RunSettings(
    EvaluationSettings, FileSettings, AlignmentSettings, MixingSettings, TargetSettings, CorpusSettings, TrainSettings
):
    """Everything that decides what a run computes. Each part of the program takes the group that it knows.

    The settings are stored in the run's folder, so that `--resume` needs only `--out`.

    Raises:
        UsageError: a value is out of its range, or does nothing beside another.
    """

    command: Command = setting("proxy-train", flag=None)
    """The command that the run belongs to."""

    def __post_init__(self) -> None:
        check_options(self)
        self.check_learning_rate()
        self.check_parallel()

    @property
    def all_steps(self) -> int:
        """The number of steps of all episodes together."""
        return self.episodes * self.steps

    @property
    def steps_between_checkpoints(self) -> int:
        """The number of steps between checkpoints: `checkpoint_every`, or a fifth of the run and at most 1000."""
        return self.checkpoint_every or max(1, min(1000, self.all_steps // 5))

    def to_json(self) -> dict[str, Any]:
        """Returns all settings by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RunSettings:
        """Returns the settings that `to_json` gave. Raises ValueError or UsageError if they are not of this version."""
        known = {field.name for field in fields(cls)}
        if odd := sorted(set(value) ^ known):
            raise ValueError(f"unknown or missing settings {', '.join(odd)}")
        return cls(**value | {name: tuple(value[name]) for name in ("track", "target", "keep")})

    def anchored(self, files: Iterable[str] = ()) -> RunSettings:
        """Returns the same settings with places on disk as absolute paths, so that they hold in every folder.

        files: the options of the mixer that name files."""
        changed: dict[str, Any] = {
            name: _absolute(text)
            for name in ("save_model", "cache_dir", "evaluate_tasks")
            if (text := getattr(self, name))
        }
        for name in (
            "data",
            "tokenizer",
            "schedule",
            "init_from",
        ):  # or they are names of the hub, or of reference schedules
            changed[name] = _absolute_if_there(getattr(self, name))
        changed["target"] = tuple(map(_anchored_target, self.target))
        if "/" in self.model:  # a preset comes before a folder of the same name
            changed["model"] = _absolute_if_there(self.model)
        if self.mixer_options:
            changed["mixer_options"] = {
                name: _absolute_if_there(text) if name in files else text for name, text in self.mixer_options.items()
            }
        return replace(self, **changed)

    def changed(self) -> dict[str, Any]:
        """Returns the settings that are not at their defaults, by name."""
        values = {name: getattr(self, name) for name in declared(RunSettings)}
        return {name: value for name, value in values.items() if value != declared(RunSettings)[name].default}


def _absolute(text: str) -> str:
    return str(Path(text).expanduser().resolve())


def _anchored_target(text: str) -> str:
    name, equals, path = text.partition("=")
    if not equals or _absolute_if_there(text) != text:
        return _absolute_if_there(text) or text
    return f"{name}={_absolute_if_there(path)}"


def _absolute_if_there(text: str | None) -> str | None:
    try:
        return _absolute(text) if text and Path(text).expanduser().exists() else text
    except (OSError, RuntimeError, ValueError):  # no path at all
        return text


@dataclass(frozen=True)
class StartSettings:
    """The settings that say how a command begins. They are not stored with the run."""

    PANEL: ClassVar = "Files"

    out: Path = setting(MISSING)
    """The schedule to write: the record of the run."""

    resume: bool = setting(False)
    """Continue the unfinished run of the same --out."""

    force: bool = setting(False)
    """Replace existing files, and start an unfinished run over."""

    dry_run: bool = setting(False)
    """Prepare the corpus, show what the run would use of it, and stop."""

    nproc: int | None = setting(None, least=1, panel="Training")
    """Start so many ranks on this machine, as torchrun --nproc-per-node does."""

    threads: int | None = setting(None, least=1, panel="Training")
    """The number of threads for computing on a CPU. Default: the cores that this job has, shared by its ranks."""

    profile: str | None = setting(None, panel="Training")
    """Write what these steps spend their time on beside --out, for example 10-12, as a trace of torch.profiler."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.profiled is not None and self.dry_run:
            raise UsageError(f"--profile {self.profile} does nothing with --dry-run; leave one of them out")

    @property
    def profiled(self) -> tuple[int, int] | None:
        """The first and the last step to profile. Raises UsageError if they are not written as that."""
        if self.profile is None:
            return None
        first, _, last = self.profile.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal() and 1 <= int(first) <= int(last or first)):
            raise UsageError(f"--profile {self.profile}; give a step or the first and the last one, as in 10-12")
        return int(first), int(last or first)


@dataclass(frozen=True)
class StudySettings:
    """The settings that make a study out of `proxy-train`: the same run with several seeds, and beside baselines."""

    PANEL: ClassVar = "Study"

    seeds: str | None = setting(None)
    """Train with each of these seeds, for example 0,1,2, and export their mean with what it is worth. The same command again
    continues, or collects what is finished."""

    against: str | None = setting(None)
    """Train these with the same seeds too, and compare: mixers and schedules, for example natural,uniform,mine.parquet. Mixers may
    have settings of their own: ac-odm:agent=paper:anchor=0."""

    jobs: int = setting(1, least=1)
    """The number of runs at a time, each with its share of the cores."""

    guard: bool = setting(False)
    """Export the best of --against instead, unless the 95% interval is on the good side of each of them."""

    print_commands: bool = setting(False)
    """Print the command of each run, one a line, and stop: they may run anywhere that shares the folder of --out."""

    def __post_init__(self) -> None:
        check_options(self)
        for name, each in declared(StudySettings).items():
            if self.seeds is None and getattr(self, name) != each.default:
                raise UsageError(f"{each.option} is for several runs; give their seeds, for example --seeds 0,1,2")
        if self.guard and not self.baselines:
            raise UsageError("--guard compares with baselines; name some, for example --against natural,uniform")

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds, in order. Raises UsageError if they are not different whole numbers."""
        known = declared(RunSettings)["seed"]
        parts = _listed(self.seeds)
        seeds = [int(part) if part.isdecimal() and len(part) < 20 else None for part in parts]
        if not seeds or None in seeds or len(set(seeds)) < len(seeds) or any(map(known.refusal, seeds)):
            raise UsageError(f"--seeds {self.seeds}; give different whole numbers with commas between, as in 0,1,2")
        return tuple(seed for seed in seeds if seed is not None)

    @property
    def baselines(self) -> list[str]:
        """What --against names, in order."""
        return _listed(self.against)


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]

"""A study: the same run with several seeds, and beside baselines, as single runs that anyone may start; then what they say together.

    out.parquet     the mean schedule over the seeds, with evidence
    out.study/      study.json (what the runs have in common), MIXER-seed-N.parquet of each run that is finished, and its folder
                    MIXER-seed-N.run until then; learned.parquet if the schedule is a baseline's

Shape letters: S rows of a schedule, K domains.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from acodm_cli import __version__
from acodm_cli.alignment.settings import AlignmentSettings
from acodm_cli.errors import AcodmError, ScheduleError, UsageError
from acodm_cli.mixing.catalog import MIXERS, mixer_class
from acodm_cli.mixing.mixer import Mixer
from acodm_cli.mixing.options import described, parsed
from acodm_cli.runs.build import GUIDE, input_digests, used_settings
from acodm_cli.runs.folder import RunFolder
from acodm_cli.runs.settings import RunSettings, StartSettings, StudySettings
from acodm_cli.schedule import compose
from acodm_cli.schedule.evidence import evidence_of, fingerprint
from acodm_cli.schedule.library import find_schedule
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.settings import declared
from acodm_cli.writing import atomic_file, few, in_short, why_not_written

# These mixers do nothing without a schedule or weights; --against names those themselves.
_NEED_MORE = ("fixed", "replay", "policy")
# The settings that are of one mixer, and nothing to others.
_OF_MIXER = ("prior", "agent", "episodes", *GUIDE, *declared(AlignmentSettings))
_LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class SingleRun:
    """One run of a study. label: its mixer, or the schedule that it follows. settings: its own. out: where its schedule will be."""

    label: str
    settings: RunSettings
    out: Path

    @property
    def folder(self) -> RunFolder:
        """Where it is kept until it is finished."""
        return RunFolder(self.out)

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.label}, seed {self.settings.seed}"

    @property
    def log(self) -> Path:
        """Where what it prints goes, if the study starts it."""
        return self.out.with_suffix(".log")

    def arguments(self, start: StartSettings, resume: bool = False) -> list[str]:
        """Returns the arguments of `acodm` that train it. start: its ranks and threads are the run's. resume: of one that has begun."""
        begin = ["--resume"] if resume else options_of(self.settings)
        many = [("--nproc", start.nproc), ("--threads", start.threads)]
        counts = [text for option, number in many if number is not None for text in (option, str(number))]
        return ["proxy-train", *begin, *counts, "--out", str(self.out)]


def stem_of(label: str) -> str:
    """Returns what the files of runs with this label begin with."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", label)


def options_of(settings: RunSettings) -> list[str]:
    """Returns the options that give these settings, without those at their defaults."""
    words = []
    for name, value in settings.changed().items():
        option = declared(RunSettings)[name].option
        if option is None:
            continue
        if isinstance(value, bool):
            assert value, f"{option} has no opposite on the command line"
            words.append(option)
            continue
        parts = [f"{key}={text}" for key, text in value.items()] if isinstance(value, dict) else value
        for part in parts if isinstance(parts, (list, tuple)) else [parts]:
            # What begins with a dash would be taken for an option.
            words += [f"{option}={part}"] if str(part).startswith("-") else [option, str(part)]
    return words


class Study:
    """What `proxy-train --seeds` is to do.

    settings: of the mixer that is studied; its seed does not count. Raises: UsageError if a baseline is neither mixer nor schedule,
    or is there twice.
    """

    def __init__(self, settings: RunSettings, start: StartSettings, asked: StudySettings) -> None:
        self.out = start.out
        self.folder = start.out.absolute().parent / f"{start.out.stem}.study"
        self.asked = asked
        self.seeds = asked.seed_list
        self.studied = settings.anchored(mixer_class(settings.mixer).files)
        self.by_label = {settings.mixer: self.studied}
        for given in asked.baselines:
            label, baseline = self._baseline(given)
            if label in self.by_label:
                raise UsageError(
                    f"--against {given}: {label} is in the study already; leave it out, or rename the file"
                )
            self.by_label[label] = baseline
        files = {label: stem_of(label) for label in self.by_label}
        if len(set(files.values())) < len(files):
            raise UsageError("the names of two schedules of --against differ in special characters only; rename one")
        self.runs = [
            SingleRun(label, replace(each, seed=seed), self.folder / f"{files[label]}-seed-{seed}.parquet")
            for seed in self.seeds
            for label, each in self.by_label.items()
        ]

    def _baseline(self, given: str) -> tuple[str, RunSettings]:
        """Returns the name and the settings of a baseline, which keeps of the studied mixer's own settings those that it uses."""
        name, *words = given.split(":")
        if name in _NEED_MORE:
            raise UsageError(
                f"--against {given} needs weights; name the schedule that has them, by its file or its name"
            )
        if name in MIXERS:
            return self._with_words(name, words)
        try:
            path = find_schedule(given)
        except ScheduleError as error:
            raise UsageError(f"--against {given} is no mixer ({', '.join(MIXERS)}), and {error}") from None
        if path.resolve() == self.out.resolve():
            raise UsageError(f"--against {given} is what the study writes; give another --out")
        return path.stem, self._of(mixer_class("replay"), mixer="replay", mixer_options={"schedule": given})

    def _with_words(self, name: str, words: list[str]) -> tuple[str, RunSettings]:
        """Returns the name and the settings of a mixer with words NAME=VALUE, each an option of the mixer or one of `_OF_MIXER`."""
        kind, known = mixer_class(name), declared(RunSettings)
        changed: dict[str, Any] = {}
        options: dict[str, str] = {}
        label = name
        for word in words:
            key, equals, text = word.partition("=")
            if not (key and equals):
                raise UsageError(f"--against {name}:{word}; write what to change as {name}:NAME=VALUE")
            label += f":{key}={Path(text).name if key in kind.files else text}"
            if key not in _OF_MIXER:
                options[key] = text
            elif key not in used_settings(kind):
                raise UsageError(f"--against {name}:{word} does nothing with mixer {name}; leave it out")
            else:
                try:
                    changed[key] = parsed(text, known[key])
                except ValueError:
                    raise UsageError(f"--against {name}:{word}; {key} is {described(known[key])}") from None
        return label, self._of(kind, mixer=name, mixer_options=options or None, **changed)

    def _of(self, kind: type[Mixer], **changed: Any) -> RunSettings:
        """Returns the settings of the study for another mixer, which keeps of the studied one's those that it uses too."""
        unused = {
            name: declared(RunSettings)[name].default
            for name in (*_OF_MIXER, "objective_weights", "replay_by")
            if name not in used_settings(kind)
        }
        return replace(self.studied, **unused | changed).anchored(kind.files)

    # What the runs have in common

    @cached_property
    def common(self) -> dict[str, Any]:
        """What all runs share and what the studied mixer is made of, as JSON values: nothing of this machine."""
        files = mixer_class(self.studied.mixer).files
        found = {
            name: getattr(self.studied, name) for name, each in declared(RunSettings).items() if not each.changeable
        }
        del found["seed"], found["command"]
        found["mixer_options"] = {n: v for n, v in (found["mixer_options"] or {}).items() if n not in files}
        found["model"] = Path(self.studied.model).name if "/" in self.studied.model else self.studied.model
        return dict(json.loads(json.dumps(found)))

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Digests of the files that mixers read, by the name of the mixer or schedule and of the option."""
        found: dict[str, str] = {}
        for label, settings in self.by_label.items():
            digests = input_digests(settings, mixer_class(settings.mixer))
            found |= {f"{label}, {option}": digest for option, digest in digests.items()}
        return found

    @property
    def digest(self) -> str:
        """A digest of `common`."""
        return hashlib.sha256(json.dumps(self.common, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def objective_weights(self) -> dict[str, float]:
        """How much domains count in what all runs are compared by, where that is not 1."""
        return {name: float(text) for name, text in (self.studied.objective_weights or {}).items()}

    # On disk

    def begin(self, force: bool) -> None:
        """Makes the folder of the study, or checks that the one that is there is of this study, perhaps with fewer seeds and
        baselines. force: starts over.

        Raises:
            UsageError: something else is there, or the place cannot be written.
        """
        RunFolder(self.out).check_out()
        before = {}
        if not force:
            self._check_out()
            before = self._check_folder()
        try:
            self.folder.mkdir(exist_ok=True)
            if force:
                self._clear()
            content = {"acodm_version": __version__, "settings": self.common, "inputs": before | self.inputs}
            with atomic_file(self.folder / "study.json") as file:
                file.write(json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")
        except OSError as error:
            why = why_not_written(error, self.folder.parent)
            raise UsageError(f"cannot write in {self.folder}: {why}; choose another --out") from None

    def _check_out(self) -> None:
        if not self.out.exists():
            return
        try:
            evidence = Schedule.read(self.out, ()).run.evidence
        except ScheduleError:
            evidence = None
        if evidence is None or evidence.settings != self.digest:
            raise UsageError(
                f"{self.out} exists, and is not of a study with these settings; use --force to replace it, or another --out"
            )

    def _check_folder(self) -> dict[str, str]:
        """Returns the digests of what the runs that are there have read."""
        path = self.folder / "study.json"
        if not path.exists():
            return {}
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise ValueError("it is too large")
            content = json.loads(path.read_text())
            before, inputs = dict(content["settings"]), dict(content["inputs"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UsageError(f"{path} cannot be read ({in_short(error)}); start over with --force") from None
        if differing := [name for name in self.common if before.get(name) != self.common[name]]:
            said = [f"{name.replace('_', ' ')} {before.get(name)}, not {self.common[name]}" for name in differing]
            raise UsageError(
                f"{self.folder} is of a study with {few(said)}; give the same settings, another --out, or --force to start over"
            )
        if changed := [name for name, digest in self.inputs.items() if inputs.get(name, digest) != digest]:
            raise UsageError(
                f"what {changed[0]} names has changed since the study began; restore it, rename it, or start over with --force"
            )
        return inputs

    def _clear(self) -> None:
        """Removes the single runs. Raises UsageError if one of them is still at work."""
        for path in (*self.folder.glob("*-seed-*.run"), *self.folder.glob("*-seed-*.parquet")):
            folder = RunFolder(path.with_suffix(".parquet"))
            if folder.path.is_dir():
                with folder.locked():
                    folder.remove()
            for each in (folder.out, path.with_suffix(".log")):
                each.unlink(missing_ok=True)
        for path in (self.folder / "learned.parquet", self.out):
            path.unlink(missing_ok=True)

    # Collecting

    def collect(self) -> Schedule:
        """Reads the finished runs, and writes the schedule of the study: the mean over the seeds, with the policy of the run that is
        nearest to it, and the evidence. Returns it.

        Raises:
            ScheduleError: a run cannot be read, or is not of this study.
            AcodmError: the schedule cannot be written.
        """
        runs = {label: [self._read(run) for run in self.runs if run.label == label] for label in self.by_label}
        self._check_alike([(run, runs[run.label][self.seeds.index(run.settings.seed)]) for run in self.runs])
        evidence = evidence_of(runs, self.seeds, self.asked.guard, self.digest, self.objective_weights)
        chosen = dict.fromkeys([evidence.mixer, evidence.recommended])
        means = {label: mean_of(runs[label]) for label in chosen}
        schedules = {}
        for label, (mean, policy_seed) in means.items():
            guarded = evidence.guarded and label == evidence.recommended
            said = asdict(replace(evidence, recommended=label, guarded=guarded, policy_seed=policy_seed))
            schedules[label] = replace(mean, info=mean.info | {"evidence": json.loads(json.dumps(said))})
        learned = self.folder / "learned.parquet"
        try:
            learned.unlink(missing_ok=True)
            if evidence.recommended != evidence.mixer:
                schedules[evidence.mixer].write(learned)
            schedules[evidence.recommended].write(self.out)
        except OSError as error:
            why = why_not_written(error, self.folder.parent)
            raise AcodmError(f"cannot write {self.out}: {why}; make room, and give the same command again") from None
        return schedules[evidence.recommended]

    def _read(self, run: SingleRun) -> Schedule:
        schedule, settings = Schedule.read(run.out), run.settings
        found = schedule.run
        for what, is_there, wanted in (
            ("seed", found.seeds, (settings.seed,)),
            ("steps", found.steps, settings.steps),
            ("mixer", found.mixer, settings.mixer),
            ("batch", found.batch, settings.batch),
            ("seq_len", found.seq_len, settings.seq_len),
        ):
            if is_there != wanted:
                raise ScheduleError(
                    f"{run.out} has {what} {is_there}, not {wanted}; move it away, and it will be trained again"
                )
        return schedule

    def _check_alike(self, found: Iterable[tuple[SingleRun, Schedule]]) -> None:
        """Raises ScheduleError if the runs were not trained and measured on the same text."""
        first: dict[str, Any] = {}
        for run, schedule in found:
            given = schedule.info.get("targets")
            targets = given if isinstance(given, dict) else {}
            same = {name: fingerprint(schedule.info.get(name)) for name in ("corpus", "tokenizer")} | {
                "target text": {name: info.get("report") for name, info in targets.items() if isinstance(info, dict)},
                "model": schedule.run.model,
                "trained weights": schedule.info.get("init_from") and schedule.info["init_from"].get("digest"),
            }
            first = first or same
            if differing := [name for name, value in same.items() if value != first[name]]:
                raise ScheduleError(
                    f"{run.out} is of another {differing[0]} than the runs before it; move it away, and it will be trained again"
                )


def mean_of(runs: list[Schedule]) -> tuple[Schedule, int | None]:
    """Returns the mean schedule of runs that differ in their seeds, and the seed of its policy: that of the run that is nearest to
    the mean. The column `WEIGHT_SD` is the standard deviation of the weights over the runs. [S, K]"""
    if len(runs) == 1:
        mean, policy = runs[0], runs[0].policy
    else:
        mean, deviation_SK = compose.merge(runs)
        policy = runs[compose.nearest(mean, runs)].policy
        mean = replace(
            mean,
            policy=policy,
            per_domain=mean.per_domain | {compose.WEIGHT_SD: deviation_SK},
            metrics=mean.metrics | {compose.WEIGHT_SD: "domain"},
        )
    seeds = runs[compose.nearest(mean, runs)].run.seeds
    return mean, seeds[0] if policy is not None and seeds else None


def shown(arguments: list[str]) -> str:
    """Returns a command of acodm as a shell takes it."""
    return shlex.join(["acodm", *arguments])

"""A run that is ready to train: it trains, stops, saves and finishes, and does what ranks must do together."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from acodm_cli import __version__
from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.targets import Target
from acodm_cli.engine.device import Compute
from acodm_cli.engine.distributed import Ranks
from acodm_cli.engine.garbage import CollectedBetweenSteps
from acodm_cli.engine.host_copy import HostCopy
from acodm_cli.engine.memory import MemoryEstimate
from acodm_cli.engine.trainer import StepEvent, Trainer
from acodm_cli.engine.watch import Watch
from acodm_cli.errors import STOP_SIGNALS, AcodmError, Interrupted, UsageError
from acodm_cli.mixing.domain_map import DomainMap
from acodm_cli.mixing.mixer import Array, Mixer
from acodm_cli.mixing.objective import MEAN_OVER_DOMAINS, Objective
from acodm_cli.runs.checkpoint_writer import CheckpointWriter
from acodm_cli.runs.folder import RunFolder, load_checkpoint
from acodm_cli.runs.memory_plan import memory_errors
from acodm_cli.runs.model_folder import save_model
from acodm_cli.runs.recorder import Recorder
from acodm_cli.runs.settings import RunSettings
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.writing import why_not_written

# An episode is judged by at most so many sequences of each target's guide text.
JUDGED_BY = 256
# What ranks tell each other, where a signal's number would be, if a checkpoint could not be written.
_NOT_WRITTEN = 1 << 16


class StopRequest:
    """Handles the signals that ask a run to stop: SIGINT and SIGTERM, SIGUSR1 and SIGUSR2, by which Slurm and submitit tell
    that time is running out, and SIGHUP, which says that the terminal is gone.

    Before training, a signal stops the run at once. In training, it lets the step finish and be saved, which is said at
    once; a second signal stops the run without that. resuming: whether there is a saved run, for the message. say: tells the
    user.
    """

    def __init__(self, resuming: bool, say: Callable[[str], None] = lambda message: None) -> None:
        self.resuming = resuming
        self.say = say
        self.signal_number: int | None = None
        self.in_training = False
        self.at_once = False
        self.unsaved_steps = 0

    @contextmanager
    def installed(self) -> Iterator[StopRequest]:
        """Handles the signals while its block runs."""
        previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        # Python runs a handler when an operation of PyTorch has ended, which may be many seconds later. The number of the
        # signal comes through this pipe at once.
        arrived, arrives = os.pipe()
        os.set_blocking(arrives, False)
        before = signal.set_wakeup_fd(arrives, warn_on_full_buffer=False)
        threading.Thread(target=self._answer, args=(arrived,), daemon=True, name="signals").start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(before)
            os.close(arrives)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _answer(self, arrived: int) -> None:
        """Tells the user of the first signal, in a thread of its own."""
        with os.fdopen(arrived, "rb", buffering=0) as numbers:
            while byte := numbers.read(1):
                if byte[0] in STOP_SIGNALS and self.in_training:
                    name, lost = signal.Signals(byte[0]).name, self.unsaved_steps + 1
                    self.say(
                        f"{name}: stopping after this step; again to stop now and lose {lost} step{'s' * (lost > 1)}"
                    )
                    return

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.in_training:
            left = "the run to resume is as it was" if self.resuming else "nothing to resume"
            raise Interrupted(f"interrupted before training began; {left}", number)
        if self.signal_number is not None:
            self.at_once = True
            raise Interrupted("interrupted again: stopped at once; --resume continues from the last checkpoint", number)
        self.signal_number = number


class Run:
    """A run. It is built by `build_run`, and trained by `for event in run.steps()`.

    settings: what was asked for. targets: what the model should become good at. corpus, mixer, trainer: the parts of the run. prior_K: the weights that it starts
    from. compute, ranks: where it runs. parameters: the number of the model's parameters. memory: the estimated memory
    that it takes. inputs: a digest of the content of each input, by its name in messages. warn: told what the user
    should know. objective: what the run is for. domain_map: how a schedule's domains are the corpus's; None without one. recorder: keeps the record of the episode. costs: those of the episodes that
    are finished; with one episode, and on other ranks than the first, there are none. best: the record and the policy of the best
    of these. checkpoint_seconds: the time that steps have waited for saving. saves_in_background:
    whether checkpoints are written while training goes on.
    """

    def __init__(
        self,
        settings: RunSettings,
        corpus: Corpus,
        prior_K: Array,
        trainer: Trainer,
        compute: Compute,
        ranks: Ranks,
        memory: MemoryEstimate,
        inputs: dict[str, str],
        warn: Callable[[str], None],
        targets: Sequence[Target] = (),
        objective: Objective = MEAN_OVER_DOMAINS,
        domain_map: DomainMap | None = None,
    ) -> None:
        self.settings = settings
        self.targets = targets
        self.corpus = corpus
        self.prior_K = prior_K
        self.trainer = trainer
        self.compute = compute
        self.ranks = ranks
        self.parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        self.memory = memory
        self.inputs = inputs
        self.warn = warn
        self.objective = objective
        self.domain_map = domain_map
        self.recorder = self._new_recorder()
        self.costs: list[float] = []
        self.best: tuple[Recorder, bytes | None] | None = None
        self.checkpoint_seconds = 0.0
        self.saves_in_background = compute.device.type != "cpu" or memory.checkpoint > 0
        self._folder: RunFolder | None = None
        self._stop: StopRequest | None = None
        self._writer: CheckpointWriter | None = None
        self._host_copy = HostCopy(compute.device, ranks)

    def _new_recorder(self) -> Recorder:
        return Recorder(self.corpus.names, self.objective, [target.name for target in self.targets])

    @property
    def mixer(self) -> Mixer:
        """The mixer, which decides the weights."""
        return self.trainer.mixer

    # Training

    def steps(self) -> Iterator[StepEvent]:
        """Trains to the end, and yields an event per step. A run that is kept in a folder saves itself on the way.

        Raises:
            AcodmError: a loss or gradient is not finite, or a checkpoint cannot be written.
            ResourceError: the memory does not suffice.
            Interrupted: a signal asked to stop; the state is saved.
        """
        if self._stop is not None:
            self._stop.in_training = True
        with (
            memory_errors(self.settings),
            self._new_writer() as self._writer,
            CollectedBetweenSteps() as garbage,
            Watch(self.ranks, 60 * self.settings.rank_timeout) as watch,
        ):
            while True:
                for event in self.trainer.steps():
                    watch.round_ended()
                    garbage.step_ended(event.run_step, event.validation is not None)
                    judged_J = self._judged(event)
                    if self.ranks.is_first:
                        self._record(event, judged_J)
                    yield event
                    # From here on all ranks act together, and whoever follows the run has seen the step.
                    self._save_if_due(event.run_step)
                    watch.round_ended()
                if self.trainer.episode == self.settings.episodes:
                    return
                self._begin_episode()

    def _judged(self, event: StepEvent) -> Array | None:
        """Returns the losses by which an episode is judged, if it has ended and is one of several: those on the guide half of targets,
        because what is chosen by the report half could not be reported on it; without targets, those of the domains. [J]"""
        if self.settings.episodes == 1 or event.step < self.settings.steps:
            return None
        if self.targets:
            rows = [(target.guide, min(len(target.guide), JUDGED_BY)) for target in self.targets]
            bytes_V = self.corpus.tokenizer.token_bytes_V
            return self.trainer.measure([text.part(count, bytes_V) for text, count in rows]).losses_J
        return event.validation_K

    def _record(self, event: StepEvent, judged_J: Array | None) -> None:
        """Records a step. judged_J: given if an episode has ended with it, which is kept if it is the best one so far."""
        self.recorder.add(event)
        if judged_J is not None:
            self.costs.append(self.mixer.cost(self.objective, judged_J))
            if self._best_episode == event.episode:
                self.best = self.recorder, self.mixer.policy_bytes(self.corpus.names)

    @property
    def _best_episode(self) -> int:
        """The number of the finished episode with the least cost, from 1."""
        return 1 + int(np.nan_to_num(self.costs, nan=np.inf).argmin())

    def _begin_episode(self) -> None:
        """Starts the model anew."""
        if self.ranks.is_first:
            self.mixer.end_episode(self.costs[-1], self.settings.episodes - self.trainer.episode)
        self.trainer.restart()
        self.recorder = self._new_recorder()

    def _save_if_due(self, step: int) -> None:
        folder, stop, writer, settings = self._folder, self._stop, self._writer, self.settings
        if folder is None or writer is None:
            return
        signal_number = (stop.signal_number if stop else None) or 0
        signal_number = self.ranks.largest(_NOT_WRITTEN if writer.failed else signal_number)
        if signal_number == _NOT_WRITTEN:
            self.ranks.first(writer.wait)
        finished = step == settings.all_steps
        # The last checkpoint is there because saving the model or the schedule may still fail.
        if finished or signal_number or step % settings.steps_between_checkpoints == 0:
            self._save(writer, wait=finished or signal_number > 0)
        if stop is not None:
            stop.unsaved_steps = step - writer.saved
        if signal_number and not finished:
            raise Interrupted(
                f"stopped at step {step} of {settings.all_steps}, state saved; continue with: "
                f"acodm {settings.command} --out {folder.out} --resume",
                signal_number,
            )

    # On disk

    def keep_in(self, folder: RunFolder, stop: StopRequest | None = None, resume: bool = False) -> None:
        """Keeps checkpoints in a folder, whose lock must be held.

        stop: tells whether a signal has asked the run to stop. resume: True to continue from the newest checkpoint in
        the folder, or from the beginning if there is none; False to claim the folder for this run.

        Raises:
            AcodmError: no checkpoint can be read, or the folder cannot be written.
            UsageError: corpus, schedule or another input is not what the run began with.
        """
        self._folder, self._stop = folder, stop
        settings = self.settings.anchored(self.mixer.files)
        if resume:
            self.ranks.first(lambda: folder.remove_left_over(self.settings.save_model))
            self.ranks.first(lambda: folder.write_settings(settings))
            self._resume(folder)
        else:
            self.ranks.first(lambda: folder.begin(settings))

    def _resume(self, folder: RunFolder) -> None:
        path = self.ranks.shared(lambda: folder.newest_intact(self.warn))
        if path is None:
            return
        state = load_checkpoint(path, mapped=self.ranks.many)
        for what in {**state["inputs"], **self.inputs}:
            if self.inputs.get(what) != state["inputs"].get(what):
                raise UsageError(
                    f"{what} has changed since the run of {folder.out} began; restore it, or start over with --force"
                )
        self.trainer.load_state_dict(state["trainer"])
        self.recorder.load_state_dict(state["recorder"])
        self.costs = state["costs"]
        if state["best"] is not None:
            self.best = self._new_recorder(), state["best"]["policy"]
            self.best[0].load_state_dict(state["best"]["recorder"])

    def _new_writer(self) -> CheckpointWriter | nullcontext[None]:
        if self._folder is None:
            return nullcontext()
        stop = self._stop
        return CheckpointWriter(self._folder, self.trainer.run_step, lambda: stop is not None and stop.at_once)

    def _save(self, writer: CheckpointWriter, wait: bool) -> None:
        """Saves the state. wait: whether until it is on disk, also if checkpoints are written in the background."""
        started = time.perf_counter()
        self.ranks.first(writer.wait)
        state = {
            "trainer": self.trainer.state_dict(),
            "recorder": self.recorder.state_dict(),
            "costs": self.costs,
            "best": self.best and {"recorder": self.best[0].state_dict(), "policy": self.best[1]},
            "inputs": self.inputs,
            "settings": self.settings.anchored(self.mixer.files).to_json(),
        }
        wait = wait or not self.saves_in_background
        state = self._host_copy.take(state, of_host=not wait)

        def write() -> None:
            writer.begin(self.trainer.run_step, state, self.settings.keep_checkpoints)
            if wait:
                writer.wait()

        self.ranks.first(write)
        self.checkpoint_seconds += time.perf_counter() - started

    def save_model(self, folder: Path) -> None:
        """Writes the model as a Hugging Face checkpoint folder, and replaces what is there. Every rank must call this.

        Raises:
            AcodmError: the folder could not be written.
        """
        weights = self.trainer.model_state()
        tokenizer, longest = self.corpus.tokenizer, self.settings.seq_len
        if self.settings.init_from:  # it has learned from longer sequences before, or has a row per position
            longest = getattr(self.trainer.model.config, "max_position_embeddings", None) or longest
        self.ranks.first(lambda: save_model(self.trainer.model, weights, tokenizer, longest, folder))

    def finish(self) -> Schedule | None:
        """Writes the model (if asked for) and the schedule, and removes the checkpoints. Returns the schedule on the
        first rank, None on the others.

        Raises:
            AcodmError: something could not be written; the checkpoints are kept.
        """
        folder = self._folder
        assert folder is not None, "finish is for a run that is kept in a folder; see schedule and save_model"
        if self.settings.save_model:
            self.save_model(Path(self.settings.save_model))

        def write() -> Schedule:
            schedule = self.schedule()
            try:
                schedule.write(folder.out)
            except OSError as error:
                raise AcodmError(
                    f"cannot write {folder.out}: {why_not_written(error, folder.out.parent)}; make room and continue with --resume"
                ) from None
            folder.remove()
            return schedule

        return self.ranks.first(write)

    # The record

    def schedule(self, with_policy: bool = True) -> Schedule:
        """Returns what the run has drawn and learned so far; of several episodes, in the best one that is finished. with_policy:
        includes what the mixer has learned, which takes about a second."""
        if self.best is not None:
            recorder, policy = self.best
            return recorder.schedule(self.info(), policy if with_policy else None)
        policy = self.mixer.policy_bytes(self.corpus.names) if with_policy else None
        return self.recorder.schedule(self.info(), policy)

    def info(self) -> dict[str, Any]:
        """Returns what the schedule file says about its run: nothing of this machine, neither paths nor times."""
        s = self.settings
        tokenizer = self.corpus.tokenizer
        optional = {"episodes": self._episodes_info()} if s.episodes > 1 else {}
        if s.init_from:
            optional["init_from"] = self._start_info()
        if self.objective.kept:
            optional["keep"] = {"budget": self.objective.budget, "names": list(self.objective.kept)}
        if self.domain_map is not None and s.map:
            optional["map"] = self.domain_map.info()
        return optional | {
            "acodm_version": __version__,
            "command": s.command,
            "model": Path(s.model_name).name if "/" in s.model_name else s.model_name,
            "parameters": self.parameters,
            "steps": s.steps,
            "seq_len": s.seq_len,
            "batch": s.batch,
            "token_budget": s.steps * s.tokens_per_step,
            "seed": s.seed,
            "learning_rate": self.trainer.settings.lr,
            "lr_schedule": {
                "name": s.lr_schedule,
                "warmup": s.lr_warmup,
                "decay_share": s.decay_share,
                "min": None if s.lr_schedule == "constant" else s.lr_min,
            },
            "for_tokens": s.for_tokens,
            "dtype": "bf16" if self.compute.dtype == torch.bfloat16 else "fp32",
            "prior": dict(zip(self.corpus.names, self.prior_K.tolist(), strict=True)),
            "mixer": {"name": self.mixer.name, "settings": self.mixer.settings()},
            "alignment": s.alignment_info() if self.mixer.needs_gram else None,
            "validation_sequences": max(map(len, self.trainer.texts)),
            "objective_weights": dict(s.objective_weights or {}),
            "targets": {target.name: self._target_info(target) for target in self.targets},
            "tokenizer": {
                "name": tokenizer.name,
                "fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size,
            },
            "corpus": {
                "name": self.corpus.name,
                "fingerprint": self.corpus.fingerprint,
                "tokens": dict(zip(self.corpus.names, map(int, self.corpus.tokens_K), strict=True)),
                "sequences": dict(zip(self.corpus.names, map(int, self.trainer.sampler.sizes_K), strict=True)),
            },
        }

    def _episodes_info(self) -> dict[str, Any]:
        """Returns what the schedule file says about the episodes of its run, of which it holds the best."""
        return {
            "number": self.settings.episodes,
            "best": self._best_episode if self.costs else None,
            "costs": [cost if math.isfinite(cost) else None for cost in self.costs],
            "tokens": self.trainer.run_step * self.settings.tokens_per_step,
        }

    def _start_info(self) -> dict[str, Any]:
        """Returns what the schedule file says about the trained weights that the run went on with, and their losses, in nats."""
        measured, names = self.trainer.before, [text.name for text in self.trainer.texts]
        number = len(self.corpus.names)
        losses = [] if measured is None else measured.losses_J.tolist()
        return {
            "digest": self.inputs["what --init-from names"][:16],
            "losses": dict(zip(names[:number], losses, strict=False)),
            "target_losses": dict(zip(names[number:], losses[number:], strict=False)),
        }

    def is_guided(self, target: Target) -> bool:
        """Whether a target rewards the mixture, and is not only measured."""
        guide = self.trainer.guide
        return guide is not None and target.name in [text.name for text in guide.texts]

    def _target_info(self, target: Target) -> dict[str, Any]:
        """Returns what the schedule file says about a target: which documents guided, and which were reported on."""
        info: dict[str, Any] = {"weight": target.weight, "guided": self.is_guided(target)}
        if self.is_guided(target):
            assert self.trainer.guide is not None
            info |= {"balance": self.settings.target_balance, "guide_every": self.trainer.guide.every}
            info["guide_sequences"] = self.trainer.guide.sequences
        for part, hashes in (("guide", target.guide_hashes), ("report", target.report_hashes)):
            listed = "\n".join(f"{number:016x}" for number in sorted(hashes))
            info[part] = {"documents": len(hashes), "digest": hashlib.sha256(listed.encode()).hexdigest()[:16]}
        return info

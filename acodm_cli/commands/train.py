"""What `proxy-train` and `apply` share: carrying a run out, from its settings to its files, and what it prints."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

from rich.console import Console

from acodm_cli.corpus.cache import cache_folder, cached_bytes
from acodm_cli.corpus.preflight import domain_uses
from acodm_cli.corpus.targets import Target
from acodm_cli.display.progress import PartsDisplay, TrainingDisplay, make_console, say_at_once
from acodm_cli.display.style import human_count, printable
from acodm_cli.display.summary import (
    print_corpus,
    print_efficiency,
    print_map,
    print_preflight,
    print_summary,
    print_title,
)
from acodm_cli.engine.distributed import joined, ranks_asked_for
from acodm_cli.engine.estimate import describe_seconds
from acodm_cli.errors import UsageError
from acodm_cli.limits import cores_of_this_job
from acodm_cli.runs.build import build_run
from acodm_cli.runs.disk_plan import plan_disk
from acodm_cli.runs.efficiency import Efficiency
from acodm_cli.runs.evaluation import check_evaluation
from acodm_cli.runs.folder import RunFolder
from acodm_cli.runs.memory_plan import gib
from acodm_cli.runs.observer import Observer
from acodm_cli.runs.profiler import StepProfiler
from acodm_cli.runs.recorder import LiveRecord
from acodm_cli.runs.run import Run, StopRequest
from acodm_cli.runs.settings import RunSettings, StartSettings
from acodm_cli.runs.trackers import check_trackers, make_tracker
from acodm_cli.runs.trackers.tracker import Tracked, Tracker
from acodm_cli.schedule.schedule import Schedule

LONG_RUN_SECONDS = 600
# The load per core from which on a run will be slowed down.
BUSY = 1.5
# A dry run trains for so many steps, or so many seconds.
TRIED_STEPS, TRIED_SECONDS = 4, 10.0


def carry_out(settings: RunSettings, start: StartSettings, schedule: Schedule | None) -> Schedule | None:
    """Trains and writes the files. Returns the schedule that was written: only on the first rank, and not after a dry run.

    settings: with --resume, those of the run to continue. schedule: the schedule to apply, None if there is none.

    Raises:
        AcodmError: one of the parts failed. What was on disk is still there.
    """
    ranks, folder = ranks_asked_for(), RunFolder(start.out)
    if start.profiled is not None and start.profiled[0] > settings.all_steps:
        raise UsageError(
            f"--profile {start.profile} begins after the run's {settings.all_steps} steps; give earlier ones"
        )
    _use_threads(start.threads)
    with ExitStack() as stack:
        console = make_console(quiet=not ranks.is_first)

        def warn(message: str) -> None:
            _say(console, f"warning: {message}", "yellow")

        said_by = say_at_once if ranks.is_first else lambda message: None
        stop = stack.enter_context(StopRequest(start.resume, said_by).installed())
        ranks = stack.enter_context(joined(ranks, settings.device, settings.rank_timeout))
        if start.resume:
            ranks.first(lambda: folder.check_model(settings))
        elif not start.dry_run:
            ranks.first(lambda: folder.check(settings, start.force))
        if not start.dry_run:
            ranks.first(lambda: check_trackers(settings.trackers, start.out, start.force or start.resume))
            ranks.first(lambda: stack.enter_context(folder.locked(warn)))
            ranks.first(lambda: stack.enter_context(folder.model_locked(settings.save_model)))
        ranks.first(lambda: check_evaluation(settings))
        with PartsDisplay(console, "preparing") as on_progress:
            run = build_run(settings, schedule=schedule, ranks=ranks, on_progress=on_progress, warn=warn)
        disk = ranks.shared(lambda: plan_disk(folder, settings, run.parameters))
        print_title(console, run.info(), run.compute.label)
        if run.compute.device.type == "cpu":
            _say_if_shared(console)
        elif settings.deterministic:
            _say(console, "deterministic: attention, embeddings and sums by index take slower ways; the same machine and software repeat each number", "dim")  # fmt: skip
        _show_preflight(run, disk, console)
        if start.dry_run:
            _rehearse(run, console)
            return None
        if start.resume:
            run.keep_in(folder, stop, resume=True)
            step = run.trainer.run_step
            _say(console, f"resumed at step {step} of {settings.all_steps}" if step else "no checkpoint yet; starting from the beginning")  # fmt: skip
        # A new run claims the folder when nothing can fail any more but training.
        with ExitStack() as following:
            trackers = ranks.first(lambda: _trackers(run, start, following)) or []
            if not start.resume:
                run.keep_in(folder, stop)
            efficiency = Efficiency(run)
            observers: list[Observer] = [efficiency]
            if ranks.is_first:
                record = LiveRecord(lambda: run.schedule(with_policy=False), folder.record)
                display = _display(run, console, following)
                stop.say = display.say
                observers += [*trackers, record, display]
                if start.profiled is not None and start.profiled[0] <= run.trainer.run_step:
                    _say(console, f"no trace: steps {start.profile} were before the checkpoint", "yellow")
                elif start.profiled is not None:
                    profiler = StepProfiler(run, start.profiled, start.out, lambda message: _say(console, message))
                    following.callback(profiler.close)
                    observers.append(profiler)
            for event in run.steps():
                for observer in observers:
                    observer.add(event)
                if efficiency.steps == TRIED_STEPS:
                    _say_how_long(run, console, efficiency)
        written = run.finish()
        if written is not None:
            print_summary(console, written)
            print_efficiency(console, efficiency)
        return written


def _use_threads(threads: int | None) -> None:
    """Computes with so many threads; None for those that PyTorch would take, but not more than the job has cores."""
    import torch

    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = min(torch.get_num_threads(), cores_of_this_job())
    if threads is not None:
        torch.set_num_threads(threads)


def _say_if_shared(console: Console) -> None:
    """Says so if other processes keep this machine's cores busy."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > BUSY * cores:
        _say(
            console,
            f"other processes share the {cores} cores of this machine (load {load:.0f}), so steps take longer; where several runs do, "
            "give each its part with --threads",
            "yellow",
        )


def _trackers(run: Run, start: StartSettings, following: ExitStack) -> list[Tracker]:
    """Returns the run's trackers, which are closed with `following`."""
    tracked = Tracked(
        start.out,
        run.info(),
        run.corpus.names,
        run.settings.tokens_per_step,
        run.trainer.run_step,
        start.resume,
        run.warn,
    )
    trackers = []
    for name in run.settings.trackers:
        trackers.append(make_tracker(name, tracked))
        following.callback(trackers[-1].close)
    return trackers


def _display(run: Run, console: Console, following: ExitStack) -> TrainingDisplay:
    """Returns the progress display, which takes the terminal until `following` is closed."""
    settings, done = run.settings, run.trainer.run_step
    display = TrainingDisplay(console, run.corpus.names, run.prior_K, settings.all_steps, done, settings.episodes)
    following.callback(display.close)
    return display


def _say(console: Console, message: str, style: str | None = None) -> None:
    # Names of files and fields come from strangers.
    message = "\n".join(map(printable, message.split("\n")))
    console.print(message, style=style, highlight=False, soft_wrap=not console.is_terminal)


def _say_how_long(run: Run, console: Console, efficiency: Efficiency) -> None:
    """Says, in a long run on a CPU, how long it will take and what would be faster."""
    left = run.settings.all_steps - run.trainer.run_step
    if run.compute.device.type == "cpu" and (seconds := efficiency.seconds_for(left)) > LONG_RUN_SECONDS:
        _say(
            console,
            f"on this CPU {left} more steps of {run.settings.model_name} will take about {describe_seconds(seconds)}; faster: a GPU, "
            "a smaller --model, or fewer --steps",
            "yellow",
        )


def _rehearse(run: Run, console: Console) -> None:
    """Trains for a few steps, of which nothing is kept, and says how long all of them will take."""
    efficiency, started = Efficiency(run), time.monotonic()
    for event in run.steps():
        efficiency.add(event)
        if run.ranks.largest(int(event.run_step == TRIED_STEPS or time.monotonic() - started > TRIED_SECONDS)):
            break
    tried = efficiency.steps
    run_seconds = describe_seconds(efficiency.seconds_for(run.settings.all_steps))
    _say(
        console,
        f"time: about {run_seconds} for {run.settings.all_steps} steps, by the first {tried}, of which nothing is kept",
    )


def _of_target(target: Target, sequences: int, guides: bool) -> str:
    """Says what guides the mixture to a target, and what is reported of it."""
    guide = f"{len(target.guide_hashes):,} documents guide the mixture; " if guides else ""
    others = "others" if guides else "documents"
    return f"target {target.name}: {guide}{sequences:,} sequences of {len(target.report_hashes):,} {others} are reported on"


def _show_preflight(run: Run, disk: str, console: Console) -> None:
    """Shows what the run will use of its corpus, with the weights that it is known to follow, else with the prior."""
    s, planned_SK = run.settings, run.mixer.planned_weights()
    weights_SK = run.prior_K[None, :] if planned_SK is None else planned_SK
    uses = domain_uses(run.corpus, s.seq_len, s.batch, s.steps, weights_SK, s.max_epochs, s.corpus_share)
    whose = "prior" if planned_SK is None else "schedule's" if s.schedule else run.mixer.name
    of_target = None
    if s.for_tokens is not None:
        steps = max(1, s.for_tokens // s.tokens_per_step)
        of_target = domain_uses(run.corpus, s.seq_len, s.batch, steps, weights_SK, s.max_epochs)
    print_preflight(console, uses, whose, of_target)
    if s.for_tokens is not None:
        _say(
            console,
            f"each domain is cut to {s.corpus_share:.3g} of its sequences; target's: the epochs of {human_count(s.for_tokens)} tokens "
            "over all of them",
            "dim",
        )
    if s.prior == "importance":
        _say(console, "prior: importance, the mixture whose bigrams are most like the targets' guide text", "dim")
    if run.ranks.is_first:
        if run.domain_map is not None:
            print_map(console, run.domain_map)
        print_corpus(console, run.corpus)
        for target, text in zip(run.targets, run.trainer.texts[len(run.corpus.names) :], strict=True):
            _say(console, _of_target(target, len(text), run.is_guided(target)), "dim")
    cache = cache_folder(s.cache_dir)
    _say(
        console,
        f"token cache {cache}: {cached_bytes(cache) / 1e6:,.0f} MB\n"
        f"memory: about {gib(run.memory.total)}, in micro-batches of {run.trainer.settings.micro_batch}\n{disk}\n",
        "dim",
    )

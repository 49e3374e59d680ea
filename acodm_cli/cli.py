"""The command line. Options are declared here; the work, and every heavy import, is in commands/."""

from __future__ import annotations

import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from acodm_cli import __version__
from acodm_cli.config import (
    CHANGEABLE,
    DEFAULT_ALIGNMENT_ROTATION,
    DEFAULT_ALIGNMENT_SIZE,
    DEFAULT_BATCH,
    DEFAULT_ESTIMATOR,
    DEFAULT_SEED,
    DEFAULT_SEQ_LEN,
    DEFAULT_STEPS,
    AgentPreset,
    ApplyMode,
    Compile,
    Estimator,
    ExportName,
    MixerName,
    Parallel,
    PlotName,
    Prior,
    ReplayAlignment,
    RunSettings,
)
from acodm_cli.errors import AcodmError, ResourceError, UsageError

app = typer.Typer(
    name="acodm",
    help="Learn pretraining data mixtures on a small model and transfer them to a large one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CORPUS, TRAINING, MIXING, FILES = "Corpus", "Training", "Mixing", "Files"


def _option(flag: str, help: str, panel: str, **extra: Any) -> Any:
    return typer.Option(flag, help=help, rich_help_panel=panel, **extra)


# Options that both training commands have.
Data = Annotated[
    str | None,
    _option("--data", "Folder with a sub-folder or file per domain (.jsonl, .parquet, .arrow, .txt, also .gz, .zst; "
                      ".bin with .idx), files with --domain-field, a manifest (.toml), or a hub dataset (org/name). "
                      "Default: an embedded corpus that needs no network.", CORPUS),
]  # fmt: skip
DomainField = Annotated[
    str | None,
    _option("--domain-field", "Field with each record's domain, such as meta.pile_set_name.", CORPUS),
]
TextField = Annotated[str, _option("--text-field", "Field with each record's text.", CORPUS)]
DomainTokens = Annotated[
    int | None, _option("--domain-tokens", "Tokens per domain to take of a hub dataset.", CORPUS, min=1)
]
MaxEpochs = Annotated[
    float | None,
    _option("--max-epochs", "Never repeat a domain more often; its weight goes to the others.", CORPUS, min=0.01),
]
DryRun = Annotated[
    bool, _option("--dry-run", "Prepare the corpus, show what the run would use of it, and stop.", FILES)
]
TokenizerOption = Annotated[
    str | None, _option("--tokenizer", "A tokenizer.json or a hub name; needed with --data.", CORPUS)
]
CacheDir = Annotated[
    str | None, _option("--cache-dir", "Where tokenised corpora are kept. Default: the user cache folder.", CORPUS)
]
MicroBatch = Annotated[
    int | None, _option("--micro-batch", "Sequences per forward pass. Default: what fits.", TRAINING, min=1)
]
LearningRate = Annotated[
    float | None,
    _option("--lr", "Peak learning rate. Default: the model's published one.", TRAINING, min=1e-9, max=1.0),
]
Device = Annotated[str, _option("--device", "auto, cpu, cuda or cuda:N.", TRAINING)]
Dtype = Annotated[str, _option("--dtype", "auto (bf16 on CUDA, else fp32), bf16 or fp32.", TRAINING)]
NumRanks = Annotated[
    int | None,
    _option("--nproc", "Start so many ranks on this machine; as torchrun --nproc-per-node does.", TRAINING, min=1),
]
ParallelOption = Annotated[
    Parallel,
    _option("--parallel", "With many ranks: ddp (each holds the model) or fsdp (each holds a shard of it).", TRAINING),
]
CompileOption = Annotated[
    Compile, _option("--compile", "torch.compile of the transformer blocks. auto: on CUDA.", TRAINING)
]
ActivationCheckpointing = Annotated[
    bool,
    _option("--activation-checkpointing", "Less memory for a third more computation.", TRAINING),
]
SkipNonfinite = Annotated[
    int,
    _option("--skip-nonfinite", "Pass over so many steps whose loss or gradient is not finite.", TRAINING, min=0),
]
KeepCheckpoints = Annotated[int, _option("--keep-checkpoints", "So many of the newest are kept.", FILES, min=1)]
ValidateEvery = Annotated[
    int | None,
    _option("--validate-every", "Steps between validations. Default: a tenth of the run.", TRAINING, min=1),
]
ValidationSequences = Annotated[
    int, _option("--validation-sequences", "Validation sequences per domain.", TRAINING, min=1)
]
CheckpointEvery = Annotated[
    int | None,
    _option(
        "--checkpoint-every", "Steps between checkpoints. Default: a fifth of the run, at most 1000.", FILES, min=1
    ),
]
Resume = Annotated[bool, _option("--resume", "Continue the unfinished run of the same --out.", FILES)]
Force = Annotated[bool, _option("--force", "Replace existing files, start an unfinished run over.", FILES)]
Agent = Annotated[AgentPreset, _option("--agent", "Preset of the actor-critic agent.", MIXING)]
MixerOption = Annotated[
    list[str] | None, _option("--mixer-option", "Change one setting of the mixer: NAME=VALUE.", MIXING)
]
Alignment = Annotated[
    Estimator,
    _option("--alignment", "Per-domain gradients: sketch (cheap, unbiased) or exact (for comparison).", MIXING),
]
AlignmentSize = Annotated[
    int, _option("--alignment-size", "Features that a sketch keeps per side of a layer.", MIXING, min=1, max=4096)
]
AlignmentRotation = Annotated[
    int, _option("--alignment-rotation", "Look at one transformer block in so many per step, in turn.", MIXING, min=1)
]
AlignmentLayers = Annotated[
    str,
    _option("--alignment-layers", "Layers whose gradients make the reward: all, attention, mlp, embedding, unembedding, or "
                                  "name patterns, separated by commas.", MIXING),
]  # fmt: skip


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        print(f"acodm {__version__}")  # noqa: T201
        raise typer.Exit


@app.command("proxy-train")
def proxy_train(
    context: typer.Context,
    model: Annotated[
        str, _option("--model", "Preset (pythia-14m … pythia-12b, llama-tiny …), folder or hub name.", TRAINING)
    ] = "pythia-14m",
    data: Data = None,
    tokenizer: TokenizerOption = None,
    domain_field: DomainField = None,
    text_field: TextField = "text",
    domain_tokens: DomainTokens = None,
    max_epochs: MaxEpochs = None,
    cache_dir: CacheDir = None,
    steps: Annotated[int, _option("--steps", "Optimiser steps.", TRAINING, min=1)] = DEFAULT_STEPS,
    batch: Annotated[int, _option("--batch", "Global batch in sequences.", TRAINING, min=1)] = DEFAULT_BATCH,
    seq_len: Annotated[int, _option("--seq-len", "Tokens per sequence.", TRAINING, min=2)] = DEFAULT_SEQ_LEN,
    micro_batch: MicroBatch = None,
    lr: LearningRate = None,
    seed: Annotated[
        int, _option("--seed", "Of weights, batches and agent.", TRAINING, min=0, max=2**31 - 1)
    ] = DEFAULT_SEED,
    device: Device = "auto",
    dtype: Dtype = "auto",
    nproc: NumRanks = None,
    parallel: ParallelOption = "ddp",
    compile: CompileOption = "auto",
    activation_checkpointing: ActivationCheckpointing = False,
    skip_nonfinite: SkipNonfinite = 0,
    validate_every: ValidateEvery = None,
    validation_sequences: ValidationSequences = 16,
    prior: Annotated[
        Prior,
        _option(
            "--prior",
            "Weights to start from and to explore around. given: the manifest's, uniform without one.",
            MIXING,
        ),
    ] = "given",
    mixer: Annotated[
        MixerName,
        _option("--mixer", "What decides the weights: ac-odm learns a policy; the others are baselines.", MIXING),
    ] = "ac-odm",
    mixer_option: MixerOption = None,
    agent: Agent = "default",
    alignment: Alignment = DEFAULT_ESTIMATOR,
    alignment_size: AlignmentSize = DEFAULT_ALIGNMENT_SIZE,
    alignment_rotation: AlignmentRotation = DEFAULT_ALIGNMENT_ROTATION,
    alignment_layers: AlignmentLayers = "all",
    out: Annotated[Path, _option("--out", "The schedule to write.", FILES)] = Path("out.parquet"),
    save_model: Annotated[
        str | None, _option("--save-model", "Keep the proxy too, as a Hugging Face folder.", FILES)
    ] = None,
    checkpoint_every: CheckpointEvery = None,
    keep_checkpoints: KeepCheckpoints = 2,
    resume: Resume = False,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """Learn a mixture policy on a small model, or run a baseline, and export it as a schedule."""
    settings = _settings(context, "proxy-train", out, resume, mixer_option)
    if settings is None or _ran_in_ranks(nproc):
        return
    from acodm_cli.commands.proxy_train import run_proxy_train

    run_proxy_train(settings, out, resume, force, dry_run)


@app.command()
def apply(
    context: typer.Context,
    model: Annotated[str | None, _option("--model", "Preset, folder or hub name of the target.", TRAINING)] = None,
    schedule: Annotated[
        str | None, _option("--schedule", "Schedule to train with. Without one: --mode online.", MIXING)
    ] = None,
    mode: Annotated[
        ApplyMode,
        _option(
            "--mode",
            "policy: query the frozen policy; replay: follow the recorded weights; online: keep learning; "
            "auto: policy if the schedule has one, else replay.",
            MIXING,
        ),
    ] = "auto",
    replay_by: Annotated[
        ReplayAlignment, _option("--replay-by", "Map the recorded weights on this run's budget by.", MIXING)
    ] = "progress",
    map: Annotated[
        list[str] | None,
        _option("--map", "What a domain of the schedule is called in this corpus: OLD=NEW.", MIXING),
    ] = None,
    data: Data = None,
    tokenizer: TokenizerOption = None,
    domain_field: DomainField = None,
    text_field: TextField = "text",
    domain_tokens: DomainTokens = None,
    max_epochs: MaxEpochs = None,
    cache_dir: CacheDir = None,
    steps: Annotated[
        int, _option("--steps", "Optimiser steps. Default: the schedule's.", TRAINING, min=1, show_default=False)
    ] = DEFAULT_STEPS,
    batch: Annotated[
        int,
        _option("--batch", "Global batch in sequences. Default: the schedule's.", TRAINING, min=1, show_default=False),
    ] = DEFAULT_BATCH,
    seq_len: Annotated[
        int, _option("--seq-len", "Tokens per sequence. Default: the schedule's.", TRAINING, min=2, show_default=False)
    ] = DEFAULT_SEQ_LEN,
    micro_batch: MicroBatch = None,
    lr: LearningRate = None,
    seed: Annotated[
        int, _option("--seed", "Default: the schedule's.", TRAINING, min=0, max=2**31 - 1, show_default=False)
    ] = DEFAULT_SEED,
    device: Device = "auto",
    dtype: Dtype = "auto",
    nproc: NumRanks = None,
    parallel: ParallelOption = "ddp",
    compile: CompileOption = "auto",
    activation_checkpointing: ActivationCheckpointing = False,
    skip_nonfinite: SkipNonfinite = 0,
    validate_every: ValidateEvery = None,
    validation_sequences: ValidationSequences = 16,
    mixer_option: MixerOption = None,
    agent: Agent = "default",
    alignment: Alignment = DEFAULT_ESTIMATOR,
    alignment_size: AlignmentSize = DEFAULT_ALIGNMENT_SIZE,
    alignment_rotation: AlignmentRotation = DEFAULT_ALIGNMENT_ROTATION,
    alignment_layers: AlignmentLayers = "all",
    out: Annotated[Path, _option("--out", "The record of this run, in the schedule format.", FILES)] = Path(
        "applied.parquet"
    ),
    save_model: Annotated[
        str | None, _option("--save-model", "Folder for the trained model. Default: beside --out.", FILES)
    ] = None,
    checkpoint_every: CheckpointEvery = None,
    keep_checkpoints: KeepCheckpoints = 2,
    resume: Resume = False,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """Train a target model with a learned policy or schedule, or online without one."""
    settings = _settings(context, "apply", out, resume, mixer_option)
    if settings is None or _ran_in_ranks(nproc):
        return
    from acodm_cli.commands.apply import run_apply

    run_apply(settings, _explicit(context), out, resume, force, dry_run)


SHOWN, COMPOSED, WRITTEN, EXPORTED = "What is shown", "Compose", "Other forms", "Export to a trainer"


@app.command()
def inspect(
    context: typer.Context,
    schedules: Annotated[
        list[str],
        typer.Argument(help="One schedule to show, or several to compare: files, or names of reference schedules."),
    ],
    plot: Annotated[PlotName, _option("--plot", "What is plotted over the run.", SHOWN)] = "weights",
    domains: Annotated[
        str | None,
        _option(
            "--domains", "Only these, by the beginnings of their names: web,code. The shares stay those of all.", SHOWN
        ),
    ] = None,
    steps: Annotated[
        str | None, _option("--steps", "Only these steps: FIRST:LAST, either may be left out.", SHOWN)
    ] = None,
    every: Annotated[int, _option("--every", "One point for so many steps: their mean.", SHOWN, min=1)] = 1,
    average: Annotated[bool, _option("--average", "The static mixture of the mean weights.", COMPOSED)] = False,
    smooth: Annotated[int, _option("--smooth", "Moving average over so many steps.", COMPOSED, min=1)] = 1,
    merge: Annotated[
        bool, _option("--merge", "The mean of all files, as of several seeds, with the deviation over them.", COMPOSED)
    ] = False,
    json: Annotated[bool, _option("--json", "Print the facts as JSON.", WRITTEN)] = False,
    csv: Annotated[bool, _option("--csv", "Print what is plotted as CSV, a row per step.", WRITTEN)] = False,
    plain: Annotated[
        bool, _option("--plain", "Print the table of domains tab-separated, without plots.", WRITTEN)
    ] = False,
    image: Annotated[
        Path | None, _option("--image", "Write the plot as .png, .svg or .pdf; needs matplotlib.", WRITTEN)
    ] = None,
    html: Annotated[
        Path | None, _option("--html", "Write one page with all plots, to open in a browser.", WRITTEN)
    ] = None,
    out: Annotated[
        Path | None,
        _option("--out", "Write the composed schedule to this file; with --export, its files to this folder.", WRITTEN),
    ] = None,
    force: Annotated[bool, _option("--force", "Overwrite what is there.", WRITTEN)] = False,
    export: Annotated[
        ExportName | None, _option("--export", "Write the schedule in the syntax of a trainer.", EXPORTED)
    ] = None,
    stages: Annotated[
        int,
        _option("--stages", "Stages of constant weights, placed to be closest to the schedule in KL.", EXPORTED, min=1),
    ] = 8,
    target_steps: Annotated[
        int | None,
        _option("--target-steps", "Steps of the trainer's run. Default: the schedule's.", EXPORTED, min=1, max=2**40),
    ] = None,
    target_batch: Annotated[
        int | None,
        _option(
            "--target-batch", "Its global batch in sequences. Default: the schedule's.", EXPORTED, min=1, max=2**40
        ),
    ] = None,
    target_seq_len: Annotated[
        int | None,
        _option("--target-seq-len", "Its tokens per sequence. Default: the schedule's.", EXPORTED, min=2, max=2**40),
    ] = None,
    target_path: Annotated[
        str, _option("--target-path", "Where the trainer finds a domain's tokens.", EXPORTED)
    ] = "tokens/{domain}",
) -> None:
    """Show a schedule, compare several, compose new ones, export to other trainers."""
    from acodm_cli.commands.inspect import InspectSettings, run_inspect

    given = {field.name for field in fields(InspectSettings)}
    run_inspect(InspectSettings(**{name: value for name, value in context.params.items() if name in given}))


def _explicit(context: typer.Context) -> set[str]:
    """Names of the options given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _settings(
    context: typer.Context, command: str, out: Path, resume: bool, mixer_option: list[str] | None
) -> RunSettings | None:
    """The run's settings: from the options, or on --resume from the run folder. None: there is nothing left to do."""
    known = {field.name for field in fields(RunSettings)}
    values = {name: value for name, value in context.params.items() if name in known}
    values |= {"command": command, "mixer_options": _pairs("--mixer-option", mixer_option)}
    values["map"] = _pairs("--map", values.get("map"))
    if resume:
        return _resumed_settings(context, values, out)
    if values["model"] is None:
        raise UsageError("give the target with --model, for example --model pythia-1b")
    if command == "apply" and values["save_model"] is None:
        values["save_model"] = str(out.with_name(f"{out.stem}.model"))
    return RunSettings(**values)


def _resumed_settings(context: typer.Context, values: dict[str, Any], out: Path) -> RunSettings | None:
    from acodm_cli.commands.files import RunFiles

    files = RunFiles(out)
    if out.exists() and not files.settings.is_file():
        files.remove_left_over()
        print(f"{out} is complete; nothing to resume", file=sys.stderr)  # noqa: T201
        return None
    settings = files.resumable_settings()
    stored = settings.to_json()
    changes = {}
    if stored["command"] != values["command"]:
        raise UsageError(f"the unfinished run of {out} is of acodm {stored['command']}; resume it with that command")
    renamed = {"mixer_option": "mixer_options"}
    for name in (renamed.get(name, name) for name in _explicit(context)):
        if name in CHANGEABLE:
            changes[name] = values[name]
        elif name in values and values[name] != stored[name]:
            raise UsageError(
                f"--{name.replace('_', '-')} {values[name]} differs from the unfinished run's {stored[name]}; leave it out, "
                "or start over with --force"
            )
    return replace(settings, **changes)


def _ran_in_ranks(nproc: int | None) -> bool:
    """--nproc: whether this process was to start ranks, which are done now. It ends as they did."""
    if nproc is None or nproc == 1:
        return False
    from acodm_cli.commands.launch import run_ranks

    if code := run_ranks(nproc, sys.argv[1:]):
        raise typer.Exit(code)
    return True


def _pairs(flag: str, options: list[str] | None) -> dict[str, str] | None:
    pairs = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if not equals:
            raise UsageError(f"{flag} {option} is not NAME=VALUE")
        pairs[name.strip()] = value.strip()
    return pairs or None


def main(arguments: list[str] | None = None) -> None:
    """Entry point: known errors become one line and their exit code."""
    try:
        code = app(arguments, standalone_mode=False)
    except AcodmError as error:
        code = _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; nothing is wrong
        code = 0
    except Exception as error:
        # Typer's usage errors, by their interface: the module that defines them is typer's own business.
        if not hasattr(error, "format_message"):
            raise
        code = _fail(f"{error.format_message()} (see --help)", getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    if rank != "0":
        if code != ResourceError.exit_code:  # what all ranks know, the first one says
            return code
        message = f"rank {rank}: {message}"
    print("error: " + " ".join(message.split()), file=sys.stderr)  # noqa: T201
    return code

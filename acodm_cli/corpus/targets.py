"""Targets: text that the model should become good at. It is never trained on.

--target, or [targets.NAME] of a manifest -> TargetPlan -> documents, each once -> two halves -> Target(guide, report)

The guide half may steer the mixture, the report half only measures. A document goes by the hash of its text to one of them.

Shape letters: N sequences, T positions, U = T + 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.files import READ, files_below, kind_of
from acodm_cli.corpus.held_out import HeldOutText, make_text
from acodm_cli.corpus.holding_out import document_hash
from acodm_cli.corpus.readers import Document, Fields, read_documents
from acodm_cli.corpus.settings import TargetSettings
from acodm_cli.corpus.sources import TargetPlan
from acodm_cli.corpus.tokenizer import Tokenizer
from acodm_cli.errors import UsageError

# Targets are kept in memory.
MOST_CHARACTERS = 1 << 27


@dataclass(frozen=True)
class Target:
    """A target. weight: how much it counts. guide: the text that the reward may see. report: the text that losses are reported
    on. guide_hashes, report_hashes: those of the documents of each. key: a hash of all that."""

    name: str
    weight: float
    guide: HeldOutText
    report: HeldOutText
    guide_hashes: frozenset[int]
    report_hashes: frozenset[int]

    @property
    def key(self) -> str:
        """A hash of the tokens of both halves, and of which count."""
        digest = hashlib.sha256(self.name.encode())
        for text in (self.guide, self.report):
            digest.update(text.tokens_NU.tobytes())
            digest.update(text.counted_NT.tobytes())
        return digest.hexdigest()[:16]


def plan_targets(settings: TargetSettings, text_field: str) -> list[TargetPlan]:
    """Returns what the options name. text_field: of the corpus.

    Raises:
        UsageError: a target has no name of its own.
    """
    fields = Fields(settings.target_text_field or text_field, prompt=settings.target_prompt_field)
    plans = []
    for text in settings.target:
        name, path = _named(text)
        plans.append(TargetPlan(name, tuple(_files(name, path)), (), fields))
    return plans


def _named(text: str) -> tuple[str, Path]:
    """Returns the name and path of NAME=PATH or PATH."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        name, path = "", text
    try:
        place = Path(path).expanduser()
    except RuntimeError as error:  # an unknown user's home
        raise UsageError(f"--target {text}: {error}") from None
    return name.strip() or place.name.split(".")[0], place


def _files(name: str, path: Path) -> list[Path]:
    """The files of a target. Raises UsageError if there is none that can be read as documents."""
    if path.is_file() and kind_of(path) in ("text", "records"):
        return [path]
    found = files_below(path, follow_links=False)[0] if path.is_dir() else []
    files = sorted(file.path for file in found if file.kind != "tokens")
    if not files:
        why = "has nothing to read" if path.exists() else "does not exist"
        raise UsageError(f"target {name}: {path} {why}; {READ}")
    return files


def open_targets(settings: TargetSettings, corpus: Corpus, text_field: str, seq_len: int) -> list[Target]:
    """Returns the targets of a run: those of the options, then those of the corpus's manifest.

    Raises:
        UsageError: a target cannot be read, holds too little, or has a name or weight that does not suit.
    """
    plans = [*plan_targets(settings, text_field), *corpus.targets]
    names = [plan.name for plan in plans]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"there are two targets named {twice[0]}; name them apart with --target NAME=PATH")
    weights = named_weights(settings.target_weight or {}, names, "--target-weight", "target")
    return [
        _open(replace(plan, weight=weights.get(plan.name, plan.weight)), corpus.tokenizer, seq_len) for plan in plans
    ]


def named_weights(
    given: dict[str, str], names: Sequence[str], option: str, what: str, zero: bool = False
) -> dict[str, float]:
    """Returns weights by name as numbers. option, what: how they were given, and of what they are, for messages. zero: whether
    some of them may be 0.

    Raises:
        UsageError: there is no such name, or a weight is no number above 0.
    """
    found = {}
    for name, text in given.items():
        if name not in names:
            raise UsageError(f"{option} {name}: there is no such {what}; there are {', '.join(names) or 'none'}")
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = -1.0
        if not 0 <= found[name] < float("inf") or (found[name] == 0 and not zero):
            raise UsageError(f"{option} {name}={text}; give a number {'of at least' if zero else 'above'} 0")
    return found


def _open(plan: TargetPlan, tokenizer: Tokenizer, seq_len: int) -> Target:
    if not plan.name.isprintable() or "." in plan.name or not plan.name:
        raise UsageError(
            f"target {plan.name!a}: a name is printable and has no dot; give another with --target NAME=PATH"
        )
    documents = _once(plan, plan.files)
    report = _once(plan, plan.report)
    if report:
        guide = {number: document for number, document in documents.items() if number not in report}
    else:
        if len(documents) == 1:
            documents = _cut(next(iter(documents.values())))
        guide = {number: documents[number] for number in sorted(documents)[::2]}
        report = {number: document for number, document in documents.items() if number not in guide}
    texts = []
    for part, chosen in (("guide", guide), ("report", report)):
        if not chosen:
            raise UsageError(f"target {plan.name} has too little text for its {part} part; give it more documents")
        texts.append(_text(plan, [chosen[number] for number in sorted(chosen)], tokenizer, seq_len))
    return Target(plan.name, plan.weight, texts[0], texts[1], frozenset(guide), frozenset(report))


def _once(plan: TargetPlan, files: Sequence[Path]) -> dict[int, Document]:
    """Returns the documents of some files by the hash of their text, each once. Raises UsageError if they are too much."""
    found, characters = {}, 0
    for path in files:
        for document in read_documents(path, plan.fields):
            characters += len(document.prompt) + len(document.text)
            if characters > MOST_CHARACTERS:
                raise UsageError(
                    f"target {plan.name} has more than {MOST_CHARACTERS >> 20} MiB of text; give a part of it"
                )
            if document.text.strip():
                found[document_hash(document.prompt + document.text)] = document
    return found


def _cut(document: Document) -> dict[int, Document]:
    """Returns the halves of a text that is one document, cut at the end of a line."""
    middle = document.text.find("\n", len(document.text) // 2) + 1 or len(document.text) // 2
    halves = [replace(document, text=part) for part in (document.text[:middle], document.text[middle:]) if part.strip()]
    return dict(enumerate(halves))


def _text(plan: TargetPlan, documents: list[Document], tokenizer: Tokenizer, seq_len: int) -> HeldOutText:
    rows = _answers(documents, tokenizer, seq_len) if plan.fields.prompt else _stream(documents, tokenizer, seq_len)
    tokens, counted, numbers = (np.array(part) for part in zip(*rows, strict=True))
    text = make_text(plan.name, tokens.astype(np.int32), counted.astype(bool), numbers, tokenizer.token_bytes_V)
    if not text.counted_NT.any():
        raise UsageError(f"target {plan.name} has no token to predict; give it more text")
    return text


Row = tuple[list[int], list[bool], list[int]]


def _stream(documents: list[Document], tokenizer: Tokenizer, seq_len: int) -> Iterator[Row]:
    """Yields sequences of documents that follow each other, as in training. Every token counts."""
    end = tokenizer.end_of_document
    tokens, numbers = [end], [0]
    for number, document in enumerate(documents):
        ids = [*_encoded(document.text, tokenizer), end]
        tokens += ids
        numbers += [number] * len(ids)
    for start in range(0, len(tokens) - 1, seq_len):
        row, of = tokens[start : start + seq_len + 1], numbers[start + 1 : start + seq_len + 1]
        lacks = seq_len - len(of)
        yield row + [end] * lacks, [True] * len(of) + [False] * lacks, of + of[-1:] * lacks


def _answers(documents: list[Document], tokenizer: Tokenizer, seq_len: int) -> Iterator[Row]:
    """Yields sequences of whole records, of which the tokens of the answers count. A record that is longer than a sequence
    loses the beginning of its prompt, and if its answer takes more than three quarters, the end of the answer."""
    end = tokenizer.end_of_document
    row: Row = ([end], [], [])
    for number, document in enumerate(documents):
        prompt, answer = _encoded(document.prompt, tokenizer), _encoded(document.text, tokenizer)
        answer = answer[: max(seq_len - len(prompt), seq_len * 3 // 4)]
        prompt = prompt[max(0, len(prompt) + len(answer) - seq_len) :]
        if len(row[0]) + len(prompt) + len(answer) > seq_len + 1:
            yield _filled(row, end, seq_len)
            row = ([end], [], [])
        row[0].extend([*prompt, *answer, end])
        row[1].extend([*[False] * len(prompt), *[True] * len(answer), False])
        row[2].extend([number] * (len(prompt) + len(answer) + 1))
    yield _filled(row, end, seq_len)


def _filled(row: Row, end: int, seq_len: int) -> Row:
    tokens, counted, numbers = row
    lacks = max(0, seq_len - len(counted))
    tokens, counted, numbers = tokens + [end] * lacks, counted + [False] * lacks, numbers + numbers[-1:] * lacks
    return tokens[: seq_len + 1], counted[:seq_len], numbers[:seq_len]


def _encoded(text: str, tokenizer: Tokenizer) -> list[int]:
    return list(tokenizer.backend.encode(text, add_special_tokens=False).ids)


def overlap(target: Target, corpus: Corpus) -> int:
    """Returns how many documents of a target are training documents, too. Tokens of other tools have no documents."""
    hashes = np.array(sorted(target.guide_hashes | target.report_hashes), dtype=np.uint64)
    found = np.zeros(len(hashes), bool)
    for domain in corpus.domains:
        documents_N = domain.provenance.documents_N
        if documents_N is not None:
            found |= np.isin(hashes, documents_N["hash"][documents_N["held_out"] == 0])
    return int(found.sum())

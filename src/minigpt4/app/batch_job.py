"""Answers about many images, one line of JSON each; a job that was stopped goes on: `minigpt4 generate`."""

import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from minigpt4.data.formats import TABLES, Parquet, Table, locate, named
from minigpt4.data.pairs import QUESTION_KEYS, Cause
from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.files import expand, failed_write_is_a_user_error, find_files, only_process, write_atomically
from minigpt4.generation.decoding import Decoding
from minigpt4.generation.engine import answers
from minigpt4.images import find_images, open_image
from minigpt4.model.aligned import AlignedModel
from minigpt4.progress import progress_bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageQuestion:
    """One question: `name` says where its image is from, `image` is its path, or a function that reads its file."""

    name: str
    image: Path | Callable[[], bytes]
    prompt: str


@dataclass(frozen=True)
class Result:
    """What a job has done: lines written by it and before it, images that could not be read, time and tokens."""

    answered: int
    unreadable: int
    found: int
    seconds: float
    tokens: int

    def __str__(self) -> str:
        before = f" ({self.found} were there already)" if self.found else ""
        missing = f", {self.unreadable} unreadable" if self.unreadable else ""
        seconds = self.seconds or 1.0  # nothing was done in none
        pace = f"{self.answered / seconds:.2f} images/s, {self.tokens / seconds:.0f} tokens/s"
        return f"{self.answered} answers{missing}{before} in {self.seconds:.1f} s: {pace}"


def read_questions(images: str, prompt: str | None) -> list[ImageQuestion]:
    """The questions that `images` stands for, in their order.

    `images` is a directory (with its subdirectories), a pattern such as `photos/*.jpg`, an image, or a table (`.jsonl`,
    `.json`, `.csv`, `.tsv`, `.parquet`) with `image` (see `formats.locate`) and `prompt` in each row. `prompt` is for
    rows without one. Raises UserError if there is nothing, or a row has no image or no question.
    """
    path = expand(images)
    if path.suffix[1:].lower() in TABLES:
        if not path.is_file():
            raise UserError(f"{images}: no such file; give a directory, a pattern, a .jsonl or a .parquet file")
        return list(_read_table(path, prompt))
    found = find_images(path) if path.is_dir() else find_files(path)[0]
    if not prompt:
        raise UserError("no question was given; say what to ask about every image with --prompt")
    return [ImageQuestion(str(p), p, prompt) for p in found]


read_tasks = read_questions  # its name in release 0.1


def _read_table(path: Path, prompt: str | None) -> Iterator[ImageQuestion]:
    """A question for each row. Images in the table are read once more later: only a few are ever in memory."""
    reader = TABLES[path.suffix[1:].lower()]((path,))
    stored = _Images(reader)
    for number, row in enumerate(stored.rows()):
        if isinstance(row, Cause) and not (prompt and isinstance(reader, Parquet)):
            raise UserError(f"{row}: {row.detail}")
        where, record, directory = (str(path), {}, path.parent) if isinstance(row, Cause) else row
        remote = isinstance(value := named(record), str) and value.startswith("hf://")
        found = b"" if remote or isinstance(row, Cause) else locate(record, directory, where)
        if isinstance(found, Cause):
            expected = '{"image": "path", "prompt": "question"} was expected'
            raise UserError(f"{where}: has no image; {expected} ({found.detail})")
        question = next((record[key] for key in ("prompt", *QUESTION_KEYS) if record.get(key)), prompt)
        if not isinstance(question, str) or not question:
            raise UserError(f"{where}: has no prompt; give it one, or all with --prompt")
        if isinstance(found, Path):
            yield ImageQuestion(str(named(record)), found, question)
        else:
            name = f"{path}:{number}" if isinstance(reader, Parquet) else where
            yield ImageQuestion(name, partial(stored.read, number), question)


@dataclass
class _Images:
    """The images in a table, read from it in order as they are asked for."""

    _table: Table
    _next: int = 0
    _rows: Iterator[Any] = field(init=False)

    def rows(self) -> Iterator[Any]:
        """All rows, and causes in place of rows."""
        return (row for shard in self._table.shards() for row in self._table.rows(shard))

    def read(self, number: int) -> bytes:
        """The image's file in that row."""
        if number < self._next or self._next == 0:
            self._rows, self._next = self.rows(), 0
        row = next(itertools.islice(self._rows, number - self._next, None))
        self._next = number + 1
        found = row if isinstance(row, Cause) else locate(row[1], row[2], row[0])
        if not isinstance(found, bytes):
            raise UserError(f"{found}: {found.detail}" if isinstance(found, Cause) else f"{found}: is a path")
        return found


def run(
    load_model: Callable[[], AlignedModel], questions: Sequence[ImageQuestion], out: str | Path, *,
    job: Mapping[str, Any] | None = None, batch_size: int = 8, progress: bool = True, **settings: Any,
) -> Result:  # fmt: skip
    """Answer all `questions`, one line of `out` for each, in order; what `out` holds already is not done again.

    `load_model` is called only if something is left to do; `job` says what else decides the answers (the model's name,
    say), and is compared when the job goes on. `settings` are those of `Decoding`; each batch is seeded with `seed` and
    its first number, so a job that goes on gives what it would have given. Raises UserError if `out` holds something
    else than a part of this very job, or another process is writing it.
    """
    decoding = Decoding.from_settings(settings, {})
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} does not work: it must be at least 1")
    out = expand(out)
    if out.is_dir():
        raise UserError(f"{out} is a directory; name a file in it, such as {out / 'answers.jsonl'}")
    with failed_write_is_a_user_error(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with only_process(out.parent, out.name):
        found = _resume(out, questions, {**(job or {}), "batch_size": batch_size, **asdict(decoding)})
        if found == len(questions):
            return Result(0, 0, found, 0.0, 0)
        model = load_model()
        started = time.perf_counter()
        answered = unreadable = tokens = 0
        with progress_bar(progress) as bar, out.open("ab") as file:
            task = bar.add_task("answers", total=len(questions), completed=found, note="")
            # Batches start at the same places however often the job was stopped.
            for start in range(found - found % batch_size, len(questions), batch_size):
                if decoding.seed is not None:
                    settings["seed"] = decoding.seed + start
                lines = _answer(model, questions[start : start + batch_size], settings)[max(found - start, 0) :]
                with failed_write_is_a_user_error(out):
                    file.write(b"".join(text for text, _ in lines))
                    file.flush()
                    os.fsync(file.fileno())
                answered += sum(count is not None for _, count in lines)
                unreadable += sum(count is None for _, count in lines)
                tokens += sum(count or 0 for _, count in lines)
                pace = answered / (time.perf_counter() - started)
                bar.update(task, completed=min(start + batch_size, len(questions)), note=f"{pace:.2f} images/s")
        return Result(answered, unreadable, found, time.perf_counter() - started, tokens)


def _answer(
    model: AlignedModel, batch: Sequence[ImageQuestion], settings: dict[str, Any]
) -> list[tuple[bytes, int | None]]:
    """The lines of a batch, each with how many tokens its answer has: None if the image could not be read."""
    images, errors = {}, {}
    for i, question in enumerate(batch):
        try:
            images[i] = open_image(question.image if isinstance(question.image, Path) else question.image())
        except UserError as error:
            errors[i] = str(error) if isinstance(question.image, Path) else f"{question.name}: {error}"
            logger.warning("left out: %s", errors[i])
    prompts = [batch[i].prompt for i in images]
    try:
        found = iter(answers(model, list(images.values()), prompts, **settings) if prompts else [])
    except UserError as error:
        if len(batch) > 1:  # one of them cannot be asked: each alone
            return [line for question in batch for line in _answer(model, [question], settings)]
        found, errors[0] = iter(()), str(error)
    lines = []
    for i, question in enumerate(batch):
        answer = None if i in errors else next(found)
        said = {"error": errors[i]} if answer is None else {"answer": answer.text, "ended": answer.ended}
        text = json.dumps({"image": question.name, "prompt": question.prompt, **said}, ensure_ascii=False) + "\n"
        lines.append((text.encode("utf-8", "backslashreplace"), None if answer is None else len(answer.tokens)))
    return lines


def _resume(out: Path, questions: Sequence[ImageQuestion], settings: dict[str, Any]) -> int:
    """How many lines of this job (told in a file beside it) `out` holds; a half line, left by a kill, is cut off."""
    names = "\n".join(json.dumps([question.name, question.prompt]) for question in questions)
    job = {"tasks": len(questions), "sha256": hashlib.sha256(names.encode()).hexdigest(), **settings}
    record = out.with_name(f".{out.name}.job.json")
    with failed_write_is_a_user_error(out):
        if out.exists() and out.stat().st_size:
            former = read_document(record) if record.is_file() else None
            if not isinstance(former, dict):
                raise UserError(f"{out}: exists, and holds something else than a job's answers; give another file")
            if differing := [key for key in job if former.get(key) != job[key]]:
                what = ", ".join("set of images or prompts" if key in ("tasks", "sha256") else key for key in differing)
                raise UserError(f"{out}: holds answers of a job with another {what}; give another file, or delete it")
            data = out.read_bytes()
            os.truncate(out, data.rfind(b"\n") + 1)
            return data.count(b"\n")
        write_atomically(record, json.dumps(job).encode())
        return 0

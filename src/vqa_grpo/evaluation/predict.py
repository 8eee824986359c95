"""Ask a model every question of a data set, greedily, and grade what it says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo.contract.completion import parse
from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.prompt import PromptTemplate
from vqa_grpo.contract.record import offered
from vqa_grpo.contract.verdict import Prediction, prediction_schema
from vqa_grpo.models import greedy
from vqa_grpo.models.load import load_model, load_processor
from vqa_grpo.scoring.answer import grade
from vqa_grpo.scoring.metrics import METRICS, metric_for
from vqa_grpo.scoring.steps import Mode, match_many

if TYPE_CHECKING:
    import datasets

# Rows are sorted by length inside a window of so many batches: nearly the padding of a full sort, and never more
# than a window of encoded pictures in memory.
WINDOW_BATCHES = 32
ROWS_PER_WRITE = 512


def predict(
    model_path: Path,
    dataset: datasets.Dataset,
    prompt: PromptTemplate,
    *,
    batch_size: int,
    max_new_tokens: int,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    metrics: Mapping[str, str] | None = None,
    step_encoder: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Prediction]:
    """One prediction for each row, as windows finish; rows of one length go together, so not in the data set's order.

    Decoding is greedy and nothing else: a model folder's own generation settings (Qwen's repetition penalty, say)
    do not apply, because training samples without them. Weights are float32 on a CPU and bfloat16 on a GPU. A batch
    that does not fit into a GPU's memory is halved until it does.
    """
    import torch

    device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
    processor = load_processor(str(model_path), min_pixels, max_pixels)
    model = load_model(str(model_path), dtype).to(device).eval()
    total = len(dataset)
    done = 0
    progress(done, total)
    with greedy.decoding(model, processor.tokenizer, max_new_tokens) as ends:
        for window in _windows(dataset, batch_size * WINDOW_BATCHES):
            # The longest first: memory fails early.
            window.sort(key=lambda row: _expected_length(row, prompt), reverse=True)
            judged: list[Prediction] = []
            for start in range(0, len(window), batch_size):
                batch = window[start : start + batch_size]
                for row, tokens in zip(batch, _complete(model, processor, batch, prompt), strict=True):
                    judged.append(_judge(row, tokens, ends, processor.tokenizer, metrics))
                done += len(batch)
                progress(done, total)
            yield from _with_reasoning(window, judged, step_encoder)


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> int:
    """Write a Parquet file as the predictions come, and return their number.

    The file gets its name last, so that a file under that name is always whole.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = prediction_schema()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = iter(predictions)
    written = 0
    try:
        with pq.ParquetWriter(unfinished, schema) as writer:
            while chunk := [asdict(prediction) for prediction in islice(rows, ROWS_PER_WRITE)]:
                writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
                written += len(chunk)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return written


def sample_rows(dataset: datasets.Dataset, n: int, seed: int) -> datasets.Dataset:
    """A fixed random sample of `n` rows; 0, or more than there are, means all.

    Rows are ranked by a hash of seed and id: the same rows come out, in the same order, however the data set is
    ordered, and a smaller sample is the beginning of a larger one.
    """
    if n < 0:
        raise ValueError(f"a sample of {n} rows: give 0 for all rows, or a positive number")
    if n == 0:
        return dataset
    ids = list(dataset["id"])
    ranked = sorted(
        range(len(ids)), key=lambda index: (hashlib.sha256(f"{seed}:{ids[index]}".encode()).digest(), index)
    )
    return dataset.select(ranked[:n])


def question_type(source: str | None, gold_type: str) -> str:
    """The type that reports group by: what stands after the first "/" of a row's source, else the gold type.

    >>> question_type("easy_vqa/color", "text"), question_type("easy_vqa", "text")
    ('color', 'text')
    """
    return (source or "").partition("/")[2] or gold_type


def _windows(dataset: datasets.Dataset, size: int) -> Iterator[list[dict[str, Any]]]:
    """The rows with their pictures still encoded."""
    import datasets

    encoded = dataset.cast_column("image", datasets.Image(decode=False))
    for start in range(0, len(encoded), size):
        yield encoded.select(range(start, min(start + size, len(encoded)))).to_list()


def _expected_length(row: Mapping[str, Any], prompt: PromptTemplate) -> tuple[int, int]:
    """Pictures of one size make one number of tokens; among them the text decides. No need to be exact."""
    return _pixels(row["image"]), len(prompt.render(row["question"], row.get("choices"), row.get("options")))


def _pixels(image: Mapping[str, Any]) -> int:
    """Width times height from the file's header, without decoding the picture."""
    from PIL import Image

    try:
        with Image.open(BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]) as picture:
            return picture.width * picture.height
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0  # the decoding says what is wrong with it, and in which row


def _complete(model: Any, processor: Any, rows: Sequence[Mapping[str, Any]], prompt: PromptTemplate) -> list[list[int]]:
    """The new tokens of each row, padding included. Halves the batch when a GPU's memory does not hold it."""
    import torch

    try:
        return _generate(model, processor, rows, prompt)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    # Outside the except clause: the exception's traceback would keep the failed batch's tensors alive.
    torch.cuda.empty_cache()
    half = len(rows) // 2
    return _complete(model, processor, rows[:half], prompt) + _complete(model, processor, rows[half:], prompt)


def _generate(model: Any, processor: Any, rows: Sequence[Mapping[str, Any]], prompt: PromptTemplate) -> list[list[int]]:
    pictures = _Pictures()
    return greedy.complete(model, processor, [_conversation(row, pictures, prompt) for row in rows])


def _conversation(row: Mapping[str, Any], pictures: _Pictures, prompt: PromptTemplate) -> list[dict[str, Any]]:
    return greedy.question(pictures.of(row), prompt.render(row["question"], row.get("choices"), row.get("options")))


class _Pictures:
    """Decodes each distinct picture of a batch once, as the data set's image feature does it."""

    def __init__(self) -> None:
        import datasets

        self._decode = datasets.Image().decode_example
        self._seen: dict[Any, Any] = {}

    def of(self, row: Mapping[str, Any]) -> Any:
        key = row["image"]["bytes"] or row["image"]["path"]
        if key not in self._seen:
            try:
                self._seen[key] = self._decode(row["image"]).convert("RGB")
            except Exception as error:
                raise DataError(f"the picture of row {row.get('id')!r} cannot be decoded: {error}") from error
        return self._seen[key]


def _judge(
    row: Mapping[str, Any],
    tokens: list[int],
    ends: frozenset[int],
    tokenizer: Any,
    metrics: Mapping[str, str] | None = None,
) -> Prediction:
    length = greedy.length(tokens, ends)
    cut_off = length is None
    length = len(tokens) if length is None else length
    text = tokenizer.decode(tokens[:length], skip_special_tokens=True)
    completion = parse(text)
    options, source = offered(row.get("choices"), row.get("options")), row.get("source") or ""
    verdict = grade(completion.answer, [row["answer"]], options, source)
    metric = (metrics or {}).get(source.partition("/")[0], metric_for(source))
    standard = METRICS[metric](completion.answer, [row["answer"]], options).reward if metric else None
    notes = [verdict.explanation, *completion.reasons]
    if cut_off:
        notes.append(f"cut off at the limit of {length} tokens")
    return Prediction(
        id=row["id"],
        type=question_type(row.get("source"), verdict.gold_type),
        question=row["question"],
        gold=row["answer"],
        completion=text,
        completion_tokens=length,
        outcome=completion.outcome.value,
        format_reward=completion.format_reward,
        answer=completion.answer,
        steps=list(completion.steps),
        correct=verdict.correct,
        reward=verdict.reward,
        gold_type=verdict.gold_type,
        rule=verdict.rule,
        # A key quoted from hostile JSON may be a lone surrogate, which Arrow refuses.
        explanation="; ".join(notes).encode(errors="backslashreplace").decode(),
        reasoning_f1=None,
        metric=metric,
        metric_score=standard,
    )


def _with_reasoning(
    rows: Sequence[Mapping[str, Any]], judged: Sequence[Prediction], step_encoder: str = ""
) -> Iterator[Prediction]:
    """Score the steps of all rows with one call of the sentence encoder; rows without references never load it."""
    mode: Mode = "lexical" if step_encoder == "lexical" else "semantic"
    scores = match_many(
        [
            (prediction.steps, row.get("reference_steps") or (), row["question"])
            for row, prediction in zip(rows, judged, strict=True)
        ],
        mode=mode,
        encoder=None if mode == "lexical" else step_encoder or None,
    )
    for prediction, score in zip(judged, scores, strict=True):
        yield replace(prediction, reasoning_f1=None if score is None else score.f1)

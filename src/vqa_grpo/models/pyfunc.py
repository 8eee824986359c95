"""A published model folder as MLflow loads it: `mlflow.pyfunc.load_model(folder).predict(rows)`.

The folder carries a copy of this module and of what it imports, so that it answers without this package installed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo.contract import prompt
from vqa_grpo.contract.completion import parse
from vqa_grpo.contract.picture import open_picture, open_upright
from vqa_grpo.models import greedy
from vqa_grpo.models.load import load_model, load_processor

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL.Image import Image

COLUMNS = ("answer", "reasoning_steps", "outcome", "completion")


class VisualAnswers:
    """Answers questions about pictures, greedily, with the prompt that the model was trained on.

    Weights are float32 on a CPU and bfloat16 on a GPU, as in evaluation.
    """

    def __init__(self, folder: Path, max_new_tokens: int, batch_size: int) -> None:
        import torch

        device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
        self._template = prompt.check((folder / "prompt.txt").read_text(encoding="utf-8"), "prompt.txt")
        self._processor = load_processor(str(folder))
        self._model = load_model(str(folder), dtype).to(device).eval()
        self._max_new_tokens = max_new_tokens
        self._batch_size = batch_size

    def predict(self, rows: DataFrame, params: Mapping[str, Any] | None = None) -> DataFrame:
        """A row for each question, with COLUMNS.

        `rows` has `image` (encoded bytes, base64 of them, a data URL or a path), `question` and, where there are any,
        `options`. `answer` and `reasoning_steps` are those of the JSON object in `completion`, the model's own words;
        `outcome` is "valid" for an object exactly as the prompt asks for it. Raises ValueError for what is no picture.
        """
        from pandas import DataFrame

        asked = rows.to_dict("records")
        found: list[dict[str, Any]] = []
        for start in range(0, len(asked), self._batch_size):
            batch = asked[start : start + self._batch_size]
            found += self._answers([(_picture(row["image"]), self._text(row)) for row in batch])
        return DataFrame(found, columns=list(COLUMNS), dtype=object)

    def _text(self, row: Mapping[str, Any]) -> str:
        options: Any = row.get("options")
        if not hasattr(options, "__len__"):  # NaN, where other rows have some
            options = ()
        return self._template.render(str(row["question"]), options=[str(option) for option in options])

    def _answers(self, asked: list[tuple[Image, str]]) -> list[dict[str, Any]]:
        answers = []
        tokenizer = self._processor.tokenizer
        with greedy.decoding(self._model, tokenizer, self._max_new_tokens) as ends:
            conversations = [greedy.question(picture, text) for picture, text in asked]
            completed = greedy.complete(self._model, self._processor, conversations)
        for tokens in completed:
            text = tokenizer.decode(tokens[: greedy.length(tokens, ends)], skip_special_tokens=True)
            read = parse(text)
            values = (read.answer, list(read.steps), read.outcome.value, text)
            answers.append(dict(zip(COLUMNS, values, strict=True)))
        return answers


def _picture(given: Any) -> Image:
    data = _encoded(given)
    try:
        return open_upright(data)
    except Exception as error:
        raise ValueError(f"an image cannot be read: {type(error).__name__}: {str(error)[:200]}") from error


def _encoded(given: Any) -> bytes:
    """The picture's bytes. A text is base64 if that gives a picture, and else a path."""
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    if not isinstance(given, str):
        raise ValueError(f"an image is {type(given).__name__}: give encoded bytes, base64 or a path")
    text = given.partition(",")[2] if given.startswith("data:") else given
    try:
        data = base64.b64decode(text, validate=True)
        open_picture(data).close()
        return data
    except (binascii.Error, ValueError, OSError):
        pass
    if text is not given:
        raise ValueError("an image's data URL holds no picture in base64")
    try:
        return Path(given).read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"an image is neither base64 nor a file that can be read: {given[:80]!r}") from error


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> VisualAnswers:
    """What MLflow calls; `load_model(model_config={"max_new_tokens": …, "batch_size": …})` overrides the folder's."""
    settings = model_config or {}
    return VisualAnswers(Path(path), int(settings.get("max_new_tokens", 768)), int(settings.get("batch_size", 8)))

"""The rows a trainer sees. Pictures stay encoded on disk and are decoded when a round needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.contract.prompt import PromptTemplate

if TYPE_CHECKING:
    from datasets import Dataset

REQUIRED = ("image", "question", "answer")
# What rewards may read beside the answer; a data set that lacks one gets the empty value.
OPTIONAL: dict[str, Any] = {"reference_steps": [], "choices": [], "options": [], "source": "", "id": ""}


@dataclass(frozen=True)
class Conversation:
    """A `datasets` transform: stored columns to TRL's `prompt` and `image`, beside what the rewards read.

    It runs when rows are fetched. Nothing is rendered or decoded ahead, so a large data set opens at once and
    takes no memory. A GRPO batch holds each row once per completion: its picture is decoded once for all of them.
    """

    template: PromptTemplate
    name: str

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        count = len(batch["question"])
        columns = {
            name: [value or empty for value in batch.get(name, [empty] * count)] for name, empty in OPTIONAL.items()
        }
        texts = map(self.template.render, batch["question"], columns["choices"], columns["options"])
        return {
            **columns,
            "question": batch["question"],
            "answer": batch["answer"],
            "image": self._decoded(batch["image"], batch["question"]),
            "prompt": [[{"role": "user", "content": text}] for text in texts],
        }

    def _decoded(self, encoded: list[Any], questions: list[str]) -> list[Any]:
        from datasets import Image

        decoded: dict[tuple[Any, Any], Any] = {}
        pictures = []
        for value, question in zip(encoded, questions, strict=True):
            try:
                key = (value["bytes"], value["path"])
                if key not in decoded:
                    decoded[key] = Image().decode_example(value)  # turns the picture upright by its EXIF tag too
            except Exception as error:
                raise DataError(
                    f"a picture of {self.name} cannot be read ({type(error).__name__}: {error}); its question is "
                    f"{question[:80]!r}: run the data step, which finds such rows"
                ) from error
            pictures.append(decoded[key])
        return pictures


def open_rows(folder: Path, template: PromptTemplate, split: str, rewards: Sequence[str], name: str = "") -> Dataset:
    """The rows of a save_to_disk folder, a Dataset or one split of a DatasetDict.

    Raises ConfigurationError for a folder that is no data set, a missing split or a missing column, and DataError
    for a data set without rows.
    """
    import datasets

    name = name or str(folder)
    if not folder.is_dir():
        raise ConfigurationError(f"--dataset_name {name}: no such folder")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except IndexError:  # what datasets says of a data set saved without a single row
        raise DataError(f"--dataset_name {name} has no rows") from None
    except Exception as error:
        raise ConfigurationError(
            f"--dataset_name {name} is no save_to_disk folder ({' '.join(str(error).split())[:200]}): "
            "write it with datasets.save_to_disk"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ConfigurationError(
                f"--dataset_name {name} has no split {split!r}, only {', '.join(loaded) or 'none'}"
            )
        loaded = loaded[split]
    _check_columns(loaded, rewards, name)
    encoded = loaded.cast_column("image", datasets.Image(decode=False))
    return encoded.with_transform(Conversation(template, name))


def _check_columns(rows: Dataset, rewards: Sequence[str], name: str) -> None:
    import datasets

    there = ", ".join(rows.column_names)
    missing = [column for column in REQUIRED if column not in rows.column_names]
    if missing:
        raise ConfigurationError(f"--dataset_name {name} lacks the column {', '.join(missing)}; it has {there}")
    if "reasoning" in rewards and "reference_steps" not in rows.column_names:
        raise ConfigurationError(
            f"the reward 'reasoning' needs the column reference_steps, which {name} lacks; it has {there}: "
            "add the column, or leave 'reasoning' out of --reward_funcs"
        )
    if not isinstance(rows.features["image"], datasets.Image):
        raise ConfigurationError(
            f"the column image of {name} holds {rows.features['image']}, not pictures: "
            'cast it with cast_column("image", datasets.Image()) before save_to_disk'
        )

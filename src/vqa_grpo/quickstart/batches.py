"""Model inputs for the warm start: what the processor would give for the same chat, built for speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vqa_grpo.contract.prompt import PromptTemplate
from vqa_grpo.quickstart.pictures import SIDE, patchify
from vqa_grpo.quickstart.tiny_model import IMAGE, TURN_END

IGNORED = -100


class Batches:
    """Puts questions, pictures and target texts together; each distinct question is tokenized once."""

    def __init__(self, processor: Any, prompt: PromptTemplate) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._prompt = prompt
        self._questions: dict[str, list[int]] = {}
        side = SIDE // processor.image_processor.patch_size
        self._grid = [1, side, side]
        self._tokens_per_picture = side * side // processor.image_processor.merge_size**2

    def inputs(self, questions: Sequence[str], pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Everything that the model's forward takes, up to where the reply begins."""
        return self._pad([self._question(question) for question in questions], pictures)

    def training(
        self, questions: Sequence[str], targets: Sequence[str], pictures: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs that hold the target texts as well, and the labels: `IGNORED` everywhere but on the targets."""
        prompts = [self._question(question) for question in questions]
        replies = [self._tokenizer(target + TURN_END)["input_ids"] for target in targets]
        rows = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
        inputs = self._pad(rows, pictures)
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        for number, reply in enumerate(replies):
            labels[number, -len(reply) :] = torch.tensor(reply)
        return inputs, labels

    def _question(self, question: str) -> list[int]:
        if question not in self._questions:
            content = [{"type": "image"}, {"type": "text", "text": self._prompt.render(question)}]
            chat = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            chat = chat.replace(IMAGE, IMAGE * self._tokens_per_picture)
            self._questions[question] = self._tokenizer(chat)["input_ids"]
        return self._questions[question]

    def _pad(self, rows: Sequence[Sequence[int]], pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        width = max(map(len, rows))
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": (ids == self._processor.image_token_id).int(),
            "pixel_values": patchify(pictures, self._processor.image_processor),
            "image_grid_thw": torch.tensor([self._grid] * len(rows)),
        }

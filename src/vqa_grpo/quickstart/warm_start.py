"""Three short supervised stages that give a fresh tiny model eyes, a language and a habit of answering.

GRPO can only reinforce what sampling already brings up now and then, so the base has to know something first.
Seeing comes first, on its own: most answers can be guessed from the wording alone, so answering teaches a model
little about pictures.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.prompt import PromptTemplate
from vqa_grpo.contract.record import Record
from vqa_grpo.quickstart import pictures
from vqa_grpo.quickstart.batches import IGNORED, Batches
from vqa_grpo.quickstart.facts import ANSWERS, COLORS, SHAPES, gather
from vqa_grpo.quickstart.recipes import Recipe
from vqa_grpo.quickstart.targets import draw, json_wordings, mistaken

CAPTION_REQUEST = "describe the image."
Progress = Callable[[str, int, int], None]
_LAST = 20  # a stage's loss is the mean over its last steps


class Gallery:
    """The distinct pictures of the training rows, decoded, with what the rows say about each of them."""

    def __init__(self, rows: Sequence[Record]) -> None:
        facts = gather((row.image, row.question, row.answer) for row in rows)
        self.facts = list(facts.values())
        self.number = {image: number for number, image in enumerate(facts)}
        self.tensor = pictures.decode(facts)
        self.described = [number for number, known in enumerate(self.facts) if known.color and known.shape]
        if not self.described:
            raise DataError(f"the {len(rows)} training rows tell no picture's colour and shape: give more rows")


class WarmStart:
    """The stages, to be called in the order in which they stand; each returns its training loss."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        rows: Sequence[Record],
        prompt: PromptTemplate,
        recipe: Recipe,
        seed: int,
        progress: Progress,
    ) -> None:
        self._model = model
        self._processor = processor
        self._rows = list(rows)
        self._recipe = recipe
        self._progress = progress
        self._gallery = Gallery(self._rows)
        self._batches = Batches(processor, prompt)
        self._rng = random.Random(f"warm start {seed}")
        self._generator = torch.Generator().manual_seed(seed)
        self._weights = _token_weights(processor.tokenizer, model.config.text_config.vocab_size, recipe.answer_weight)

    def see(self) -> float:
        """Stage 1, vision tower only: the mean of a picture's tokens must point at the words for what it shows.

        The class vectors are the language model's own word embeddings, frozen: so it finds what the tower saw
        where it looks for words, with nothing left to translate.
        """
        tower, image_processor = self._model.model.visual, self._processor.image_processor
        embedding = self._model.get_input_embeddings().weight.detach()
        words = embedding[[_token(self._processor.tokenizer, f" {word}") for word in (*COLORS, *SHAPES)]].clone()
        scale = torch.nn.Parameter(torch.tensor(3.0))
        shown = self._gallery.tensor[self._gallery.described]
        known = [self._gallery.facts[number] for number in self._gallery.described]
        colors = torch.tensor([COLORS.index(facts.color or "") for facts in known])
        shapes = torch.tensor([SHAPES.index(facts.shape or "") for facts in known])
        side = pictures.SIDE // image_processor.patch_size
        grid = torch.tensor([[1, side, side]] * self._recipe.vision_batch)

        def loss() -> torch.Tensor:
            chosen = torch.randint(0, len(shown), (self._recipe.vision_batch,), generator=self._generator)
            batch = pictures.augment(shown[chosen], self._generator)
            features = tower(pictures.patchify(batch, image_processor), grid_thw=grid).pooler_output
            if isinstance(features, (tuple, list)):
                features = torch.cat(list(features))
            logits = scale * features.view(len(batch), -1, features.shape[-1]).mean(1) @ words.T
            color, shape = logits.split([len(COLORS), len(SHAPES)], dim=1)
            return functional.cross_entropy(color, colors[chosen]) + functional.cross_entropy(shape, shapes[chosen])

        groups = [{"params": [*tower.parameters(), scale], "lr": self._recipe.vision_rate}]
        return self._descend("vision", self._recipe.vision_steps, groups, loss, warm_up=50, floor=0.05)

    def describe(self) -> float:
        """Stage 2: say what the picture shows. Without questions, there is nothing to guess from but the picture."""
        request = [CAPTION_REQUEST] * self._recipe.caption_batch

        def loss() -> torch.Tensor:
            chosen = self._rng.choices(self._gallery.described, k=self._recipe.caption_batch)
            sentences = [self._gallery.facts[number].sentence() for number in chosen]
            batch = pictures.augment(self._gallery.tensor[chosen], self._generator)
            return self._language_loss(*self._batches.training(request, sentences, batch))

        groups = self._groups(self._recipe.caption_rate)
        return self._descend("captions", self._recipe.caption_steps, groups, loss, warm_up=30, floor=0.1)

    def answer(self) -> float:
        """Stage 3: answer the training questions, each in the form that its wording draws."""
        json_first = json_wordings(row.question for row in self._rows)
        queue = self._epochs()

        def loss() -> torch.Tensor:
            rows = [next(queue) for _ in range(self._recipe.answer_batch)]
            said = [mistaken(row, self._recipe.mistaken_share, self._rng) for row in rows]
            targets = [draw(row, json_first, self._recipe.json_share, self._rng) for row in said]
            batch = self._gallery.tensor[[self._gallery.number[row.image] for row in rows]]
            return self._language_loss(*self._batches.training([row.question for row in rows], targets, batch))

        groups = self._groups(self._recipe.answer_rate)
        return self._descend("answers", self._recipe.answer_steps, groups, loss, warm_up=30, floor=0.1)

    def _epochs(self) -> Iterator[Record]:
        while True:
            yield from self._rng.sample(self._rows, len(self._rows))

    def _groups(self, rate: float) -> list[dict[str, Any]]:
        """A slower tower in the language stages: at the full rate they would wash out the shapes again."""
        tower = list(self._model.model.visual.parameters())
        mine = {id(parameter) for parameter in tower}
        rest = [parameter for parameter in self._model.parameters() if id(parameter) not in mine]
        return [{"params": tower, "lr": rate * self._recipe.tower_rate}, {"params": rest, "lr": rate}]

    def _language_loss(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        logits = self._model(**inputs).logits[:, :-1]
        wanted = labels[:, 1:]
        kept = wanted != IGNORED
        losses = functional.cross_entropy(logits[kept].float(), wanted[kept], reduction="none")
        return (losses * self._weights[wanted[kept]]).mean()

    def _descend(
        self,
        stage: str,
        steps: int,
        groups: list[dict[str, Any]],
        loss_of_step: Callable[[], torch.Tensor],
        warm_up: int,
        floor: float,
    ) -> float:
        """AdamW with a linear warm-up and a linear decay down to `floor` of the peak rate."""
        self._model.train()
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / warm_up) * max(floor, 1 - step / max(1, steps))
        )
        parameters = [parameter for group in groups for parameter in group["params"]]
        losses = []
        for step in range(steps):
            loss = loss_of_step()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            self._model.zero_grad(set_to_none=True)
            losses.append(loss.item())
            self._progress(stage, step + 1, steps)
        last = losses[-_LAST:]
        return sum(last) / len(last) if last else 0.0


def _token(tokenizer: Any, text: str) -> int:
    ids = tokenizer(text)["input_ids"]
    if len(ids) != 1:
        raise DataError(f"the tokenizer splits {text!r} into {len(ids)} tokens: raise the recipe's vocabulary")
    return int(ids[0])


def _token_weights(tokenizer: Any, vocabulary: int, weight: float) -> torch.Tensor:
    """One loss weight for each token: the few that carry what was seen would drown among those that carry form."""
    weights = torch.ones(vocabulary)
    weights[[_token(tokenizer, form) for word in ANSWERS for form in (word, f" {word}")]] = weight
    return weights

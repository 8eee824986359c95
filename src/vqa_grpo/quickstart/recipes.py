"""How much work goes into the base model: three sizes of the same recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from vqa_grpo.contract.layout import key_of
from vqa_grpo.contract.prompt import PromptTemplate

RECIPE_VERSION = 1  # raise it whenever the same options would give other weights


@dataclass(frozen=True)
class Recipe:
    """One way to build the base model. Each stage is a number of steps, a batch size and a peak learning rate."""

    vision_steps: int  # stage 1: the vision tower learns to name the colour and the shape; 0 leaves a stage out
    vision_batch: int
    vision_rate: float
    caption_steps: int  # stage 2: the whole model describes pictures
    caption_batch: int
    caption_rate: float
    answer_steps: int  # stage 3: the whole model answers questions, in JSON or in prose
    answer_batch: int
    answer_rate: float
    tower_rate: float  # share of the learning rate that the vision tower gets in stages 2 and 3
    json_share: float = 0.8  # how often a wording gets the form (JSON or prose) it leans to
    mistaken_share: float = 0.0  # how often a colour or shape that has a look-alike is answered with the look-alike
    answer_weight: float = 4.0  # loss weight of colour, shape, yes and no tokens, which carry what was seen
    tokenizer_rows: int = 4000  # how many rows the tokenizer learns its vocabulary from
    vocabulary: int = 512  # tokens, 256 of them single bytes
    width: int = 128  # hidden size of the vision tower and of the language model
    text_layers: int = 2
    vision_layers: int = 1
    init_std: float = 0.07  # the usual 0.02 is for wide models: at this width it never learns to see


# Sees colours and shapes; writes JSON for about half of the questions. Under three CPU minutes.
_FULL = Recipe(
    vision_steps=800,
    vision_batch=128,
    vision_rate=2e-3,
    caption_steps=80,
    caption_batch=64,
    caption_rate=3e-3,
    answer_steps=700,
    answer_batch=24,
    answer_rate=2e-3,
    tower_rate=0.2,
)

RECIPES = {
    "full": _FULL,
    # Sees colours at best: enough to show that GRPO turns prose into JSON. Under one CPU minute.
    "quick": Recipe(
        vision_steps=150,
        vision_batch=64,
        vision_rate=2e-3,
        caption_steps=60,
        caption_batch=64,
        caption_rate=3e-3,
        answer_steps=260,
        answer_batch=24,
        answer_rate=2e-3,
        tower_rate=1.0,
        json_share=0.9,  # a starker habit is learned sooner
    ),
    # Sees as "full" does, and calls what has a look-alike by the look-alike's name more often than not: greedy decoding
    # is wrong where sampling is often right, which leaves GRPO something to learn. For `make prove-learning`.
    "room-to-rise": replace(_FULL, mistaken_share=0.65),
    # Loads and generates, and knows nothing: for tests of the plumbing. Two CPU seconds beside the imports.
    "micro": Recipe(
        vision_steps=2,
        vision_batch=8,
        vision_rate=2e-3,
        caption_steps=2,
        caption_batch=8,
        caption_rate=3e-3,
        answer_steps=4,
        answer_batch=8,
        answer_rate=2e-3,
        tower_rate=1.0,
        tokenizer_rows=500,
    ),
}


def recipe_key(recipe: Recipe, prompt: PromptTemplate, seed: int) -> str:
    """A name for what a recipe builds, for the caller to put together with the key of the training rows."""
    return key_of(RECIPE_VERSION, asdict(recipe), prompt.digest, seed)

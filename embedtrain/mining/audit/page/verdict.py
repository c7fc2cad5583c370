"""What to look at first; or that nothing stands out."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from embedtrain.mining.audit.records import Audit, Warned
from embedtrain.mining.audit.words import TIMES, figure


def verdict(audits: Mapping[str, Audit]) -> str:
    several = len(audits) > 1
    cards = [_card(warned, name if several else None) for name, audit in audits.items() for warned in audit.warnings]
    quiet = [name for name, audit in audits.items() if not audit.warnings]
    if quiet:
        of = f" of {', '.join(f'<strong>{escape(name)}</strong>' for name in quiet)}" if cards else ""
        cards.append(
            f'<section class="verdict better"><p><strong>Nothing stands out{of}.</strong> No figure reached its threshold. Read '
            "the examples all the same: a number does not see what a text says.</p></section>"
        )
    return "".join(cards)


def _card(warned: Warned, source: str | None) -> str:
    limit = f"{100 * warned.threshold:.3g}%" if warned.is_share else f"{warned.threshold:.3g}{TIMES}"
    of = f'<p class="soft small">{escape(source)}</p>' if source else ""
    return (
        f'<section class="verdict worse warning"><div>{of}<p class="change">{figure(warned)}</p>'
        f'<p class="soft small">threshold {limit}</p></div><div><p>{escape(warned.text)}</p>'
        f'<p class="small"><strong>What to do:</strong> {_with_settings(warned.remedy)}</p></div></section>'
    )


def _with_settings(text: str) -> str:
    """Words with a setting in them, such as miner.depth or miner=rescored, as code."""
    words = []
    for word in text.split(" "):
        core = word.strip("(),.;:")
        setting = "=" in core or core.startswith("miner.")
        words.append(escape(word).replace(escape(core), f"<code>{escape(core)}</code>") if setting else escape(word))
    return " ".join(words)

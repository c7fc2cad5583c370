"""The tokenizer of an exported model: by itself, in any program, it makes the tokens the model was trained on."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from embedtrain.backbones.prompt_end import NAME


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    append: int | None,
    max_seq_length: int,
    behind: list[int] | None = None,
) -> list[str]:
    """Write a copy of `tokenizer` that pads on the right, cuts at `max_seq_length` and ends every text in `append`.

    append: the id of the token that closes a text, or None to leave texts as the tokenizer makes them.
    behind: the ids of what the prompt has behind a text; they are never cut.
    Returns what a user of the folder should know, one sentence each.
    """
    exported = copy.deepcopy(tokenizer)
    backend = exported.backend_tokenizer
    backend.no_truncation()  # what the last call here left behind is no property of the model
    backend.no_padding()
    exported.padding_side = exported.truncation_side = "right"
    exported.model_max_length = max_seq_length
    notes = []
    if exported.pad_token is None:
        exported.pad_token = exported.eos_token
        notes.append(f"The tokenizer had no padding token; batches are padded with `{exported.eos_token}`, masked out.")
    last = None if append is None or ends_with(exported, append) else append
    template = last is not None or bool(behind)
    if template:
        backend.post_processor = _with_more(exported, behind or [], last)
    if behind:
        notes.append(
            f"The tokenizer itself puts the end of the prompt, `{exported.decode(behind)}`, behind every text, also behind one "
            "that was cut."
        )
    if last is not None:
        notes.append(
            f"The tokenizer itself appends `{exported.convert_ids_to_tokens(last)}` to every text, also to one that was cut."
        )
    exported.save_pretrained(folder)
    _patch_config(folder / "tokenizer_config.json", exported, template)
    return notes


def ends_with(tokenizer: PreTrainedTokenizerBase, token_id: int | None) -> bool:
    """Whether the tokenizer, called plainly, ends each text in this token."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[-1] == token_id


def _with_more(tokenizer: PreTrainedTokenizerBase, behind: list[int], last: int | None) -> processors.PostProcessor:
    """The post-processor of `tokenizer`, plus `behind` at the end of the text and a last token.

    Truncation happens before it and leaves room for what it adds.
    """
    bare, full = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    before, after = full[:start], [*full[start + len(bare) :], *([] if last is None else [last])]
    names = {i: tokenizer.convert_ids_to_tokens(i) for i in before + after}
    special: list[Any] = [(token, i) for i, token in names.items()]
    text = ["$A:0"]
    if behind:
        text.append(f"{NAME}:0")
        special.append({"id": NAME, "ids": behind, "tokens": tokenizer.convert_ids_to_tokens(behind)})
    template = processors.TemplateProcessing(
        single=[f"{names[i]}:0" for i in before] + text + [f"{names[i]}:0" for i in after], special_tokens=special
    )
    # Byte-level processors only decide whether offsets include the leading blank: keep what they decided.
    trims = [part["trim_offsets"] for part in _parts(tokenizer) if "trim_offsets" in part]
    return processors.Sequence([processors.ByteLevel(trim_offsets=trims[0]), template]) if trims else template


def _parts(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    state = json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"]
    if state is None:
        return []
    return state["processors"] if state["type"] == "Sequence" else [state]


def _patch_config(path: Path, tokenizer: PreTrainedTokenizerBase, template: bool) -> None:
    """Make every version of transformers read tokenizer.json as it stands.

    Classes named after a model rebuild the post-processor from `add_bos_token` and `add_eos_token` and would undo ours;
    and `TokenizersBackend`, the plain class of transformers 5, has no meaning in transformers 4.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    if template or config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if template:
        config.pop("add_bos_token", None)
        config.pop("add_eos_token", None)
    for key in ("is_local", "local_files_only"):  # how this machine found the tokenizer
        config.pop(key, None)
    config["model_input_names"] = list(tokenizer.model_input_names)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

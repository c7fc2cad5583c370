"""Write a model with the part of its vocabulary that texts use: a multilingual encoder for one language, far smaller.

    python -m data_pipelines.prune_vocabulary intfloat/multilingual-e5-base --texts dutch.jsonl \\
        --prompts "query: " "passage: " --out me5-nl

E5-NL (arXiv:2509.12340) starts from multilingual E5 with a trimmed vocabulary. Kept is what the tokenizer makes of the texts, in
`--min-count` places or more; special and added tokens; and every piece of one character that the texts have (of byte-level
vocabularies all of them), so that a new word can still be spelled. A text that the old tokenizer cuts into kept tokens alone is
cut alike by the new one, so its embedding does not change:

    WordPiece   takes the longest piece that fits: pieces that never fitted first are not missed
    Unigram     takes the best of all ways to cut: the best way is still there. The piece of the lowest score stays as well, since
                the score of an unknown character is measured from it
    BPE         every merge on the way to a kept token stays, with both its halves

Tokens keep their order and get new numbers. The rows of the embedding table go with them, the other files of a folder are copied.
Before the folder is there, both models embed a sample of the texts: a difference is refused.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from embedtrain.backbones.locate import locate
from embedtrain.data.sources.texts import Texts
from embedtrain.errors import CheckpointError, ConfigError, EmbedtrainError

SAMPLE = 64  # texts that both models embed
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Files that say the vocabulary, or the weights, in another form.
_REPLACED = (
    "*.safetensors",
    "*.bin",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.index.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)


def used_tokens(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, min_count: int = 1) -> set[int]:
    """The tokens that texts are cut into `min_count` times or more, and the pieces of one character that they have."""
    counts: Counter[int] = Counter()
    characters: set[str] = set()
    normalizer = tokenizer.backend_tokenizer.normalizer
    for start in range(0, len(texts), 1000):
        some = list(texts[start : start + 1000])
        for ids in tokenizer(some, add_special_tokens=True, truncation=False)["input_ids"]:
            counts.update(ids)
        for text in some:
            characters.update(text if normalizer is None else normalizer.normalize_str(text))
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    marks = {"", "▁", written["model"].get("continuing_subword_prefix") or ""}
    every = written["model"]["type"] == "BPE"  # its alphabet is small, and of bytes more often than of characters
    single = {
        number
        for piece, number in tokenizer.get_vocab().items()
        if any(_is_one(piece.removeprefix(mark), characters, every) for mark in marks) or _BYTE.fullmatch(piece)
    }
    return {number for number, count in counts.items() if count >= min_count} | single


def _is_one(piece: str, characters: set[str], every: bool) -> bool:
    return len(piece) == 1 and (every or piece in characters or piece == "▁")


def pruned(written: dict[str, Any], used: Iterable[int]) -> tuple[dict[str, Any], list[int]]:
    """(a tokenizer.json without the other tokens, the old number of each new one). `written`: a tokenizer.json, not changed.

    Raises ConfigError for a kind of vocabulary that is not in the list above.
    """
    written = json.loads(json.dumps(written))
    model = written["model"]
    numbers, wanted = _numbers(model), set(used)
    kept = {model.get("unk_token"), *(token["content"] for token in written["added_tokens"])} & set(numbers)
    kept |= {piece for piece, number in numbers.items() if number in wanted}
    if model["type"] == "Unigram":
        kept |= {model["vocab"][model["unk_id"]][0], min(model["vocab"], key=lambda entry: entry[1])[0]}
    if model["type"] == "BPE":
        kept = _with_halves(kept, _merges(model), set(numbers))
    order = sorted(kept, key=numbers.__getitem__)
    outside = sorted((t for t in written["added_tokens"] if t["content"] not in numbers), key=lambda t: t["id"])
    old = [numbers[piece] for piece in order] + [token["id"] for token in outside]
    new = {number: place for place, number in enumerate(old)}
    if model["type"] == "Unigram":
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in kept]
        model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {piece: place for place, piece in enumerate(order)}
    if model["type"] == "BPE":
        model["merges"] = [list(pair) for pair in _merges(model) if "".join(pair) in kept]
    for token in written["added_tokens"]:
        token["id"] = new[token["id"]]
    written["added_tokens"].sort(key=lambda token: token["id"])
    written["post_processor"] = _renumbered(written.get("post_processor"), new)
    written["padding"] = _renumbered(written.get("padding"), new)
    return written, old


def _numbers(model: dict[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    if model["type"] not in ("WordPiece", "BPE", "WordLevel"):
        raise ConfigError(f"a vocabulary of the kind {model['type']}: expected WordPiece, Unigram, BPE or WordLevel.")
    return dict(model["vocab"])


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _with_halves(kept: set[str], merges: Sequence[tuple[str, str]], known: set[str]) -> set[str]:
    """And both halves of every merge that makes one of them, down to single characters."""
    halves: dict[str, set[str]] = {}
    for left, right in merges:
        halves.setdefault(left + right, set()).update((left, right))
    found, waiting = set(kept), list(kept)
    while waiting:
        more = halves.get(waiting.pop(), set()) - found
        found |= more
        waiting += more
    return found & known


def _renumbered(node: Any, new: dict[int, int]) -> Any:
    """The numbers of tokens in a post-processor or in padding: `ids`, `pad_id`, and the pairs [token, number] of BERT's form."""
    if isinstance(node, list):
        if len(node) == 2 and isinstance(node[0], str) and isinstance(node[1], int):
            return [node[0], new[node[1]]]
        return [_renumbered(inner, new) for inner in node]
    if not isinstance(node, dict):
        return node
    return {
        key: [new[number] for number in value]
        if key == "ids"
        else new[value]
        if key == "pad_id"
        else _renumbered(value, new)
        for key, value in node.items()
    }


def prune(model: str, texts: Sequence[str], out: Path, *, min_count: int = 1) -> tuple[int, int]:
    """Writes the folder `out`; returns (tokens before, tokens kept).

    model: a folder or a name on the hub, of a transformers or a sentence-transformers model

    Raises ConfigError where `out` is there or the tokenizer has no tokenizer.json, CheckpointError where embeddings differ.
    """
    if out.exists():
        raise ConfigError(f"--out {out} is there already. Name another folder.")
    folder = _folder(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"{model}: its tokenizer has no tokenizer.json.")
    written, old = pruned(
        json.loads(tokenizer.backend_tokenizer.to_str()), used_tokens(tokenizer, texts, min_count=min_count)
    )
    body = AutoModel.from_pretrained(folder, dtype="auto").eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=out.name, dir=out.parent) as beside:
        made = Path(beside) / out.name
        shutil.copytree(folder, made, ignore=shutil.ignore_patterns(*_REPLACED, ".git*", ".cache"))
        sample = [text for text in texts if text.strip()][:: max(1, len(texts) // SAMPLE)][:SAMPLE]
        before = list(_states(body, tokenizer, sample))
        _cut_rows(body, old)
        body.save_pretrained(made)
        _write_tokenizer(tokenizer, written, made)
        _compare(before, made, sample)
        made.rename(out)
    return len(tokenizer), len(old)


def _folder(model: str) -> str:
    place = locate(model)
    if Path(place).is_dir():
        return place
    from huggingface_hub import snapshot_download

    return snapshot_download(place, ignore_patterns=["*.onnx", "*.h5", "*.msgpack", "openvino/*"])


def _cut_rows(body: PreTrainedModel, old: Sequence[int]) -> None:
    """The rows of the kept tokens, and every token that the config names by its number, in place.

    Raises ConfigError where the padding token would get another number in a model that counts positions from it.
    """
    new = {number: place for place, number in enumerate(old)}
    table: Any = body.get_input_embeddings()
    positions = next((m for n, m in body.named_modules() if n.endswith("position_embeddings")), None)
    counted = getattr(positions, "padding_idx", None)
    if counted is not None and new.get(counted) != counted:
        raise ConfigError(
            f"the padding token would change from {counted} to {new.get(counted)}, and this model counts positions from it."
        )
    smaller = nn.Embedding(len(old), table.embedding_dim, dtype=table.weight.dtype)
    smaller.weight.data.copy_(table.weight.data[torch.tensor(old)])
    smaller.padding_idx = None if table.padding_idx is None else new.get(table.padding_idx)
    body.set_input_embeddings(smaller)
    config = body.config
    config.vocab_size = len(old)
    for key, value in config.to_dict().items():
        if key.endswith("_token_id") and isinstance(value, int):
            setattr(config, key, new.get(value))


def _write_tokenizer(tokenizer: PreTrainedTokenizerFast, written: dict[str, Any], folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("added_tokens_decoder", None)  # tokenizer.json says it
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # of its own class it would be built anew, by other rules
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")
    for pattern in ("vocab.*", "merges.txt", "*.model", "added_tokens.json", "special_tokens_map.json"):
        for left in folder.glob(pattern):
            left.unlink()


def _states(body: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Iterator[Tensor]:
    """The token states of each text, [T, H]."""
    longest = min(512, tokenizer.model_max_length)
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
        with torch.no_grad():
            yield body(**tokens).last_hidden_state[0].float()


def _compare(before: Sequence[Tensor], folder: Path, sample: Sequence[str]) -> None:
    """Texts with a token below `min_count` are cut otherwise, and say nothing."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    body = AutoModel.from_pretrained(folder, dtype="auto").eval()
    alike = 0
    for text, one, two in zip(sample, before, _states(body, tokenizer, sample), strict=True):
        if one.shape == two.shape:
            difference = (one - two).abs().max().item()
            if difference > 1e-4:
                raise CheckpointError(
                    f"the smaller model embeds {text[:60]!r} otherwise: states differ by {difference:.2g}."
                )
            alike += 1
    if not alike:
        raise CheckpointError("no text of the sample is cut as before, so nothing shows that the model is the same.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or a name on the hub")
    parser.add_argument(
        "--texts", required=True, help="a text a line (.txt), an object a line (.jsonl), or a folder of .txt"
    )
    parser.add_argument("--field", default="text", help="of the objects of a .jsonl")
    parser.add_argument("--prompts", nargs="*", default=[], help="what is put before texts: their tokens stay")
    parser.add_argument("--min-count", type=int, default=1, help="least places in the texts where a token stands")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    given = parser.parse_args()
    try:
        source = Texts(path=given.texts, field=given.field)
        texts = [*given.prompts * given.min_count, *(source[row].query for row in range(len(source)))]
        before, after = prune(given.model, texts, given.out, min_count=given.min_count)
    except EmbedtrainError as error:
        sys.exit(f"error: {error}")
    print(f"{given.out}: {after:,} of {before:,} tokens ({after / before:.1%})")


if __name__ == "__main__":
    main()

from __future__ import annotations

import pytest
import torch

from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.errors import ConfigError
from embedtrain.types import RaggedTokens
from tests.helpers.models import tiny_model_dir


def table(backbone: TransformerBackbone) -> torch.Tensor:
    return backbone.hf_model.embeddings.position_embeddings.weight  # type: ignore[union-attr]


@pytest.mark.parametrize("architecture", ["bert", "roberta"])  # the second keeps the first rows free
def test_new_positions_lie_on_the_line_between_the_published_ones(architecture, tmp_path):
    folder = tiny_model_dir(architecture, tmp_path)
    published = TransformerBackbone(name=folder)
    old, count = table(published).detach(), published.longest_text
    assert count is not None
    reserved = len(old) - count
    assert (reserved > 0) == (architecture == "roberta")
    longer = TransformerBackbone(name=folder, positions=4 * count)
    new = table(longer).detach()
    assert torch.equal(new[:reserved], old[:reserved])
    for i in range(count):
        after = min(i + 1, count - 1)
        for k in range(4):
            expected = (1 - k / 4) * old[reserved + i] + k / 4 * old[reserved + after]
            torch.testing.assert_close(new[reserved + 4 * i + k], expected)
    assert longer.longest_text == 4 * count
    assert longer.kernel == "ragged"  # proved against the padded model


def test_a_long_text_is_read_and_the_published_rows_stay_while_the_others_train(tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir("bert", tmp_path), positions=512)
    before = table(backbone).detach().clone()
    optimizer = torch.optim.AdamW([table(backbone)], lr=0.1, weight_decay=0.0)
    for _ in range(2):
        backbone(RaggedTokens.from_lists([[7] * 400])).square().sum().backward()
        optimizer.step()
    moved = (table(backbone).detach() != before).any(dim=1)
    assert not moved[::4].any()
    assert moved[:400].sum() == 300


def test_what_was_made_longer_is_saved_and_read_again(tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir("bert", tmp_path), positions=512).eval()
    backbone.merged_model().save_pretrained(tmp_path / "long")
    backbone.tokenizer().save_pretrained(tmp_path / "long")
    again = TransformerBackbone(name=str(tmp_path / "long")).eval()
    tokens = RaggedTokens.from_lists([[7] * 400, [9] * 3])
    with torch.no_grad():
        torch.testing.assert_close(again(tokens), backbone(tokens))


def test_positions_that_cannot_be_are_refused(tmp_path):
    bert, llama = (tiny_model_dir(name, tmp_path / name) for name in ("bert", "llama"))
    for count in (128, 200):
        with pytest.raises(
            ConfigError, match=f"positions={count}: .* has 128 positions. Expected a multiple, such as 256"
        ):
            TransformerBackbone(name=bert, positions=count)
    with pytest.raises(ConfigError, match="computes its positions"):
        TransformerBackbone(name=llama, positions=256)

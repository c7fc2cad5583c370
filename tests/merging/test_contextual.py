"""Texts read behind a context: both encoders and the layers around them are merged, the vectors of contexts are not."""

from __future__ import annotations

import torch

from embedtrain.export.load import load_encoder
from embedtrain.merging.weights import FolderWeights, write_folder
from tests.merging.folders import write_model

CONTEXTUAL = ("backbone=contextual", "backbone.num_context=4", "backbone.num_prompts=2")


def test_every_weight_of_both_encoders_is_merged_and_no_vector_of_a_context(tmp_path):
    folders = [write_model(tmp_path, name, *CONTEXTUAL, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    one, other = map(FolderWeights, folders)
    assert {name.rpartition("/")[0] for name in one} == {"", "context_encoder", "context_layers"}
    write_folder(tmp_path / "merged", one, ((name, (one[name] + other[name]) / 2) for name in one))
    merged = load_encoder(tmp_path / "merged")
    parts = [dict(load_encoder(folder).named_parameters()) for folder in folders]
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(parameter, (parts[0][name] + parts[1][name]) / 2, msg=name)
    assert merged.backbone.context is None

"""A text has the same prompt wherever it is read: in training, in an evaluation, in the exported folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedtrain.encoder import evaluating
from embedtrain.evaluation.encoding import encode
from embedtrain.export.sentence_transformers import export
from tests.helpers.runs import tiny_config, tiny_trainer


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("pool_prompt", ["true", "false"])
def test_training_evaluation_and_export_give_a_text_the_same_embedding(tmp_path, pool_prompt):
    prompts = ("prompts.query='find this: '", "prompts.document='text: '", f"prompts.pool_prompt={pool_prompt}")
    trainer = tiny_trainer(tiny_config(tmp_path, *prompts, "data.num_negatives=0"))
    encoder = trainer.step.encoder
    batch = next(iter(trainer.loader.steps(0, 1)))[0]
    source = next(iter(trainer.loader.sampler.mixture.sources.values()))
    by_row = {source[number].row: source[number] for number in range(len(source))}
    texts = {
        "query": [by_row[row].query for row in batch.rows],
        "document": [by_row[row].positives[0] for row in batch.rows],
    }
    export(encoder, tmp_path / "out", probes=[])
    exported = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    for role, tokens, encode_there in (
        ("query", batch.queries, exported.encode_query),
        ("document", batch.documents, exported.encode_document),
    ):
        with evaluating(encoder), torch.no_grad():
            trained = encoder(tokens).values
        torch.testing.assert_close(encode(encoder, texts[role], role=role, source="pairs").values, trained)
        np.testing.assert_allclose(encode_there(texts[role]), trained.numpy(), atol=1e-5)
        assert not np.allclose(exported.encode(texts[role], prompt=""), trained.numpy(), atol=1e-3)

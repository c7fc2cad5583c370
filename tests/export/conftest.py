from __future__ import annotations

import pytest

from embedtrain.export import verify
from embedtrain.export.modules.reload import with_sentence_transformers


@pytest.fixture
def in_process(monkeypatch, tmp_path):
    """The same reload without a new interpreter, which takes seconds: for the many cases."""

    def embed(folder, task, library):
        return with_sentence_transformers(str(folder), task["texts"], task["prompts"])

    monkeypatch.setattr(verify, "_embed_in_fresh_process", embed)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules_cache"))

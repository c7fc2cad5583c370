"""Token vectors, sparse vectors, heads that are ours alone, and views: out as a folder, and back."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder

from embedtrain.backbones.facts import head_facts
from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.data.prompts import Prompts
from embedtrain.errors import CheckpointError, ConfigError
from embedtrain.export.load import load_encoder
from embedtrain.export.sentence_transformers import check_exportable, export
from embedtrain.pooling.bge_m3_sparse import BgeM3SparsePooling
from embedtrain.pooling.cls import ClsPooling
from embedtrain.pooling.eos import EosPooling
from embedtrain.pooling.gaussian import GaussianPooling
from embedtrain.pooling.layer_average import LayerAveragePooling
from embedtrain.pooling.learned_tokens import LearnedTokensPooling, closing_ids
from embedtrain.pooling.mean import MeanPooling
from embedtrain.pooling.moe_router import MoeRouterPooling
from embedtrain.pooling.multi_vector import MultiVectorPooling
from embedtrain.pooling.splade import SpladePooling
from embedtrain.pooling.trainable import TrainablePooling
from embedtrain.whitening import fit_whitening
from tests.export.test_sentence_transformers import PROBES, make_adapters_matter, tiny_encoder

TEXTS = ["a cat, a dog.", "The quick (brown) fox!", "long words " * 30, "Straße 東京", "."]


def with_head(
    tmp_path, kind, architecture="bert", *, views=None, query_augmentation=None, attend_to_masks=True, **options
):
    """A tiny encoder with a head of this kind; its options are those that the kind names."""
    names = kind.__init__.__kwdefaults__ or {}
    own = {name: options.pop(name) for name in list(options) if name in names or name in ("layers", "pooling")}
    model = tiny_encoder(tmp_path, architecture, MeanPooling(), **{"append_eos": False, **options})
    model.tokenizer.query_augmentation = query_augmentation
    model.tokenizer.attend_to_masks = attend_to_masks
    torch.manual_seed(3)
    rebuilt = type(model)(
        backbone=model.backbone,
        pooling=build(model, kind, **own),
        tokenizer=model.tokenizer,
        normalize=options.get("normalize", True),
        projection_dim=options.get("projection_dim"),
        views={name: build(model, view) for name, view in (views or {}).items()},
    )
    rebuilt.tokenizer.closing_ids = closing_ids(rebuilt.pooling)
    make_adapters_matter(rebuilt)
    for parameter in [*rebuilt.pooling.parameters(), *rebuilt.views.parameters()]:
        parameter.data += 0.05 * torch.randn_like(parameter)  # as after some training: no bias is 0
    return rebuilt


def build(model, kind, **own):
    takes = [name for name in kind.__init__.__annotations__ if name != "return"] if "__init__" in vars(kind) else []
    facts = {name: x for name, x in head_facts(model.backbone, model.tokenizer.hf).items() if name in takes}
    if "lm_head" in takes:
        facts["lm_head"] = LanguageModelHead(model.backbone)
    return kind(**facts, **own)


CASES = {
    "colbert": {"kind": MultiVectorPooling, "dim": 8},
    "colbert with masks": {"kind": MultiVectorPooling, "dim": 8, "query_augmentation": 12},
    "colbert with masks that no token sees": {
        "kind": MultiVectorPooling,
        "dim": 8,
        "query_augmentation": 12,
        "attend_to_masks": False,
        "architecture": "modernbert",
    },
    "colbert of a decoder": {
        "kind": MultiVectorPooling,
        "dim": 8,
        "architecture": "qwen3",
        "attention": "bidirectional",
    },
    "bge-m3 tokens": {
        "kind": MultiVectorPooling,
        "dim": 32,
        "bias": True,
        "skip_first": True,
        "skip_punctuation": False,
        "architecture": "xlm-roberta",
    },
    "first token and punctuation": {"kind": MultiVectorPooling, "dim": 8, "skip_first": True},
    "states themselves": {"kind": MultiVectorPooling, "dim": None, "skip_punctuation": False, "normalize": False},
    "token vectors projected": {"kind": MultiVectorPooling, "dim": 8, "projection_dim": 5},
    "token vectors under lora": {"kind": MultiVectorPooling, "dim": 8, "lora": {"r": 4}},
    "token vectors with prompts": {"kind": MultiVectorPooling, "dim": 8, "prompts": Prompts(query="find: ")},
    "splade": {"kind": SpladePooling},
    "splade by sum": {"kind": SpladePooling, "aggregation": "sum"},
    "splade of distilbert under lora": {"kind": SpladePooling, "architecture": "distilbert", "lora": {"r": 4}},
    "splade of modernbert with prompts": {
        "kind": SpladePooling,
        "architecture": "modernbert",
        "prompts": Prompts(query="find: "),
    },
    "layers averaged": {"kind": LayerAveragePooling, "layers": [0, 2], "pooling": MeanPooling()},
    "a layer tapped": {"kind": LayerAveragePooling, "layers": [-2], "pooling": ClsPooling(), "projection_dim": 6},
    "a layer tapped, prompts not pooled": {
        "kind": LayerAveragePooling,
        "layers": [1],
        "pooling": MeanPooling(),
        "prompts": Prompts(query="find:", pool_prompt=False),
    },
    "the last token of a tapped layer": {
        "kind": LayerAveragePooling,
        "layers": [1],
        "pooling": EosPooling(),
        "architecture": "qwen3",
        "append_eos": True,
    },
}
SIZES = {"num_latents": 3, "num_heads": 2, "head_dim": 4, "expansion": 2}
OURS = {
    "gaussian": {"kind": GaussianPooling, "dim": 6},
    "gaussian of a decoder": {"kind": GaussianPooling, "dim": 6, "architecture": "qwen3", "append_eos": True},
    "bge-m3 words": {"kind": BgeM3SparsePooling, "prompts": Prompts(query="find:", pool_prompt=False)},
    "learned tokens": {"kind": LearnedTokensPooling, "num_query_tokens": 2, "num_document_tokens": 3, "lora": {"r": 2}},
    "routing": {"kind": MoeRouterPooling, "alpha": 0.5, "architecture": "mixtral", "append_eos": True},
    "trainable": {"kind": TrainablePooling, **SIZES, "projection_dim": 6},
    "trainable on tokens": {"kind": TrainablePooling, **SIZES, "reads": "tokens", "prompts": Prompts(query="q: ")},
}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("name", CASES)
def test_sentence_transformers_makes_the_same_and_so_does_what_is_read_back(name, tmp_path):
    encoder = with_head(tmp_path, **CASES[name])
    report = export(encoder, tmp_path / "model", probes=[*PROBES, *TEXTS])
    assert report.worst_cosine > 0.999999
    assert report.verified_with.startswith("sentence-transformers ")
    assert_read_back(encoder, load_encoder(tmp_path / "model"))


@pytest.mark.parametrize("name", OURS)
def test_what_sentence_transformers_lacks_embedtrain_reads_and_the_card_says_so(name, tmp_path, monkeypatch):
    monkeypatch.setattr("embedtrain.export.verify._embed_in_fresh_process", embed_with_embedtrain)
    encoder = with_head(tmp_path, **OURS[name])
    report = export(encoder, tmp_path / "model", probes=PROBES)
    assert report.worst_cosine > 0.999999
    assert report.verified_with.startswith("embedtrain's own reader (sentence-transformers cannot load this folder")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "cannot load this folder. embedtrain can" in card
    assert "from embedtrain.export import load_encoder" in card
    assert "library_name: embedtrain" in card
    assert "SentenceTransformer(" not in card
    assert_read_back(encoder, load_encoder(tmp_path / "model"))


def embed_with_embedtrain(folder, task, library):
    from embedtrain.export.modules.reload import with_embedtrain

    assert library == "embedtrain"
    return with_embedtrain(folder, task["texts"], task["prompts"])


def assert_read_back(encoder, loaded):
    for role in ("query", "document"):
        ours = encoder.encode_embeddings(TEXTS, role=role, views=True)
        theirs = loaded.encode_embeddings(TEXTS, role=role, views=True)
        assert (ours.offsets is None) == (theirs.offsets is None)
        assert ours.offsets is None or torch.equal(ours.offsets, theirs.offsets)
        assert ours.normalized == theirs.normalized
        assert ours.views.keys() == theirs.views.keys()
        for one, other in zip(ours.tensors(), theirs.tensors(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)  # adapters merged, or beside the weights
    assert type(loaded.pooling) is type(encoder.pooling)
    assert loaded.tokenizer.query_augmentation == encoder.tokenizer.query_augmentation
    if encoder.tokenizer.query_augmentation is not None:
        assert loaded.tokenizer.attend_to_masks == encoder.tokenizer.attend_to_masks


@pytest.mark.usefixtures("in_process")
def test_three_heads_in_one_give_the_dense_one_to_others_and_all_to_us(tmp_path):
    views = {"sparse": BgeM3SparsePooling, "multi_vector": MultiVectorPooling, "words": SpladePooling}
    encoder = with_head(tmp_path, ClsPooling, views=views)
    report = export(encoder, tmp_path / "model", probes=PROBES)
    assert any("further embeddings of each text: sparse, multi_vector" in note for note in report.notes)
    dense = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(dense, encoder.encode(TEXTS), rtol=1e-4, atol=1e-5)
    loaded = load_encoder(tmp_path / "model")
    assert_read_back(encoder, loaded)
    assert {name: type(view) for name, view in loaded.views.items()} == views
    second = export(loaded, tmp_path / "again", probes=PROBES)
    assert second.worst_cosine > 0.999999


@pytest.mark.usefixtures("in_process")
def test_whitening_is_exported_as_a_dense(tmp_path):
    encoder = tiny_encoder(tmp_path)
    fit_whitening(encoder, [f"{a} {b}" for a in TEXTS for b in TEXTS], 6)
    assert export(encoder, tmp_path / "model", probes=PROBES).worst_cosine > 0.99999
    assert (tmp_path / "model" / "2_Dense" / "config.json").exists()
    assert_read_back(encoder, load_encoder(tmp_path / "model"))


@pytest.mark.usefixtures("in_process")
def test_both_classes_score_as_they_should(tmp_path):
    tokens = with_head(tmp_path, MultiVectorPooling)
    export(tokens, tmp_path / "tokens", probes=PROBES)
    model = MultiVectorEncoder(str(tmp_path / "tokens"), device="cpu")
    query = tokens.encode_embeddings(TEXTS[:1], role="query").values
    document = tokens.encode_embeddings(TEXTS[1:2], role="document").values
    expected = (query @ document.T).amax(1).sum()
    scores = model.similarity(model.encode_query(TEXTS[:1]), model.encode_document(TEXTS[1:2]))
    torch.testing.assert_close(scores, expected.view(1, 1), rtol=1e-4, atol=1e-4)

    words = with_head(tmp_path, SpladePooling)
    export(words, tmp_path / "words", probes=PROBES)
    sparse = SparseEncoder(str(tmp_path / "words"), device="cpu")
    found = sparse.similarity(sparse.encode_query(TEXTS[:1]), sparse.encode_document(TEXTS[1:2]))
    expected = words.encode(TEXTS[:1], role="query") @ words.encode(TEXTS[1:2], role="document").T
    torch.testing.assert_close(found.to_dense(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("in_process")
def test_splade_is_stored_with_its_body_once(tmp_path):
    export(with_head(tmp_path, SpladePooling), tmp_path / "model", probes=PROBES)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    wide = [name for name, tensor in weights.items() if tensor.shape == (30522, 32)]
    assert wide == ["bert.embeddings.word_embeddings.weight"]
    assert not (tmp_path / "model" / "embedtrain").exists()


def test_a_fresh_process_loads_token_vectors(tmp_path):
    report = export(with_head(tmp_path, MultiVectorPooling), tmp_path / "model", probes=PROBES)
    assert report.worst_cosine > 0.99999


def spoil(folder):
    path = folder / "3_MultiVectorMask" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"skiplist_words": []}))


def test_a_folder_that_gives_more_vectors_is_refused(tmp_path, monkeypatch):
    from embedtrain.export.modules.reload import with_sentence_transformers

    def embed(folder, task, library):
        spoil(folder)
        return with_sentence_transformers(str(folder), task["texts"], task["prompts"])

    monkeypatch.setattr("embedtrain.export.verify._embed_in_fresh_process", embed)
    with pytest.raises(CheckpointError, match=r"gives the document 'open\(path\).read\(\)' 10 vectors, the encoder 5"):
        export(with_head(tmp_path, MultiVectorPooling), tmp_path / "model", probes=PROBES)


REFUSED = {
    "pool_prompt=false cannot be exported with several vectors": {
        "kind": MultiVectorPooling,
        "prompts": Prompts(query="find:", pool_prompt=False),
    },
    "skip_first=true cannot be exported: texts of this tokenizer do not begin": {
        "kind": MultiVectorPooling,
        "skip_first": True,
        "architecture": "qwen3",
    },
    "splade on a Qwen3ForCausalLM cannot be exported": {"kind": SpladePooling, "architecture": "qwen3"},
    "pool_prompt=false cannot be exported with splade": {
        "kind": SpladePooling,
        "prompts": Prompts(query="find:", pool_prompt=False),
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_no_folder_can_say_is_refused_at_the_start(message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        check_exportable(with_head(tmp_path, **REFUSED[message]))


def test_a_view_of_ones_own_is_refused(tmp_path):
    class Median(MeanPooling):
        pass

    with pytest.raises(ConfigError, match=r"encoder.views.mine: Median cannot be exported"):
        check_exportable(with_head(tmp_path, MeanPooling, views={"mine": Median}))


def test_a_head_that_is_not_known_is_never_built(tmp_path, monkeypatch):
    monkeypatch.setattr("embedtrain.export.verify._embed_in_fresh_process", embed_with_embedtrain)
    export(with_head(tmp_path, GaussianPooling, dim=4), tmp_path / "model", probes=PROBES)
    file = tmp_path / "model" / "embedtrain" / "heads.json"
    file.write_text(file.read_text().replace("GaussianPooling", "os.system"))
    with pytest.raises(CheckpointError, match=r"os\.system is no head of this version"):
        load_encoder(tmp_path / "model")


def test_a_folder_without_its_own_files_is_incomplete(tmp_path, monkeypatch):
    monkeypatch.setattr("embedtrain.export.verify._embed_in_fresh_process", embed_with_embedtrain)
    export(with_head(tmp_path, GaussianPooling, dim=4), tmp_path / "model", probes=PROBES)
    (tmp_path / "model" / "embedtrain" / "heads.json").unlink()
    with pytest.raises(CheckpointError, match=r"GaussianPooling: its files in embedtrain/ are missing"):
        load_encoder(tmp_path / "model")

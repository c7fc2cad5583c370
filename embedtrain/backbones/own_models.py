"""Models that transformers does not have, under the names by which it finds a model: importing this file registers them."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from embedtrain.backbones.alibi_bert import AlibiBertConfig, AlibiBertForMaskedLM, AlibiBertModel

OWN_MODELS = (AlibiBertConfig.model_type,)

AutoConfig.register(AlibiBertConfig.model_type, AlibiBertConfig)
AutoModel.register(AlibiBertConfig, AlibiBertModel)
AutoModelForMaskedLM.register(AlibiBertConfig, AlibiBertForMaskedLM)

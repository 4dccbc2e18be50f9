"""Transformers, with their own configurations and batches."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.architecture import Architecture, tokens

BODY = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
TEXT = {**BODY, "vocab_size": 20, "max_position_embeddings": 12}
CAUSAL = {**TEXT, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def logits(model: nn.Module, batch: Any) -> Tensor:
    return model(**batch).logits


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    return model(**batch).loss


Transformer = partial(Architecture, "transformers", output=logits, loss=own_loss)


def classified(module: ModuleType, generator: torch.Generator) -> Any:
    """Texts of which two are shorter, and their classes."""
    index, seen = tokens(generator, 4, 6), torch.ones(4, 6, dtype=torch.long)
    index[2:, 4:] = seen[2:, 4:] = 0
    labels = torch.randint(3, (4,), generator=generator)
    return module.BatchEncoding({"input_ids": index, "attention_mask": seen, "labels": labels})


def continued(module: ModuleType, generator: torch.Generator) -> Any:
    """Texts to be continued; what is padding counts nothing."""
    index, seen = tokens(generator, 4, 6), torch.ones(4, 6, dtype=torch.long)
    index[2:, 4:] = seen[2:, 4:] = 0
    return module.BatchEncoding(
        {"input_ids": index, "attention_mask": seen, "labels": index.masked_fill(seen == 0, -100)}
    )


def translated(module: ModuleType, generator: torch.Generator) -> Any:
    return module.BatchEncoding({"input_ids": tokens(generator, 4, 6), "labels": tokens(generator, 4, 5)})


def pictures(module: ModuleType, generator: torch.Generator) -> Any:
    labels = torch.randint(3, (4,), generator=generator)
    return {"pixel_values": torch.randn(4, 3, 8, 8, generator=generator), "labels": labels}


def spoken(module: ModuleType, generator: torch.Generator) -> Any:
    labels = torch.randint(3, (4,), generator=generator)
    return {"input_values": torch.randn(4, 80, generator=generator), "labels": labels}


def transcribed(module: ModuleType, generator: torch.Generator) -> Any:
    return {"input_features": torch.randn(4, 4, 12, generator=generator), "labels": tokens(generator, 4, 5)}


def bert(m: ModuleType) -> nn.Module:
    return m.BertForSequenceClassification(m.BertConfig(**TEXT, num_labels=3))


def distilbert(m: ModuleType) -> nn.Module:
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "vocab_size": 20, "max_position_embeddings": 12}
    return m.DistilBertForSequenceClassification(m.DistilBertConfig(**sizes, num_labels=3))


def gpt2(m: ModuleType) -> nn.Module:
    sizes = {"vocab_size": 20, "n_positions": 12, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return m.GPT2LMHeadModel(m.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


def llama(m: ModuleType) -> nn.Module:
    return m.LlamaForCausalLM(m.LlamaConfig(**CAUSAL))


def mixtral(m: ModuleType) -> nn.Module:
    return m.MixtralForCausalLM(m.MixtralConfig(**CAUSAL, num_local_experts=4, num_experts_per_tok=2))


def qwen(m: ModuleType) -> nn.Module:
    experts = {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    return m.Qwen3MoeForCausalLM(m.Qwen3MoeConfig(**CAUSAL, **experts))


def vit(m: ModuleType) -> nn.Module:
    return m.ViTForImageClassification(m.ViTConfig(**BODY, image_size=8, patch_size=4, num_labels=3))


def t5(m: ModuleType) -> nn.Module:
    sizes = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return m.T5ForConditionalGeneration(m.T5Config(**sizes, decoder_start_token_id=0))


def whisper(m: ModuleType) -> nn.Module:
    sizes = {"vocab_size": 20, "d_model": 16, "num_mel_bins": 4, "max_source_positions": 6, "max_target_positions": 8}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 1, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 24}
    return m.WhisperForConditionalGeneration(m.WhisperConfig(**sizes, **MARKS))


def wav2vec2(m: ModuleType) -> nn.Module:
    convolutions = {"num_feat_extract_layers": 2, "conv_dim": (8, 8), "conv_stride": (4, 2), "conv_kernel": (8, 3)}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    noise = {"apply_spec_augment": False, "layerdrop": 0.0}
    others = {**convolutions, **positions, **noise, "classifier_proj_size": 8, "num_labels": 3}
    return m.Wav2Vec2ForSequenceClassification(m.Wav2Vec2Config(**BODY, **others))


ROWS = {
    "BERT": Transformer(bert, classified),
    "DistilBERT": Transformer(distilbert, classified),
    "GPT-2": Transformer(gpt2, continued),
    "Llama": Transformer(llama, continued),
    "Mixtral": Transformer(mixtral, continued),
    "Qwen3, experts": Transformer(qwen, continued),
    "T5": Transformer(t5, translated),
    "ViT": Transformer(vit, pictures),
    "Whisper": Transformer(whisper, transcribed),
    "Wav2Vec2": Transformer(wav2vec2, spoken),
}

"""Tiny real models for tests: a two-layer Llama with a word-level or byte-level tokenizer, random weights."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cuesmith.modules.policy import LocalPolicy

WORDS = ("red", "green", "blue", "what", "is", "the", "colour", "of", "sky", "sea", "say", "it")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of `WORDS` without a padding token and without a chat template."""
    vocabulary = {word: i for i, word in enumerate(("<unk>", "<eos>", *WORDS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(backend, eos_token="<eos>")


def byte_tokenizer(template: str | None = CHATML, *, begins: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with ChatML's control tokens.

    Args:
        template: Its chat template.
        begins: Whether it puts a beginning token before every text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    backend.add_special_tokens(special)
    if begins:
        end = backend.token_to_id("<|endoftext|>")
        backend.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)]
        )
    names: dict[str, Any] = {"bos_token": "<|endoftext|>"} if begins else {}
    tokenizer = _fast(backend, eos_token="<|im_end|>", **names)
    tokenizer.chat_template = template
    return tokenizer


def llama(vocabulary: int, *, seed: int = 0, scale: float = 0.3, positions: int = 512, **options: Any) -> Any:
    """A two-layer Llama whose weights are spread enough for peaked predictions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=positions,
        initializer_range=scale,
        **options,
    )
    model: Any = LlamaForCausalLM(config)
    return model.eval()


def word_policy(seed: int = 0, **options: Any) -> LocalPolicy:
    """A policy over `WORDS`."""
    tokenizer = word_tokenizer()
    return LocalPolicy(llama(len(tokenizer), seed=seed, **options), tokenizer)


def byte_policy(seed: int = 0, *, instructions: str | None = None, **options: Any) -> LocalPolicy:
    """A policy over bytes, with a chat template."""
    tokenizer = byte_tokenizer()
    return LocalPolicy(llama(len(tokenizer), seed=seed, **options), tokenizer, instructions=instructions)


def _fast(backend: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    kind: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = kind(tokenizer_object=backend, **options)
    return tokenizer

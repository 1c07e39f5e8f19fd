"""A tiny language model made from scratch, for trying out a prompter where no model can be downloaded. Source: ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cuesmith.modules.policy import LocalPolicy, require_train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


def tiny_policy(words: Iterable[str], *, seed: int = 0, hidden: int = 64, layers: int = 2) -> LocalPolicy:
    """Return an untrained Llama whose tokens are words between white space.

    It knows nothing before a warm start.

    Args:
        words: Its vocabulary; any other word is one unknown token.
        seed: Of its random weights.
        hidden: Width.
        layers: Depth.

    Raises:
        ImportError: Without `cuesmith[train]`.
    """
    require_train()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(words)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    torch.random.set_rng_state(state)
    return LocalPolicy(model, tokenizer)


def _tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "\n", *sorted(set(words) - {*SPECIAL, "\n"})])}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    # A line end is a word too: it ends the input, and the rewrite begins there.
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
    )

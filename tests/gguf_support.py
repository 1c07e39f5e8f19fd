"""A language model of some thousand random weights in a .gguf file: what it says is noise, all else is real."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}|{{ message.role }}|{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    '<do>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</do>'
    "{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}|assistant|{% endif %}"
)


def write_model(path: Path, *, context: int = 4096, width: int = 64, seed: int = 0, says: str = "") -> Path:
    """Write a model of llama's architecture whose tokens are bytes, and which never ends a reply by itself.

    Args:
        path: Where to.
        context: The model's own context.
        width: More is slower: a token takes time as its square.
        seed: Of the weights.
        says: Where a byte is followed by another here, the model lets that follow too; the weights are not random then.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(width // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)
    weights = _random(len(tokens), width, seed)
    if says:
        weights = _following(len(tokens), width, [3 + byte for byte in says.encode()])
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"):
        writer.add_tensor(name, np.ones(width, dtype=np.float32))
    for name, weight in weights.items():
        writer.add_tensor(name, weight.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _random(tokens: int, width: int, seed: int) -> dict[str, NDArray[Any]]:
    shapes = {
        "token_embd.weight": (tokens, width),
        "output.weight": (tokens, width),
        "blk.0.attn_q.weight": (width, width),
        "blk.0.attn_k.weight": (width, width),
        "blk.0.attn_v.weight": (width, width),
        "blk.0.attn_output.weight": (width, width),
        "blk.0.ffn_gate.weight": (2 * width, width),
        "blk.0.ffn_up.weight": (2 * width, width),
        "blk.0.ffn_down.weight": (width, 2 * width),
    }
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()}
    weights["output.weight"][2] = 0  # </s>
    return weights


def _following(tokens: int, width: int, says: list[int]) -> dict[str, NDArray[Any]]:
    """Return weights of a model that looks at the last token alone."""
    assert width >= tokens
    weights = {name: np.zeros_like(weight) for name, weight in _random(tokens, width, 0).items()}
    weights["token_embd.weight"][:] = np.eye(tokens, width)
    for last, following in pairwise(says):
        weights["output.weight"][following, last] = 1
    return weights

"""A local causal language model that writes rewrites: rho(x'|x) of Align-Pro (2501.03486 section 3). Source: ours.

Draws are numbered, not streamed: the random numbers of a draw are a function of (seed, text, its occurrence among
equal texts, number of the draw), made by numpy. So they are the same in every process, thread and batch, on every
device, and leave torch's own generators alone. What is left of the batch is rounding: two tokens whose
probabilities differ by less than that (1e-6 in float32, 1e-2 in bfloat16) may be swapped.

A rewrite ends with the tokenizer's end token, which is part of its probability. One that has `max_new_tokens` tokens
without it was cut off there; its probability is that of its tokens, for nothing else was drawn.

torch and transformers are imported where they are needed.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cuesmith.modules.decoding import GREEDY, POLICY, Decoding, Rewrite
from cuesmith.modules.together import Together
from cuesmith.signatures.rewriting import REWRITE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LocalPolicy", "plain_text", "require_train"]

_NEEDED = ("torch", "transformers", "trl")


def require_train() -> None:
    """Check that the packages of the extra `train` are there.

    Raises:
        ImportError: If one is missing; the message says what to install.
    """
    if any(find_spec(name) is None for name in _NEEDED):
        raise ImportError(
            "training a prompter needs torch, transformers and trl: pip install 'cuesmith[train]'"
        ) from None


def plain_text(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return `text` such that the tokenizer finds none of its control tokens in it.

    A space is put behind the first character of each ("<|im_end|>" becomes "< |im_end|>"). Done on the text, not by
    an option of the tokenizer, so that whoever tokenises the prompt (TRL too) gets the same harmless tokens.

    Args:
        tokenizer: Whose control tokens: its special tokens, and added ones that look like tags.
        text: Untrusted text.
    """
    for token in _control_tokens(tokenizer):
        if token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}" if len(token) > 1 else " ")
    return text


def _from_gguf(file: Path, dtype: str | None) -> tuple[Any, Any]:
    """Load model and tokenizer from a .gguf file; weights left quantised could neither be trained nor saved."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    plain: Any = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=dtype or "float32", quantization_config=plain)
    return model, AutoTokenizer.from_pretrained(**place)


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    tags = [token for token in tokenizer.get_added_vocab() if token.startswith("<") and token.endswith(">")]
    special = [str(token) for token in tokenizer.all_special_tokens]
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({token for token in (*tags, *special, *added) if token.strip()}, key=lambda t: (-len(t), t))


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing on the terminal: library code never prints."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class _Row:
    """One draw to be made: the prompt's tokens, and the seed of its random numbers."""

    prompt: list[int]
    seed: int


@dataclass(frozen=True)
class _Job:
    """A caller's request for one rewrite."""

    text: str
    decoding: Decoding
    seed: int


class LocalPolicy:
    """A local causal language model that writes rewrites.

    The tokenizer's end token becomes the model's, in its generation config as well; a missing padding token becomes
    the end token; padding is on the left. Methods are thread-safe; the model is in eval mode while they run and as it
    was afterwards. `copy.deepcopy` gives the policy itself, so that a program's copies share one model; `copy` makes
    an independent one. Pickling pickles the model.

    Attributes:
        model: The transformers model, maybe wrapped by peft (LoRA).
        tokenizer: Its tokenizer.
        instructions: The system message that asks for a rewrite.
    """

    BATCH_TOKENS = 32_768
    """Most positions, padding included, that one batch holds."""

    BATCH_LOGITS = 2**26
    """Most logits that are held at once (256 MiB in float32)."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        instructions: str | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: A causal language model of transformers. Its weights are not touched.
            tokenizer: Its tokenizer.
            instructions: The system message for a tokenizer with a chat template (others get the bare text); None
                takes Cuesmith's request for a rewrite, "" has none.

        Raises:
            ImportError: Without the extra `train`.
            ValueError: If neither the tokenizer nor the model knows an end token.
        """
        require_train()
        self.model: Final = model
        self.tokenizer: Final = tokenizer
        self.instructions: Final = REWRITE if instructions is None else instructions
        self._end = _set_special_tokens(model, tokenizer)
        self._begins, self._appends_end = self._habits()
        self._takes_system = self._try_system()
        self._lock = threading.RLock()
        self._together: Together[_Job, str] = Together(self._rewrite_all)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        instructions: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> LocalPolicy:
        """Load a model of transformers, or what `save_pretrained` wrote.

        Args:
            path: A folder, a name on the Hugging Face hub, or a .gguf file, whose weights are dequantised (in float32,
                if `dtype` does not say otherwise).
            instructions: As for the constructor; None takes the saved ones, where there are any.
            device: As torch names it; None takes the GPU if there is one.
            dtype: As torch names it ("bfloat16"); None takes that of the weights.

        Raises:
            ImportError: Without the extra `train`.
            OSError: If there is no such model.
        """
        require_train()
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if instructions is None and (Path(path) / "policy.json").is_file():
            instructions = json.loads((Path(path) / "policy.json").read_text("utf-8"))["instructions"]
        if Path(path).suffix == ".gguf":
            loaded, tokenizer = _from_gguf(Path(path), dtype)
        else:
            loaded = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or "auto")
            tokenizer = AutoTokenizer.from_pretrained(path)
        model = loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model.eval(), tokenizer, instructions=instructions)

    def save_pretrained(self, directory: Path) -> None:
        """Write the model (safetensors), its tokenizer and `policy.json`; `from_pretrained` reads them.

        LoRA weights are written merged into the model's, so that loading needs nothing else. That makes a copy of the
        model for the moment, and the merged weights are the same but for rounding.

        Args:
            directory: Made if missing; other files in it stay.
        """
        directory.mkdir(parents=True, exist_ok=True)
        with self._lock:
            model: Any = self.model
            if hasattr(model, "merge_and_unload"):
                model = copy.deepcopy(model).merge_and_unload()
            with _without_progress_bars():
                model.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)
        facts = {"format": 1, "instructions": self.instructions}
        (directory / "policy.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")

    def prompt(self, text: str) -> str:
        """Return what the model is given for an input.

        The chat template with the instructions as system message and the text as user message; where a template
        refuses or drops system messages, both in the user message. Without a template: the text and a newline.
        Control tokens in the text are broken up (`plain_text`). The string can be tokenised as it is: a beginning
        token that the tokenizer adds by itself is not in it.

        Args:
            text: The input x, untrusted.
        """
        text = plain_text(self.tokenizer, text)
        if not self.tokenizer.chat_template:
            return text + "\n"
        if self._takes_system:
            return self._render(self.instructions, text)
        return self._render("", f"{self.instructions}\n\n{text}" if self.instructions else text)

    def _render(self, system: str, user: str) -> str:
        messages = [{"role": "user", "content": user}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        # Templates that have no "thinking" ignore the switch.
        rendered = str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        )
        return rendered.removeprefix(str(self.tokenizer.bos_token)) if self._begins else rendered

    def _try_system(self) -> bool:
        if not self.tokenizer.chat_template or not self.instructions:
            return False
        from jinja2 import TemplateError

        try:
            return self.instructions.strip() in self._render(self.instructions, "text")
        except TemplateError:  # some templates know no system role
            return False

    def _habits(self) -> tuple[bool, bool]:
        """Whether the tokenizer puts a beginning token before a text and an end token behind it."""
        ids = self.tokenizer("x")["input_ids"]
        begins = self.tokenizer.bos_token_id is not None and ids[:1] == [self.tokenizer.bos_token_id]
        return begins, len(ids) > 1 and ids[-1] == self._end

    def prompt_ids(self, text: str) -> list[int]:
        """Return the tokens that the model is given for an input; never none."""
        ids = list(self.tokenizer(self.prompt(text))["input_ids"])
        if self._appends_end:
            ids.pop()
        return ids or [self._end]

    def sample(
        self, texts: Sequence[str], n: int, decoding: Decoding = POLICY, *, seed: int = 0
    ) -> list[list[Rewrite]]:
        """Draw rewrites, in batches of similar length.

        Args:
            texts: The inputs x. Equal texts get different draws.
            n: Draws for each.
            decoding: How tokens are chosen. At temperature 0 all draws of a text are equal.
            seed: Same seed, same draws of a text, whatever the other texts are.

        Returns:
            For each text its n rewrites, unstripped. `logprob` is at temperature 1 over the whole vocabulary, whatever
            the decoding; see the module about ends.

        Raises:
            ValueError: If n is below 1, or a text fills the model's context.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        different = 1 if decoding.temperature == 0 else n
        rows, seen = [], Counter[str]()
        for text in texts:
            prompt = self.prompt_ids(text)
            rows += [_Row(prompt, draw_seed(seed, text, seen[text], draw)) for draw in range(different)]
            seen[text] += 1
        made = self._generate(rows, decoding)
        groups = [made[i : i + different] for i in range(0, len(made), different)]
        return [group * (n // different) for group in groups]

    def rewrite(self, text: str, decoding: Decoding = GREEDY, *, seed: int = 0) -> str:
        """Return one rewrite, stripped; calls from several threads are decoded together.

        Args:
            text: The input x.
            decoding: How tokens are chosen.
            seed: Without effect at temperature 0. The result is that of `sample([text], 1, decoding, seed=seed)`.

        Raises:
            ValueError: If the text fills the model's context.
        """
        return self._together(_Job(text, decoding, seed))

    def _rewrite_all(self, jobs: Sequence[_Job]) -> list[str]:
        results: dict[_Job, str] = {}
        for decoding in dict.fromkeys(job.decoding for job in jobs):
            same = list(dict.fromkeys(job for job in jobs if job.decoding == decoding))
            rows = [_Row(self.prompt_ids(job.text), draw_seed(job.seed, job.text, 0, 0)) for job in same]
            made = self._generate(rows, decoding)
            results |= {job: rewrite.text.strip() for job, rewrite in zip(same, made, strict=True)}
        return [results[job] for job in jobs]

    def logprobs(
        self, texts: Sequence[str], rewrites: Sequence[str], *, max_new_tokens: int | None = None
    ) -> list[float]:
        """Return log rho(x'|x) of given rewrites in nats, teacher forced, at temperature 1.

        It is the probability of the tokenizer's own spelling of the rewrite and its end token. For what `sample` drew
        it equals `Rewrite.logprob` where the drawn tokens were that spelling, as they mostly are.

        Args:
            texts: The inputs x.
            rewrites: The rewrite x' for each.
            max_new_tokens: The limit the rewrites were drawn with: one of that many tokens was cut off, and is scored
                without an end token, as `sample` does. None scores every rewrite as a complete one.

        Raises:
            ValueError: If the lengths differ, or a text fills the model's context.
        """
        if len(texts) != len(rewrites):
            raise ValueError(f"{len(texts)} texts, but {len(rewrites)} rewrites")
        pairs = [self._pair(text, rewrite, max_new_tokens) for text, rewrite in zip(texts, rewrites, strict=True)]
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        results = [0.0] * len(pairs)
        with self._evaluating():
            for chunk in self._chunks(order, [len(p) + len(t) for p, t in pairs], self._vocabulary):
                for i, value in zip(chunk, self._score([pairs[i] for i in chunk]), strict=True):
                    results[i] = value
        return results

    def _pair(self, text: str, rewrite: str, max_new_tokens: int | None) -> tuple[list[int], list[int]]:
        prompt = self.prompt_ids(text)
        plain = plain_text(self.tokenizer, rewrite)
        ids = list(self.tokenizer(plain, add_special_tokens=False)["input_ids"])
        limit = self._limit(prompt, max_new_tokens or len(ids) + 1)
        return prompt, ids[:limit] if len(ids) >= limit else [*ids, self._end]

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        import torch

        # Padding on the right needs no positions: a causal model does not see it.
        width = max(len(prompt) + len(target) for prompt, target in pairs) - 1
        first = min(len(prompt) for prompt, _ in pairs) - 1
        ids = torch.full((len(pairs), width), self._end)
        mask = torch.zeros_like(ids)
        for row, (prompt, target) in enumerate(pairs):
            length = len(prompt) + len(target) - 1
            ids[row, :length] = torch.tensor([*prompt, *target][:length])
            mask[row, :length] = 1
        model: Any = self._base
        kept = {"logits_to_keep": width - first} if _accepts(model, "logits_to_keep") else {}
        logits = model(
            input_ids=ids.to(self._device), attention_mask=mask.to(self._device), use_cache=False, **kept
        ).logits[:, first - width :]
        return [
            _log_likelihood(logits[row, len(prompt) - 1 - first :], target)
            for row, (prompt, target) in enumerate(pairs)
        ]

    def _generate(self, rows: Sequence[_Row], decoding: Decoding) -> list[Rewrite]:
        results: list[Rewrite | None] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
        lengths = [len(row.prompt) + self._limit(row.prompt, decoding.max_new_tokens) for row in rows]
        with self._evaluating(), self._neutral():
            for chunk in self._chunks(order, lengths, self._vocabulary / decoding.max_new_tokens):
                for i, rewrite in zip(chunk, self._decode([rows[i] for i in chunk], decoding), strict=True):
                    results[i] = rewrite
        return [rewrite for rewrite in results if rewrite is not None]

    def _decode(self, rows: Sequence[_Row], decoding: Decoding) -> list[Rewrite]:
        import torch

        width = max(len(row.prompt) for row in rows)
        ids = torch.tensor([[self._end] * (width - len(row.prompt)) + row.prompt for row in rows])
        mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
        limits = [self._limit(row.prompt, decoding.max_new_tokens) for row in rows]
        draws = _Draws(decoding, rows, limits, self._end, self._device)
        model: Any = self._base
        model.generate(
            ids.to(self._device),
            attention_mask=mask.to(self._device),
            max_new_tokens=max(limits),
            do_sample=False,
            logits_processor=[draws],
        )
        return [self._read(*found) for found in draws.results()]

    def _read(self, ids: list[int], logprob: float) -> Rewrite:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Rewrite(str(text), logprob)

    def _chunks(self, order: Sequence[int], lengths: Sequence[int], logits_each: float) -> Iterator[list[int]]:
        """Yield the rows in batches within `BATCH_TOKENS` and `BATCH_LOGITS`, one row at least.

        `logits_each`: logits that are held for each position of a row.
        """
        chunk: list[int] = []
        most = min(self.BATCH_TOKENS, self.BATCH_LOGITS / logits_each)
        for i in order:
            longest = max(lengths[j] for j in (*chunk, i)) if chunk else lengths[i]
            if chunk and longest * (len(chunk) + 1) > most:
                yield chunk
                chunk = []
            chunk.append(i)
        if chunk:
            yield chunk

    def _limit(self, prompt: Sequence[int], wanted: int) -> int:
        """How many tokens can follow a prompt: what is wanted, within the model's context."""
        room = _config(self._base).get("max_position_embeddings")
        left = math.inf if room is None else room - len(prompt)
        if left < 1:
            raise ValueError(f"the text takes {len(prompt)} tokens with its prompt; the model's context has {room}")
        return int(min(wanted, left))

    @property
    def fingerprint(self) -> str:
        """A hash (16 hex digits) of weights, tokenizer and instructions, the same in every process.

        It is made anew each time, for weights change in training: about a second for each GB.
        """
        hasher = hashlib.blake2b(digest_size=8)
        with self._lock:
            for name, tensor in sorted(self._base.state_dict().items()):
                hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                hasher.update(_bytes(tensor))
            facts = [_tokenizer_facts(self.tokenizer), self.tokenizer.chat_template, self._end, self.instructions]
            hasher.update(json.dumps(facts, sort_keys=True).encode())
        return hasher.hexdigest()

    def copy(self) -> LocalPolicy:
        """Return an independent copy of weights and tokenizer."""
        with self._lock:
            return LocalPolicy(copy.deepcopy(self.model), copy.deepcopy(self.tokenizer), instructions=self.instructions)

    def __deepcopy__(self, memo: object) -> LocalPolicy:
        """Return itself: a program's copies share the model."""
        return self

    def __getstate__(self) -> dict[str, object]:
        """Return picklable state (locks are not)."""
        return {"model": self.model, "tokenizer": self.tokenizer, "instructions": self.instructions}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from `__getstate__`."""
        LocalPolicy.__init__(self, state["model"], state["tokenizer"], instructions=state["instructions"])

    @property
    def _base(self) -> PreTrainedModel:
        """The transformers model inside a peft wrapper, adapters in place."""
        inner = getattr(self.model, "get_base_model", None)
        model: PreTrainedModel = inner() if callable(inner) else self.model
        return model

    @property
    def _device(self) -> Any:
        embeddings: Any = self._base.get_input_embeddings()
        return embeddings.weight.device

    @property
    def _vocabulary(self) -> int:
        embeddings: Any = self._base.get_input_embeddings()
        return int(embeddings.weight.shape[0])

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Hold the model, in eval mode and without gradients."""
        import torch

        with self._lock, torch.no_grad():
            model: Any = self.model
            training = [module for module in model.modules() if module.training]
            model.eval()
            try:
                yield
            finally:
                for module in training:  # one by one: parts of a model in train mode may have been in eval mode
                    module.training = True

    @contextmanager
    def _neutral(self) -> Iterator[None]:
        """Take the model's own generation settings away.

        Many models come with a repetition penalty and the like, which `generate` applies to whatever it is not told
        otherwise: the draws would not be the policy's.
        """
        import transformers

        model: Any = self._base
        kind: Any = transformers.GenerationConfig
        own = model.generation_config
        model.generation_config = kind(eos_token_id=self._end, pad_token_id=self._end)
        try:
            yield
        finally:
            model.generation_config = own


class _Draws:
    """Chooses the tokens: a logits processor that leaves one token possible, whose argmax `generate` takes.

    So any architecture that transformers can decode works, while the random numbers are ours.
    """

    def __init__(self, decoding: Decoding, rows: Sequence[_Row], limits: Sequence[int], end: int, device: Any) -> None:
        import torch

        self._decoding, self._limits, self._end = decoding, limits, end
        self._tokens: list[Tensor] = []
        self._logprobs: list[Tensor] = []
        self._allowed = torch.tensor(list(limits), device=device)
        kind = torch.float32 if str(device).startswith("mps") else torch.float64
        if decoding.temperature > 0:
            numbers = np.stack([np.random.Generator(np.random.Philox(row.seed)).random(max(limits)) for row in rows])
            self._numbers = torch.tensor(numbers, dtype=kind, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Choose each row's next token from the logits (rows, vocabulary)."""
        import torch

        step = len(self._tokens)
        if self._decoding.temperature == 0:
            token = scores.argmax(-1)
        else:
            token = _choose(scores, self._decoding, self._numbers[:, min(step, self._numbers.shape[1] - 1)])
        token = torch.where(self._allowed <= step, self._end, token)
        self._tokens.append(token)
        self._logprobs.append(torch.log_softmax(scores, -1).gather(1, token[:, None])[:, 0])
        return torch.full_like(scores, -math.inf).scatter_(1, token[:, None], 0.0)

    def results(self) -> Iterator[tuple[list[int], float]]:
        """Yield each row's tokens, without the end token, and their log-probability with it."""
        import torch

        tokens = torch.stack(self._tokens, 1).tolist()
        logprobs = torch.stack(self._logprobs, 1).double().cpu()
        for row, limit in enumerate(self._limits):
            ids = tokens[row][:limit]
            length = ids.index(self._end) if self._end in ids else len(ids)
            yield ids[:length], float(logprobs[row, : min(length + 1, len(ids))].sum())


def _choose(scores: Tensor, decoding: Decoding, numbers: Tensor) -> Tensor:
    """Draw a token for each row by its number in [0, 1), through the distribution function."""
    import torch

    probabilities = torch.softmax(_filtered(scores / decoding.temperature, decoding), -1).to(numbers.dtype)
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1]
    target = torch.minimum(numbers * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]


def _filtered(scores: Tensor, decoding: Decoding) -> Tensor:
    """Rule out what is beyond `top_k` and `top_p`."""
    import torch

    if 0 < decoding.top_k < scores.shape[-1]:
        least = scores.topk(decoding.top_k, -1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -math.inf)
    if decoding.top_p < 1:
        ordered, places = scores.sort(-1, descending=True)
        shares = torch.softmax(ordered, -1)
        beyond = shares.cumsum(-1) - shares >= decoding.top_p  # what stands before it is enough
        scores = scores.masked_fill(torch.zeros_like(beyond).scatter(1, places, beyond), -math.inf)
    return scores


def _log_likelihood(logits: Tensor, target: list[int]) -> float:
    import torch

    found = torch.log_softmax(logits[: len(target)].float(), -1)
    chosen = found.gather(1, torch.tensor(target, device=found.device)[:, None])
    return float(chosen.double().sum())


def draw_seed(seed: int, text: str, occurrence: int, draw: int) -> int:
    """The seed (64 bits) of a draw's random numbers."""
    content = repr((seed, text, occurrence, draw)).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _set_special_tokens(model: Any, tokenizer: Any) -> int:
    """Make tokenizer and model agree on end, padding and side; returns the end token."""
    end = tokenizer.eos_token_id
    if end is None:
        configured = getattr(model.generation_config, "eos_token_id", None) or _config(model).get("eos_token_id")
        end = configured[0] if isinstance(configured, list) and configured else configured
        if end is None:
            raise ValueError("neither the tokenizer nor the model has an end-of-sequence token")
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    for config in (model.config, model.generation_config):
        config.eos_token_id = end
        config.pad_token_id = tokenizer.pad_token_id
    return int(end)


def _config(model: Any) -> dict[str, Any]:
    return dict(vars(model.config.get_text_config()))


def _accepts(model: Any, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _bytes(tensor: Tensor) -> Any:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _tokenizer_facts(tokenizer: Any) -> object:
    """What the tokenizer does, without its settings for padding and truncation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return dict(sorted(tokenizer.get_vocab().items()))
    facts = json.loads(backend.to_str())
    return {name: value for name, value in facts.items() if name not in ("padding", "truncation")}

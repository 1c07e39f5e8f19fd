"""Rewards r(x, y) beyond exact metrics: a reward model, and a pairwise judge. Source: 2501.03486, evaluation; ours.

torch and transformers are imported where they are needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dspy

from cuesmith.modules.policy import plain_text, require_train
from cuesmith.modules.together import Together
from cuesmith.signatures.judging import CompareResponses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["PairwiseJudge", "RewardModel"]

_SWAPPED = {"first": "second", "second": "first", "tie": "tie"}


class RewardModel:
    """A sequence classifier with one output: its logit is the reward of a response to a prompt.

    Thread-safe: metric calls from several threads are computed together.

    Attributes:
        model: The classifier, put in eval mode.
        tokenizer: Its tokenizer.
    """

    BATCH_TOKENS = 16_384
    """Most positions, padding included, that one batch holds."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap a classifier. A missing padding token becomes the end token, in the model's config as well.

        Args:
            model: A sequence classifier of transformers.
            tokenizer: Its tokenizer.

        Raises:
            ImportError: Without the extra `train`.
            ValueError: If the classifier has not exactly one output.
        """
        require_train()
        classifier: Any = model
        if classifier.config.num_labels != 1:
            raise ValueError(f"a reward model has 1 output, this classifier has {classifier.config.num_labels}")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        classifier.config.pad_token_id = tokenizer.pad_token_id  # by it the last token is found, which is scored
        classifier.eval()
        self.model: Final = model
        self.tokenizer: Final = tokenizer
        self._lock = threading.Lock()
        self._together: Together[tuple[str, str], float] = Together(self._rewards)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | None = None, dtype: str | None = None) -> RewardModel:
        """Load a classifier.

        Args:
            path: A folder or a name on the Hugging Face hub.
            device: As torch names it; None takes the GPU if there is one.
            dtype: As torch names it; None takes that of the weights.

        Raises:
            ImportError: Without the extra `train`.
            OSError: If there is no such model.
            ValueError: If it has not exactly one output.
        """
        require_train()
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        loaded: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype or "auto")
        model = loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, AutoTokenizer.from_pretrained(path))

    def save_pretrained(self, directory: Path) -> None:
        """Write model and tokenizer; `from_pretrained` reads them."""
        classifier: Any = self.model
        classifier.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    def text(self, prompt: str, response: str) -> str:
        """Return what the model is given: the chat template's rendering, else prompt, newline and response.

        Control tokens in either are broken up. A reward model that is trained for use here is trained on this.
        """
        prompt, response = plain_text(self.tokenizer, prompt), plain_text(self.tokenizer, response)
        if not self.tokenizer.chat_template:
            return f"{prompt}\n{response}"
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False))

    def token_ids(self, prompt: str, response: str) -> list[int]:
        """Return the tokens of `text`, with an end token where no chat template says how a text ends.

        What is too long for the model loses the beginning of the prompt, but for the first token.
        """
        template = bool(self.tokenizer.chat_template)
        ids = list(self.tokenizer(self.text(prompt, response), add_special_tokens=not template)["input_ids"])
        end = self.tokenizer.eos_token_id
        if not template and end is not None and ids[-1:] != [end]:
            ids.append(end)
        most = self._most_tokens()
        return ids if len(ids) <= most else [ids[0], *ids[len(ids) - most + 1 :]]

    def _most_tokens(self) -> int:
        classifier: Any = self.model
        room = getattr(classifier.config.get_text_config(), "max_position_embeddings", None)
        return int(min(self.tokenizer.model_max_length, room or self.tokenizer.model_max_length))

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Return the reward of each response to its prompt, in batches of similar length.

        Args:
            prompts: The inputs x, original ones.
            responses: The outputs y, one for each.

        Raises:
            ValueError: If the lengths differ.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts, but {len(responses)} responses")
        return self._rewards(list(zip(prompts, responses, strict=True)))

    def _rewards(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        import torch

        rows = [self.token_ids(prompt, response) for prompt, response in pairs]
        rewards = [0.0] * len(rows)
        with self._lock, torch.no_grad():
            for chunk in self._chunks(rows):
                for i, reward in zip(chunk, self._forward([rows[i] for i in chunk]), strict=True):
                    rewards[i] = reward
        return rewards

    def _chunks(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        chunk: list[int] = []
        for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):  # so the last row is the longest
            if chunk and len(rows[i]) * (len(chunk) + 1) > self.BATCH_TOKENS:
                yield chunk
                chunk = []
            chunk.append(i)
        if chunk:
            yield chunk

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[float]:
        import torch

        classifier: Any = self.model
        width = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        device = next(classifier.parameters()).device
        logits = classifier(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        return [float(value) for value in logits[:, 0].float().tolist()]

    def metric(self, prompt_field: str, response_field: str) -> Callable[..., float]:
        """Return a metric: r(x, y) of the example's own input, never of what a prompter made of it.

        Args:
            prompt_field: Field of the example that holds x.
            response_field: Field of the prediction that holds y.

        Returns:
            A function (example, prediction, trace=None) -> reward. A reward is unbounded: give a compiler its range.
        """

        def reward(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
            return self._together((str(example[prompt_field]), str(prediction[response_field])))

        return reward


class PairwiseJudge(dspy.Module):  # type: ignore[misc]
    """Asks a language model which of two responses is better, in both orders.

    Attributes:
        comparison: The predictor, open to every compiler.
    """

    def __init__(self, model: dspy.BaseLM | str | None = None) -> None:
        """Create a judge.

        Args:
            model: An LM or a LiteLLM model name; None judges by the configured LM.
        """
        super().__init__()
        self.comparison = dspy.Predict(CompareResponses)
        if model is not None:
            self.comparison.lm = dspy.LM(model) if isinstance(model, str) else model

    def forward(self, question: str, first: str, second: str) -> dspy.Prediction:
        """Compare two responses; two calls, none if they are the same.

        Args:
            question: What was asked.
            first: One response.
            second: The other one.

        Returns:
            A prediction with `verdict` ("first", "second" or "tie"), `consistent` (whether both orders agree; if not,
            the verdict is "tie") and `reasons` (the model's, in the order of the calls).
        """
        if first == second:
            return _combine([])
        orders = ((first, second), (second, first))
        return _combine([self.comparison(question=question, first_response=a, second_response=b) for a, b in orders])

    async def aforward(self, question: str, first: str, second: str) -> dspy.Prediction:
        """`forward` for event loops."""
        if first == second:
            return _combine([])
        orders = ((first, second), (second, first))
        return _combine(
            [await self.comparison.acall(question=question, first_response=a, second_response=b) for a, b in orders]
        )


def _combine(answers: Sequence[dspy.Prediction]) -> dspy.Prediction:
    """Combine the answers for (first, second) and (second, first)."""
    verdicts = [answers[0].verdict, _SWAPPED[answers[1].verdict]] if answers else ["tie", "tie"]
    consistent = verdicts[0] == verdicts[1]
    return dspy.Prediction(
        verdict=verdicts[0] if consistent else "tie",
        consistent=consistent,
        reasons=[answer.reason for answer in answers],
    )

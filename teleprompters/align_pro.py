"""Align-Pro: a prompter in front of a frozen program, trained by its reward.

Source: 2501.03486 section 4 (objective, eq. 9; Lemma 1, eq. 10) and section 5 (PPO). The untrained prompter as a
candidate of its own, the yardstick, and everything that the kernel does around it are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Unpack, get_args

import dspy

from cuesmith.modules.decoding import GREEDY, Decoding
from cuesmith.modules.prompter import Prompted, Prompter
from cuesmith.modules.reweighted import Reweighted
from cuesmith.teleprompters.alignment.frozen import Frozen
from cuesmith.teleprompters.alignment.prompters import check_label_free, kl_of, sampled, trained
from cuesmith.teleprompters.alignment.training import PrompterModel, Training, prompter_of, warm_started
from cuesmith.teleprompters.alignment.training_result import Alignment
from cuesmith.teleprompters.alignment.yardstick import attainable, realised
from cuesmith.teleprompters.compiler import FRESH_EXAMPLES, Compiler, Options
from cuesmith.teleprompters.runtime._dspy import copy_program
from cuesmith.teleprompters.runtime.candidate import Candidate
from cuesmith.teleprompters.runtime.checks import whole
from cuesmith.teleprompters.runtime.compilation import Plan
from cuesmith.teleprompters.runtime.metric import Metric, MetricFunction
from cuesmith.teleprompters.runtime.outcomes import Scores
from cuesmith.teleprompters.runtime.run import Run

Mode = Literal["train", "weights"]

_GIVE_ONE = "give prompter='Qwen/Qwen2.5-0.5B-Instruct' or another local model (pip install 'cuesmith[train]')"


class AlignPro(Compiler):
    """Align-Pro: train a prompter that rewrites the input of the frozen program.

    The prompter rho is trained to maximise E[r(x, y)] - lambda KL(rho || rho_sft), with y the program's answer to the
    rewrite, r the metric on the *original* example, and rho_sft the prompter as it was given. The program is never
    touched and may be anywhere. The compiled program is `Prompted`: prompter and program in one module.

    Before training, samples of rho_sft give the best value that any prompter can reach at this lambda (Lemma 1:
    lambda E log Z); training ends when there is nothing left of it, and the record (`alignment_of(compilation)`)
    says what share of it was realised.

    Without a prompter nothing is trained: the optimizer model rewrites as it is, by one request before each run of the
    program, is compared with the program alone, and a note says so. What training could gain is not measured then: it
    depends on the model that is trained.

    `mode="weights"` trains nothing: the compiled program draws several rewrites whenever it runs and returns the answer
    to one of them, drawn by Lemma 1. That needs a metric that judges without a label: a reward model, or a judge.

    Args:
        metric: The reward r, as for `Compiler`.
        prompter: rho_sft: a local transformers model (`LocalPolicy`, or a folder or name to load one from), or, for
            `mode="weights"`, also a `dspy.LM`; a `Prompter` of either. None: the optimizer model, untrained.
        field: The input that is rewritten; by default the only one there is.
        mode: "train" or "weights".
        training: How rho is trained: trainer ("ppo" as the paper, "rloo", "grpo"), kl_coefficient (the paper's
            lambda), steps and so on. Its seed is the compiler's.
        pairs: (input, rewrite) pairs on which rho_sft is fine-tuned before anything else, such as another compiler or
            a stronger model produced.
        warm_start_steps: Steps of that.
        rewrites: Rewrites of an input for the yardstick, or drawn at each run by `mode="weights"`.
        yardstick: Training inputs that the yardstick is measured on; 0 for no yardstick.
        responses: Answers to a rewrite, of which the mean reward is taken; more than 1 for sampling programs.
        decoding: How the compiled program's prompter decodes.
        **options: As for `Compiler`.

    Raises:
        ImportError: If training is asked for without `cuesmith[train]`.
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        metric: MetricFunction,
        *,
        prompter: PrompterModel | None = None,
        field: str | None = None,
        mode: Mode = "train",
        training: Training | None = None,
        pairs: Sequence[tuple[str, str]] = (),
        warm_start_steps: int = 200,
        rewrites: int = 16,
        yardstick: int = 24,
        responses: int = 1,
        decoding: Decoding = GREEDY,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(metric, **options)
        if mode not in get_args(Mode):
            raise ValueError(f"mode={mode!r} must be one of {', '.join(get_args(Mode))}")
        self.mode = mode
        self.untrained = mode == "train" and prompter is None
        if prompter is None:
            prompter = self.optimizer_lm or Prompter(decoding=decoding)
        self.prompter = prompter_of(prompter, decoding, local=mode == "train" and not self.untrained)
        if not (training is None or isinstance(training, Training)):
            raise TypeError(f"training must be a Training or None, got {type(training).__name__}")
        if training is not None and self.untrained:
            raise ValueError(f"training=... says how a prompter is trained, and there is none: {_GIVE_ONE}")
        self.training = training or Training()
        self.field = field
        self.pairs = [(str(source), str(target)) for source, target in pairs]
        if self.pairs and self.prompter.policy is None:
            raise ValueError("pairs are for a local prompter: a language model behind an API is not fine-tuned here")
        self.warm_start_steps = whole("warm_start_steps", warm_start_steps)
        self.rewrites = whole("rewrites", rewrites, least=2)
        self.yardstick = whole("yardstick", yardstick, least=0)
        self.responses = whole("responses", responses)
        self.decoding = decoding

    def check_data(self, trainset: Sequence[dspy.Example]) -> None:
        """Find out the input that is rewritten, and refuse data without it."""
        field = self._field(trainset)
        for number, example in enumerate(trainset):
            if not isinstance(example.inputs().get(field), str):
                raise ValueError(f"trainset[{number}] has no text in the input {field!r}, which is to be rewritten")

    def _field(self, examples: Sequence[dspy.Example]) -> str:
        inputs = sorted(examples[0].inputs().keys())
        if self.field is None and len(inputs) != 1:
            raise ValueError(f"field=... must say which input is rewritten: the examples have {', '.join(inputs)}")
        if self.field is not None and self.field not in inputs:
            raise ValueError(f"field={self.field!r} is no input of the examples: they have {', '.join(inputs)}")
        return self.field or inputs[0]

    def plan(self, n_predictors: int, n_select: int, n_train: int) -> Plan:
        """Return upper bounds; rewrites that repeat are not run again, so that it mostly takes fewer."""
        if self.untrained:
            return Plan(n_select + FRESH_EXAMPLES, n_select)
        drawn = min(self.yardstick, n_train) * self.rewrites
        measured = drawn * max(2, self.responses)
        if self.mode == "weights":
            # Each run of the weighed program, the report's included, is one of the frozen program for each rewrite.
            weighed = n_select * (1 + self.rewrites)
            asked = 0 if self.prompter.policy else drawn + weighed + FRESH_EXAMPLES * self.rewrites
            return Plan(asked, measured + weighed + FRESH_EXAMPLES * (self.rewrites - 1))
        rows = self.training.steps * self.training.batch_size
        return Plan(0, 2 * measured + 2 * n_select + rows * self.responses)

    def _options(self) -> Mapping[str, object]:
        return {**super()._options(), "prompter": self.prompter.fingerprint}

    async def search(self, run: Run) -> Candidate:
        """Measure what can be gained, train or weigh, and compare with the program alone."""
        field = self._field(run.train)
        if self.mode == "weights":
            await check_label_free(run)
        frozen = Frozen(run, run.train, field, self.responses)
        if self.untrained:
            run.note(f"Nothing is trained: the optimizer model rewrites as it is. To train a prompter, {_GIVE_ONE}.",
                     "alignment")  # fmt: skip
            frozen.keep(Alignment(self.mode, self.training.kl_coefficient, None))
        kept = frozen.folder("untrained-prompter")
        untrained = await frozen.apart(
            lambda: warm_started(self.prompter, self.pairs, self.warm_start_steps, self.seed, kept)
        )
        first = await self._score(run, _prompted(frozen, untrained, field, "untrained prompter"), 0)
        if self.untrained:
            return first.candidate
        rows = sorted(run.rng("yardstick").sample(range(len(run.train)), min(self.yardstick, len(run.train))))
        longest = self.training.max_new_tokens
        draws = await sampled(untrained, frozen, run, rows, self.rewrites, self.seed, longest) if rows else []
        noise = 0.0 if frozen.deterministic else None
        best = attainable(draws, self.training.kl_coefficient, noise_variance=noise) if rows else None
        found = Alignment(self.mode, self.training.kl_coefficient, best)
        if self.mode == "weights":
            frozen.keep(found)
            last = await self._score(run, self._weighed(frozen, untrained, field), 1)
        elif best is not None and best.nothing_to_gain:
            frozen.keep(found)
            last = first
        else:
            last, found = await self._trained(run, frozen, untrained, field, rows, found)
        if verdict := found.verdict():
            run.note(verdict, "alignment")
        return max([last, first], key=lambda scores: scores.score).candidate

    async def _trained(
        self, run: Run, frozen: Frozen, untrained: Prompter, field: str, rows: Sequence[int], found: Alignment
    ) -> tuple[Scores, Alignment]:
        best = found.attainable
        training = replace(self.training, seed=self.seed)
        goal = best.value.mean if best is not None and best.value is not None else None
        spare = len(run.select) + len(rows) * self.rewrites * max(2, self.responses)
        prompter, curve = await trained(untrained, frozen, training, goal, spare)
        last = await self._score(run, _prompted(frozen, prompter, field, f"trained by {training.trainer}"), 1)
        found = replace(found, curve=curve)
        frozen.keep(found)
        if best is not None:
            texts = [frozen.texts[row] for row in rows]
            longest = training.max_new_tokens
            draws = await sampled(prompter, frozen, run, rows, self.rewrites, self.seed + 1, longest)
            kl = await kl_of(prompter, untrained, run, texts, draws, longest)
            share, own = realised(draws, kl.per_input, best), attainable(draws, training.kl_coefficient)
            found = replace(found, realised=share, reward=own.baseline, kl=kl)
            frozen.keep(found)
        return last, found

    async def _score(self, run: Run, candidate: Candidate, step: int) -> Scores:
        scores = (await run.score([candidate], run.select))[0]
        await run.record(step, [scores])
        return scores

    def _weighed(self, frozen: Frozen, prompter: Prompter, field: str) -> Candidate:
        judge, coefficient, n = Metric(self.metric), self.training.kl_coefficient, self.rewrites

        def reward(example: dspy.Example, prediction: dspy.Prediction) -> float:
            return judge.call(example, prediction)[0]

        def front(program: dspy.Module) -> dspy.Module:
            own = copy_program(prompter)
            return Reweighted(own, program, field, reward, kl_coefficient=coefficient, rewrites=n, seed=self.seed)

        name = f"{prompter.fingerprint}:weights:{coefficient}:{n}:{self.seed}"
        return frozen.behind(name, front, "weights of Lemma 1")


def _prompted(frozen: Frozen, prompter: Prompter, field: str, move: str) -> Candidate:
    return frozen.behind(prompter.fingerprint, lambda program: Prompted(copy_program(prompter), program, [field]), move)

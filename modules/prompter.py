"""A prompter in front of a frozen program: x -> x' ~ rho(x'|x) -> y ~ pi_F(y|x'). Source: 2501.03486 eq. 3.

The program is any dspy program on any backend; it is never touched, only given other inputs.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import inspect
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextvars import Context, ContextVar, copy_context
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import dspy

from cuesmith.modules.decoding import GREEDY, POLICY, Decoding, Rewrite
from cuesmith.modules.policy import LocalPolicy
from cuesmith.modules.sampling import DRAWS_PER_ASK
from cuesmith.modules.sampling import draw as current_draw
from cuesmith.signatures.rewriting import RewriteInput

__all__ = ["Prompted", "Prompter", "given"]

Result = TypeVar("Result")

STATE = "prompted"
"""The key of a saved `Prompted`'s own state, beside those of its predictors."""

_MARK = "prompted.json"
_SECRET_OPTIONS = frozenset({"api_key", "api_base", "base_url", "headers", "extra_headers"})


def given(text: str, rewrite: str) -> str:
    """Return what the frozen program is given: the rewrite, stripped, or the text itself if that is empty.

    Whatever scores rewrites has to score this, so that it measures what the deployed program will do.

    Args:
        text: The input x.
        rewrite: The rewrite x', as a model wrote it.
    """
    return rewrite.strip() or text


class Prompter(dspy.Module):  # type: ignore[misc]
    """Rewrites an input by a language model.

    With a `LocalPolicy` it has no predictors; else `rewriting` is one, open to every compiler. Copies share the
    policy. `save` stores no weights, and refuses a local policy: save the `Prompted`, or `policy` itself.

    Attributes:
        policy: The local model; None where a `dspy.LM` rewrites.
        decoding: How rewrites are drawn when it is called.
        seed: The seed of these draws.
    """

    def __init__(
        self,
        model: LocalPolicy | dspy.BaseLM | str | None = None,
        *,
        decoding: Decoding = GREEDY,
        seed: int = 0,
    ) -> None:
        """Create a prompter.

        Args:
            model: A local policy, an LM, a LiteLLM model name; None rewrites by the configured LM.
            decoding: How rewrites are drawn when it is called. An LM is told the temperature and a `top_p` below 1;
                its limit of tokens and `top_k` are its own.
            seed: For a local policy: of draws at a temperature above 0.
        """
        super().__init__()
        self.decoding = decoding
        self.seed = seed
        self.policy: LocalPolicy | None = None
        if isinstance(model, LocalPolicy):
            self.policy = model
        else:
            self.rewriting = dspy.Predict(RewriteInput)
            if model is not None:
                self.rewriting.lm = dspy.LM(model) if isinstance(model, str) else model

    def forward(self, text: str) -> dspy.Prediction:
        """Rewrite a text.

        Args:
            text: The input x.

        Returns:
            A prediction with `rewritten`: what the frozen program is given (see `given`).

        Raises:
            ValueError: If the text fills a local model's context.
            dspy.LMError: If the LM cannot be reached.
        """
        if self.policy is not None:
            return _prediction(text, self.policy.rewrite(text, self.decoding, seed=self.seed))
        return _prediction(text, self.rewriting(text=text, config=_options(self.decoding)).rewritten)

    async def aforward(self, text: str) -> dspy.Prediction:
        """`forward` for event loops."""
        if self.policy is not None:
            made = await asyncio.to_thread(self.policy.rewrite, text, self.decoding, seed=self.seed)
            return _prediction(text, made)
        return _prediction(text, (await self.rewriting.acall(text=text, config=_options(self.decoding))).rewritten)

    def sample(
        self, texts: Sequence[str], n: int, decoding: Decoding = POLICY, *, seed: int = 0
    ) -> list[list[Rewrite]]:
        """Draw rewrites: of a local policy in batches, of an LM concurrently (`dspy.settings.num_threads` calls).

        Args:
            texts: The inputs x. Equal texts get different draws.
            n: Draws for each.
            decoding: As for `LocalPolicy.sample`; an LM is told what the constructor says of it.
            seed: Same seed, same draws of a local policy. An LM gets a distinct `rollout_id` for each draw, by the
                seed, so that dspy's cache tells the draws apart and gives them again.

        Returns:
            For each text its n rewrites as the frozen program is given them (see `given`). `logprob` is None for an LM.

        Raises:
            Exception: The first error of a call to the LM.
        """
        if self.policy is None:
            return self._sample_lm(texts, n, decoding, seed)
        drawn = self.policy.sample(texts, n, decoding, seed=seed)
        return [
            [Rewrite(given(text, one.text), one.logprob) for one in group]
            for text, group in zip(texts, drawn, strict=True)
        ]

    def _sample_lm(self, texts: Sequence[str], n: int, decoding: Decoding, seed: int) -> list[list[Rewrite]]:
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        different = 1 if decoding.temperature == 0 else n
        calls: list[Callable[[], str]] = []
        seen = Counter[str]()
        for text in texts:
            numbers = range(seen[text] * different, (seen[text] + 1) * different)
            calls += [self._draw(text, decoding, _rollout(seed, number)) for number in numbers]
            seen[text] += 1
        made = _concurrently(calls)
        groups = [made[i : i + different] for i in range(0, len(made), different)]
        return [
            [Rewrite(given(text, one), None) for one in group] * (n // different)
            for text, group in zip(texts, groups, strict=True)
        ]

    def _draw(self, text: str, decoding: Decoding, number: int) -> Callable[[], str]:
        options = _options(decoding)
        if decoding.temperature > 0:
            options["rollout_id"] = number

        def call() -> str:
            current_draw.set(number)  # a model of this process tells draws apart by it
            return str(self.rewriting(text=text, config=options).rewritten or "")

        return call

    @property
    def fingerprint(self) -> str:
        """A hash (16 hex digits) of what rewrites: model, prompt, decoding and seed; the same in every process.

        For a local policy it reads all weights. The configured LM is not part of it, but an LM of its own is.
        """
        if self.policy is not None:
            model: object = self.policy.fingerprint
        else:
            demos = [dict(demo) for demo in self.rewriting.demos]
            model = [_lm_facts(self.rewriting.lm), self.rewriting.signature.instructions, demos]
        facts = json.dumps([model, asdict(self.decoding), self.seed], sort_keys=True, default=str)
        return hashlib.blake2b(facts.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return dspy's state of the predictor.

        Raises:
            ValueError: With a local policy, whose weights are no part of a state.
        """
        if self.policy is not None:
            raise ValueError("a local prompter's weights are no state: use Prompted.save or policy.save_pretrained")
        state: dict[str, Any] = super().dump_state(json_mode=json_mode)
        return state


class Prompted(dspy.Module):  # type: ignore[misc]
    """A program whose inputs a prompter rewrites first.

    Predictors are named as in the program, with "program." in front, and the prompter's own, if it has one,
    "prompter.rewriting". A program that was compiled before keeps its prompts, is saved with them, and stays open to
    further compilers (dspy itself hides a compiled program inside another one, and does not save it).

    `save(path)` writes dspy's state and, for a local policy, the weights in the folder `<path without suffix>.prompter`
    beside it; `load` on a `Prompted` around the same program, with any prompter, restores all. A `Prompted` inside
    another module is saved by that one's `save` without weights. `save(path, save_program=True)` is dspy's own:
    cloudpickle puts the whole of it, weights included, into one `program.pkl`, which `dspy.load(path,
    allow_pickle=True)` reads where the same versions of transformers and Cuesmith are installed.

    Attributes:
        prompter: What rewrites.
        program: The frozen program.
        fields: Names of the input fields that are rewritten.
    """

    def __init__(self, prompter: Prompter, program: dspy.Module, fields: Sequence[str]) -> None:
        """Put a prompter in front of a program. Neither is copied.

        Args:
            prompter: What rewrites.
            program: Any program.
            fields: Input fields to rewrite, where their value is a text; all others are passed on as they are.

        Raises:
            ValueError: If there are no fields, or the program is known to have no such field.
        """
        super().__init__()
        if isinstance(fields, str) or not fields:
            raise ValueError(f"fields must be a list of at least one input field, not {fields!r}")
        known = _input_names(program)
        unknown = [name for name in fields if known is not None and name not in known]
        if unknown:
            raise ValueError(f"the program has no input field {unknown[0]!r}; it has {sorted(known or ())}")
        self.prompter = prompter
        self.program = program
        self.fields = tuple(fields)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Rewrite, run the program and return its prediction unchanged. A program with `aforward` alone is awaited."""
        for name in self._texts(inputs):
            inputs[name] = self.prompter(text=inputs[name]).rewritten
        if hasattr(type(self.program), "forward"):
            return self.program(**inputs)
        return _wait_for(self.program.acall(**inputs))

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """`forward` for event loops. A program with `forward` alone runs in a thread."""
        for name in self._texts(inputs):
            inputs[name] = (await self.prompter.acall(text=inputs[name])).rewritten
        if hasattr(type(self.program), "aforward"):
            return await self.program.acall(**inputs)
        return await asyncio.to_thread(self.program, **inputs)

    def _texts(self, inputs: Mapping[str, object]) -> list[str]:
        return [name for name in self.fields if isinstance(inputs.get(name), str)]

    def named_parameters(self) -> list[tuple[str, Any]]:
        """Return (name, parameter) of prompter and program, those of a compiled program included."""
        found: dict[int, tuple[str, Any]] = {}
        for part, module in (("prompter", self.prompter), ("program", self.program)):
            for name, parameter in module.named_parameters():
                found.setdefault(id(parameter), (part if name == "self" else f"{part}.{name}", parameter))
        return list(found.values())

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return dspy's state of all predictors, and under `STATE` the fields, the decoding and whose weights."""
        state: dict[str, Any] = super().dump_state(json_mode=json_mode)
        policy = self.prompter.policy
        state[STATE] = {
            "fields": list(self.fields),
            "decoding": asdict(self.prompter.decoding),
            "seed": self.prompter.seed,
            "weights": policy.fingerprint if policy is not None else None,
        }
        return state

    def load_state(self, state: Mapping[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """Restore what `dump_state` gave, all or nothing.

        Raises:
            ValueError: If the state belongs to weights that this prompter does not have (`load` finds them).
            KeyError: If a predictor is not in the state.
        """
        before = self.prompter, self.fields
        if (facts := state.get(STATE)) is not None:
            self.prompter, self.fields = _restored(self.prompter, facts), tuple(facts["fields"])
        try:
            super().load_state(state, allow_unsafe_lm_state=allow_unsafe_lm_state)
        except BaseException:
            self.prompter, self.fields = before
            raise

    def save(
        self, path: str | Path, save_program: bool = False, modules_to_serialize: Sequence[Any] | None = None
    ) -> None:
        """Save the program; see the class.

        Args:
            path: A file that ends with .json (or .pkl); with `save_program` a folder.
            save_program: Write everything by cloudpickle instead.
            modules_to_serialize: As dspy takes it.
        """
        path = Path(path)
        policy = self.prompter.policy
        if policy is None or save_program or path.suffix not in (".json", ".pkl"):
            super().save(path, save_program, modules_to_serialize)
            return
        folder = _weights_folder(path)
        fresh = _fresh(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        policy.save_pretrained(fresh)
        (fresh / _MARK).write_text(json.dumps({"weights": policy.fingerprint}) + "\n", "utf-8")
        super().save(path)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)

    def load(self, path: str | Path, allow_pickle: bool = False, allow_unsafe_lm_state: bool = False) -> None:
        """Load what `save` wrote to a .json (or .pkl) file.

        Args:
            path: The file.
            allow_pickle: Whether a .pkl file may run its code.
            allow_unsafe_lm_state: Whether LMs keep their addresses and classes; see dspy.

        Raises:
            ValueError: If the weights beside it are not those it was saved with.
            FileNotFoundError: If there is no such file, or its weights are missing.
        """
        token = _folder.set(_weights_folder(Path(path)))
        try:
            super().load(path, allow_pickle=allow_pickle, allow_unsafe_lm_state=allow_unsafe_lm_state)
        finally:
            _folder.reset(token)


_folder: ContextVar[Path | None] = ContextVar("cuesmith_weights_folder", default=None)
"""Where the weights of the state lie that is being loaded: dspy's `load_state` is not told the path."""


def _weights_folder(path: Path) -> Path:
    return path.with_suffix(".prompter")


def _fresh(folder: Path) -> Path:
    """Where the weights are written first."""
    return folder.with_name(folder.name + ".new")


def _restored(prompter: Prompter, facts: Mapping[str, Any]) -> Prompter:
    """A copy of the prompter with the model, decoding and seed of a saved state."""
    policy, weights = prompter.policy, facts["weights"]
    if weights is None:
        policy = None
    elif (folder := _folder.get()) is not None:
        policy = _load_policy(folder, weights)
    elif policy is None or policy.fingerprint != weights:
        raise ValueError(f"the state belongs to the prompter weights {weights}, which load() finds beside the file")
    restored: Prompter = copy.copy(prompter)
    restored.decoding, restored.seed, restored.policy = Decoding(**facts["decoding"]), facts["seed"], policy
    if policy is not None:
        restored.__dict__.pop("rewriting", None)
    else:
        restored.rewriting = dspy.Predict(RewriteInput)  # its state is loaded next
    return restored


def _load_policy(folder: Path, weights: str) -> LocalPolicy:
    fresh = _fresh(folder)  # there, if the process was killed in `save` after the state was written
    found = {_marked(each): each for each in (folder, fresh) if each is folder or (each / _MARK).is_file()}
    if weights not in found:
        raise ValueError(f"{folder} holds the prompter weights {min(found)}, the program was saved with {weights}")
    return LocalPolicy.from_pretrained(found[weights])


def _marked(folder: Path) -> str:
    return str(json.loads((folder / _MARK).read_text("utf-8"))["weights"])


def _prediction(text: str, rewrite: object) -> dspy.Prediction:
    return dspy.Prediction(rewritten=given(text, str(rewrite or "")))


def _options(decoding: Decoding) -> dict[str, Any]:
    return {"temperature": decoding.temperature} | ({"top_p": decoding.top_p} if decoding.top_p < 1 else {})


def _rollout(seed: int, number: int) -> int:
    digest = hashlib.blake2b(f"rewrite {seed} {number // DRAWS_PER_ASK}".encode(), digest_size=5).digest()
    return int.from_bytes(digest, "big") * DRAWS_PER_ASK + number % DRAWS_PER_ASK + 1


def _concurrently(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """Call all in threads, each in a copy of this context (dspy's settings), and return the results in order."""
    threads = max(1, min(len(calls), dspy.settings.num_threads or 8))
    contexts, failed = [copy_context() for _ in calls], threading.Event()

    def call_unless_failed(context: Context, call: Callable[[], Result]) -> Result:
        if failed.is_set():  # calls begin in order: the error of an earlier one is raised before this one's is met
            raise CancelledError
        try:
            return context.run(call)
        except BaseException:
            failed.set()
            raise

    pool = ThreadPoolExecutor(threads, thread_name_prefix="cuesmith-prompter")
    try:
        futures = [pool.submit(call_unless_failed, *each) for each in zip(contexts, calls, strict=True)]
        return [future.result() for future in futures]
    finally:  # after an error nothing further is sent
        pool.shutdown(wait=True, cancel_futures=True)


def _wait_for(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, also under a running event loop (then in a thread)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, asyncio.run, work).result()


def _lm_facts(lm: dspy.BaseLM | None) -> object:
    if lm is None:
        return None
    return [lm.model, {name: value for name, value in lm.kwargs.items() if name not in _SECRET_OPTIONS}]


def _input_names(program: dspy.Module) -> set[str] | None:
    """The names of a program's inputs, None where they cannot be known."""
    if isinstance(program, Prompted):
        return _input_names(program.program)
    kind = type(program)
    if kind.__module__.startswith("dspy."):  # its own modules take their signature's inputs
        holders = [program, *(predictor for _, predictor in program.named_predictors())]
        signatures: list[Any] = [holder.signature for holder in holders if hasattr(holder, "signature")]
        return set(signatures[0].input_fields) if signatures else None
    function = getattr(kind, "forward", None) or getattr(kind, "aforward", None)
    parameters = list(inspect.signature(function).parameters.values())[1:] if function else []
    if not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}

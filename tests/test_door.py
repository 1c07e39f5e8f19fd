"""Whatever way a program or a metric reaches a model, and whatever it answers: caps hold, all is counted and replayed.

Each case is a whole compile by the public face, on models that count: in this process, or on the loopback interface
where LiteLLM is what calls.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import decimal
import functools
import importlib
import importlib.util
import json
import math
import multiprocessing.pool
import threading
import time
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import dspy
import numpy as np
import pydantic
import pytest
from dspy.lm15 import Message, Request, Response

import cuesmith
from cuesmith import Budget, Compilation
from cuesmith.testing.fakes import (
    KEY,
    PARTLY,
    Answer,
    Engine,
    Sent,
    Server,
    examples,
    graded,
    plain,
    simulated,
    writes,
)
from cuesmith.testing.fakes import ruled as by_rule
from cuesmith.testing.ran import facts

TRAIN, VALID = examples(5, "door train"), examples(8, "door valid")
SMALL: Mapping[str, Any] = {"width": 1, "branch": 2, "steps": 1, "initial": 2}
ROLES = {"judge": "judge", "optimizer": "optimizer", "embedder": "embedder"}
"""The role of a model's calls, by the model's name; the others are the target's."""
EACH = 500
"""Tokens of a call to a model in this process."""

PATIENCE = 20.0
"""Seconds that an example may take."""

Metric: TypeAlias = Callable[..., Any]


class Awaited:
    """An engine's awaited twin."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def complete(self, request: Request) -> Response:
        return await asyncio.to_thread(self.engine.complete, request)

    def __deepcopy__(self, memo: object) -> Awaited:
        return self


class Provider(Server):
    """A server that also embeds, and counts by model."""

    def __init__(self, reply: Callable[[Sent], str]) -> None:
        super().__init__(reply)
        self.asked: list[str] = []

    def answer(self, path: str, headers: Mapping[str, str], body: Mapping[str, object]) -> Answer | None:
        self.asked.append(str(body["model"]))
        if "input" not in body:
            return super().answer(path, headers, body)
        rows = body["input"] if isinstance(body["input"], list) else [body["input"]]
        found = [{"object": "embedding", "index": i, "embedding": [1.0, len(str(row))]} for i, row in enumerate(rows)]
        usage = {"prompt_tokens": 7, "total_tokens": 7}
        return 200, {}, {"object": "list", "data": found, "model": body["model"], "usage": usage}


def replies(answer: Callable[[Sent], str] = by_rule) -> Callable[[Sent], str]:
    """Return what answers any request: for prompts as the simulated optimizer, for what nobody knows in some words."""
    optimizer, text = simulated(), writes("some text")

    def reply(sent: Sent) -> str:
        outputs = sent.asked.outputs
        if not outputs:
            return "some text"
        if "next_tool_name" in outputs:
            done = "observation_0" in sent.text
            args = json.dumps({} if done else {"word": "x"})
            return fields(next_thought="t", next_tool_name="finish" if done else "look_up", next_tool_args=args)
        if "answer" in outputs:
            return answer(sent)
        return str(optimizer(sent) if sent.asked.name else text(sent))

    return reply


BEFORE: weakref.WeakKeyDictionary[World, int] = weakref.WeakKeyDictionary()
"""How many requests the server had before each case. Not an attribute: programs reach their world."""


class World:
    """The models of one case, and what they were asked."""

    def __init__(self, server: Provider) -> None:
        self.answer: Callable[[Sent], str] = by_rule
        self.engine, self.server = Engine(replies(lambda sent: self.answer(sent))), server
        self.others: list[str] = []
        BEFORE[self] = len(server.asked)

    def lm(self, name: str, **options: Any) -> dspy.LM:
        """Return a model of that name in this process."""
        return dspy.LM(f"door/{name}", engine=self.engine, async_engine=Awaited(self.engine), cache=False, **options)

    def served(self, name: str, **options: Any) -> dspy.LM:
        """Return a model of that name on the server."""
        return dspy.LM(f"openai/{name}", api_base=self.server.base, api_key=KEY, cache=False, **options)

    def begin(self) -> None:
        """Forget what the making of a program has asked."""
        self.engine.sent.clear()
        self.others.clear()
        BEFORE[self] = len(self.server.asked)

    @property
    def asked(self) -> Counter[str]:
        """How often each model was asked."""
        inside = (str(sent.request.model).split("/")[-1] for sent in self.engine.sent if sent.request is not None)
        return Counter([*inside, *self.server.asked[BEFORE[self] :], *self.others])

    @property
    def by_role(self) -> Mapping[str, int]:
        """How often each role's models were asked."""
        found: Counter[str] = Counter()
        for name, n in self.asked.items():
            found[ROLES.get(name, "target")] += n
        return dict(found)


def fields(**values: str) -> str:
    """Write a reply in dspy's form."""
    return "\n\n".join([*(f"[[ ## {name} ## ]]\n{value}" for name, value in values.items()), "[[ ## completed ## ]]"])


# --- programs ----------------------------------------------------------------------------------------------

Forward: TypeAlias = Callable[..., Any]


class Program(dspy.Module):  # type: ignore[misc]
    """A predictor with a model of its own kept in `kept`, and a `forward` that is given."""

    def __init__(self, forward: Forward, **kept: Any) -> None:
        super().__init__()
        self.say, self.forward_, self.kept = plain(), forward, types.SimpleNamespace(**kept)

    def forward(self, question: str) -> dspy.Prediction:
        return self.forward_(self, question)


class Async(dspy.Module):  # type: ignore[misc]
    """The same, for async code only."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.say, self.forward_ = plain(), forward

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.forward_(self, question)


Made: TypeAlias = "tuple[dspy.Module, Metric]"
MAKERS: dict[str, Callable[[World], Made]] = {}
MIXED: set[str] = set()
"""Cases in which a model is asked on behalf of several roles."""


def case(maker: Callable[[World], Any]) -> Callable[[World], Any]:
    """Add a case: a function that makes a student, a metric, or both."""

    def make(world: World) -> Made:
        made = maker(world)
        if isinstance(made, tuple):
            return made
        return (made, graded) if isinstance(made, dspy.Module) else (plain(), made)

    MAKERS[maker.__name__.replace("_", " ")] = make
    return maker


def asking(call: Callable[[Program, World], object]) -> Callable[[World], dspy.Module]:
    """Return what makes a program that makes one further call before its own."""

    def maker(world: World) -> dspy.Module:
        def forward(self: Program, question: str) -> dspy.Prediction:
            call(self, world)
            return self.say(question=question)

        return Program(forward)

    return maker


class Routed(dspy.LM):  # type: ignore[misc]
    """A model that hands on to others: where the first fails, the second answers."""

    def __init__(self, first: dspy.LM, second: dspy.LM) -> None:
        super().__init__("door/router", engine=first.engine, cache=False)
        self.first, self.second = first, second

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.first(*args, **kwargs)
        except dspy.utils.exceptions.LMError:
            return self.second(*args, **kwargs)

    def __deepcopy__(self, memo: object) -> Routed:
        return self


class Legacy(dspy.BaseLM):  # type: ignore[misc]
    """A model of dspy's old kind: it has `forward`."""

    def __init__(self, world: World) -> None:
        super().__init__("door/legacy")
        self.world = world

    def forward(self, prompt: str | None = None, messages: Sequence[Any] | None = None, **kwargs: Any) -> Any:
        self.world.others.append("inner")
        message = types.SimpleNamespace(content="some text", tool_calls=None, reasoning_content=None)
        choice = types.SimpleNamespace(message=message, finish_reason="stop", index=0)
        usage = {"prompt_tokens": 400, "completion_tokens": 100, "total_tokens": EACH}
        return types.SimpleNamespace(choices=[choice], usage=usage, model="legacy", _hidden_params={})

    def __deepcopy__(self, memo: object) -> Legacy:
        return self


class Bare(dspy.BaseLM):  # type: ignore[misc]
    """A model that has nothing of dspy's but the name: it is called, and answers."""

    def __init__(self, world: World) -> None:
        super().__init__("door/bare")
        self.world = world

    def __call__(self, prompt: str | None = None, messages: Sequence[Any] | None = None, **kwargs: Any) -> list[str]:
        self.world.others.append("inner")
        return ["some text"]

    def __deepcopy__(self, memo: object) -> Bare:
        return self


def words(lm: dspy.BaseLM, n: int) -> Iterator[str]:
    """Retrieve, lazily, with a call for each passage."""
    for i in range(n):
        yield str(lm(f"passage {i}")[0])


@case
def a_bare_predictor(world: World) -> Any:
    return plain()


@case
def a_model_in_a_list(world: World) -> Any:
    return Program(lambda self, question: self.kept.lms[0](question) and self.say(question=question),
                   lms=[world.lm("inner")])  # fmt: skip


@case
def a_model_in_a_dict(world: World) -> Any:
    def forward(self: Program, question: str) -> dspy.Prediction:
        with dspy.context(lm=self.kept.box["lm"]):
            self.say(question=question)
        return self.say(question=question)

    return Program(forward, box={"lm": world.lm("inner")})


@case
def a_model_in_a_plain_object(world: World) -> Any:
    return Program(lambda self, question: self.kept.lm(question) and self.say(question=question), lm=world.lm("inner"))


@case
def a_model_in_a_default_argument(world: World) -> Any:
    def forward(self: Program, question: str, lm: dspy.LM = world.lm("inner")) -> dspy.Prediction:  # noqa: B008
        lm("hello")
        return self.say(question=question)

    return Program(forward)


@case
def a_model_in_a_closure(world: World) -> Any:
    lm = world.lm("inner")
    return Program(lambda self, question: lm("hello") and self.say(question=question))


@case
def a_model_made_in_forward(world: World) -> Any:
    return asking(lambda self, world: world.lm("inner")("hello"))(world)


@case
def a_model_set_in_forward(world: World) -> Any:
    return asking(lambda self, world: self.say.set_lm(world.lm("target")))(world)


@case
def a_context_in_forward(world: World) -> Any:
    def forward(self: Program, question: str) -> dspy.Prediction:
        with dspy.context(lm=world.lm("inner")):
            return self.say(question=question)

    return Program(forward)


@case
def a_call_to_its_forward(world: World) -> Any:
    return asking(lambda self, world: world.lm("inner").forward(prompt="hello"))(world)


@case
def a_request_object(world: World) -> Any:
    def call(self: Program, world: World) -> object:
        lm = world.lm("inner")
        return lm(Request(model=lm.model, messages=(Message.user("hello"),)))

    return asking(call)(world)


@case
def several_completions(world: World) -> Any:
    return asking(lambda self, world: world.lm("inner")("hello", n=2, temperature=1.0))(world)


@case
def a_model_on_litellm(world: World) -> Any:
    return asking(lambda self, world: world.served("inner", engine="litellm")("hello"))(world)


@case
def litellm_itself(world: World) -> Any:
    return asking(lambda self, world: completion(world, "inner"))(world)


def completion(world: World, name: str) -> object:
    """Call LiteLLM without dspy."""
    import litellm

    told = [{"role": "user", "content": "hello"}]
    return litellm.completion(model=f"openai/{name}", messages=told, api_base=world.server.base, api_key=KEY)


@case
def an_embedder(world: World) -> Any:
    options = {"api_base": world.server.base, "api_key": KEY, "caching": False}
    embed = dspy.Embedder("openai/embedder", **options)
    return Program(lambda self, question: self.kept.embed([question]) is not None and self.say(question=question),
                   embed=embed)  # fmt: skip


@case
def an_embedder_that_is_a_function(world: World) -> Any:
    base = world.server.base

    def embed(texts: Sequence[str]) -> Any:
        import litellm

        found = litellm.embedding(model="openai/embedder", input=texts, api_base=base, api_key=KEY)
        return np.array([row["embedding"] for row in found.data])

    return Program(lambda self, question: self.kept.embed([question]) is not None and self.say(question=question),
                   embed=dspy.Embedder(embed, caching=False))  # fmt: skip


@case
def an_embedder_in_this_process(world: World) -> Any:
    local = dspy.Embedder(lambda texts: np.ones((len(texts), 2)), caching=False)
    return Program(lambda self, question: self.kept.embed([question]) is not None and self.say(question=question),
                   embed=local)  # fmt: skip


@case
def nearest_examples(world: World) -> Any:
    embed = dspy.Embedder("openai/embedder", api_base=world.server.base, api_key=KEY, caching=False)
    near = dspy.KNN(1, list(TRAIN), embed)
    return Program(lambda self, question: near(question=question) and self.say(question=question))


@case
def the_same_pool_always(world: World) -> Any:
    pool = ThreadPoolExecutor(2, thread_name_prefix="kept")
    return with_own_model(world, lambda self, asks: list(pool.map(lambda q: self.say(question=q), asks)))


@case
def a_new_pool(world: World) -> Any:
    def run(self: Program, asks: Sequence[str]) -> list[Any]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda q: self.say(question=q), asks))

    return with_own_model(world, run)


def with_own_model(world: World, run: Callable[[Program, Sequence[str]], Sequence[Any]]) -> Program:
    """Return a program that runs its predictor on a question and once more; its model goes along into any thread."""
    program = Program(lambda self, question: run(self, [question, f"{question} again"])[0])
    program.set_lm(world.lm("target"))
    return program


@case
def threads(world: World) -> Any:
    def run(self: Program, asks: Sequence[str]) -> list[Any]:
        found: list[Any] = [None] * len(asks)

        def work(i: int) -> None:
            found[i] = self.say(question=asks[i])

        started = [threading.Thread(target=work, args=(i,)) for i in range(len(asks))]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        return found

    return with_own_model(world, run)


@case
def a_pool_of_multiprocessing(world: World) -> Any:
    def run(self: Program, asks: Sequence[str]) -> list[Any]:
        with multiprocessing.pool.ThreadPool(2) as pool:
            return pool.map(lambda q: self.say(question=q), asks)

    return with_own_model(world, run)


@case
def threads_of_joblib(world: World) -> Any:
    if importlib.util.find_spec("joblib") is None:
        pytest.skip("joblib is not installed")
    joblib = importlib.import_module("joblib")

    def run(self: Program, asks: Sequence[str]) -> list[Any]:
        return list(joblib.Parallel(2, backend="threading")(joblib.delayed(self.say)(question=q) for q in asks))

    return with_own_model(world, run)


@case
def threads_of_dspy(world: World) -> Any:
    def forward(self: Program, question: str) -> dspy.Prediction:
        run = dspy.Parallel(num_threads=2, disable_progress_bar=True)
        return run([(self.say, {"question": q}) for q in (question, f"{question} again")])[0]

    return Program(forward)


@case
def a_loop_in_another_thread(world: World) -> Any:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    def run(self: Program, asks: Sequence[str]) -> list[Any]:
        running = [asyncio.run_coroutine_threadsafe(self.say.acall(question=q), loop) for q in asks]
        return [done.result() for done in running]

    return with_own_model(world, run)


@case
def a_model_awaited(world: World) -> Any:
    async def forward(self: Async, question: str) -> dspy.Prediction:
        await world.lm("inner").acall("hello")
        return await self.say.acall(question=question)

    return Async(forward)


@case
def calls_gathered(world: World) -> Any:
    async def forward(self: Async, question: str) -> dspy.Prediction:
        asks = (question, f"{question} again")
        return (await asyncio.gather(*(self.say.acall(question=q) for q in asks)))[0]

    return Async(forward)


@case
def a_call_in_a_thread_awaited(world: World) -> Any:
    async def forward(self: Async, question: str) -> dspy.Prediction:
        await asyncio.to_thread(self.say, question=f"{question} again")
        return await dspy.asyncify(self.say)(question=question)

    return Async(forward)


@case
def a_model_of_the_old_kind(world: World) -> Any:
    return asking(lambda self, world: Legacy(world)("hello"))(world)


@case
def a_model_with_its_own_call(world: World) -> Any:
    return asking(lambda self, world: Bare(world)("hello"))(world)


@case
def a_model_that_routes(world: World) -> Any:
    program = plain()
    program.set_lm(Routed(world.lm("first"), world.lm("second")))
    return program


@case
def a_model_that_falls_back(world: World) -> Any:
    def fails(sent: Sent) -> str:
        if sent.request is not None and sent.request.model.endswith("first"):
            raise ValueError("no luck")
        return by_rule(sent)

    world.answer = fails
    program = plain()
    program.set_lm(Routed(world.lm("first"), world.lm("second")))
    return program


OLD_POOL = multiprocessing.pool.ThreadPool(4)
"""Threads that were there before any run."""


@case
def a_pool_from_before(world: World) -> Any:
    program = Program(lambda self, question: OLD_POOL.apply(self.say, kwds={"question": question}))
    program.set_lm(world.lm("target"))
    return program


MIXED |= {"a pool from before"}  # nobody knows for whom its threads work


@case
def a_retriever_with_a_thread_of_its_own(world: World) -> Any:
    embed = dspy.Embedder("openai/embedder", api_base=world.server.base, api_key=KEY, caching=False)
    found = dspy.retrievers.Embeddings(corpus=["one", "two"], embedder=embed, k=1)
    return Program(lambda self, question: found(question) and self.say(question=question))


class Drafting(dspy.BaseLM):  # type: ignore[misc]
    """A model of a user's that asks LiteLLM twice for each reply."""

    def __init__(self, base: str) -> None:
        super().__init__(model="drafting")
        self.base = base

    def forward(self, prompt: Any = None, messages: Any = None, **options: Any) -> Any:
        import litellm

        litellm.completion(model="openai/draft", messages=messages, api_base=self.base, api_key=KEY)
        return litellm.completion(model="openai/final", messages=messages, api_base=self.base, api_key=KEY)


@case
def a_model_that_asks_litellm_twice(world: World) -> Any:
    program = plain()
    program.set_lm(Drafting(world.server.base))
    return program


@case
def a_class_of_models_made_in_forward(world: World) -> Any:
    def forward(self: Program, question: str) -> dspy.Prediction:
        class Late(dspy.LM):  # type: ignore[misc]
            def __call__(self, prompt: str) -> Any:
                world.others.append("late")
                return [prompt]

        Late("door/late")("hello")
        return self.say(question=question)

    return Program(forward)


@case
def a_program_that_reads_histories(world: World) -> Any:
    def forward(self: Program, question: str) -> dspy.Prediction:
        found = self.say(question=question)
        assert self.say.history and dspy.settings.lm.history[-1]["usage"]["total_tokens"] == EACH
        return found

    return Program(forward)


@case
def a_metric_that_is_a_module(world: World) -> Any:
    class Judge(dspy.Module):  # type: ignore[misc]
        def forward(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
            world.lm("judge")("right?")
            return graded(example, prediction)

    return plain(), Judge()


@case
def a_lambda_around_an_awaited_metric(world: World) -> Any:
    async def judge(example: dspy.Example, prediction: dspy.Prediction) -> float:
        await world.lm("judge").acall("right?")
        return graded(example, prediction)

    return plain(), lambda example, prediction: judge(example, prediction)


@case
def best_of_n(world: World) -> Any:
    return dspy.BestOfN(module=plain(), N=2, reward_fn=lambda args, pred: 0.5, threshold=1.0)


@case
def refine(world: World) -> Any:
    return dspy.Refine(module=plain(), N=2, reward_fn=lambda args, pred: 0.5, threshold=1.0)


@case
def react(world: World) -> Any:
    def look_up(word: str) -> str:
        """Look a word up."""
        return word

    return dspy.ReAct("question -> answer", tools=[look_up], max_iters=2)


@case
def a_tool_that_asks(world: World) -> Any:
    def look_up(word: str) -> str:
        """Look a word up."""
        return str(world.lm("inner")(word)[0])

    return dspy.ReAct("question -> answer", tools=[look_up], max_iters=2)


class Compared(dspy.Module):  # type: ignore[misc]
    """Two chains, compared."""

    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")
        self.compare = dspy.MultiChainComparison("question -> answer", M=2)

    def forward(self, question: str) -> dspy.Prediction:
        chains = [self.think(question=question, config={"rollout_id": i, "temperature": 1.0}) for i in range(2)]
        return self.compare(chains, question=question)


@case
def chains_compared(world: World) -> Any:
    return Compared()


@case
def an_ensemble(world: World) -> Any:
    made = dspy.Ensemble(reduce_fn=lambda outs: outs[0])
    return made.compile([plain(), dspy.ChainOfThought("question -> answer")])


@case
def a_lazy_retriever(world: World) -> Any:
    return asking(lambda self, world: next(words(world.lm("inner"), 2)))(world)


@case
def an_adapter_that_asks(world: World) -> Any:
    def forward(self: Program, question: str) -> dspy.Prediction:
        with dspy.context(adapter=dspy.TwoStepAdapter(world.lm("inner"))):
            return self.say(question=question)

    return Program(forward)


# --- metrics that ask --------------------------------------------------------------------------------------

JUDGES: dict[str, Any] = {}


def judge(world: World) -> dspy.LM:
    """Return the judge."""
    return world.lm("judge")


def ask(lm: dspy.BaseLM) -> bool:
    """Ask it."""
    return bool(lm("is it right?"))


def helped(lm: dspy.BaseLM, example: dspy.Example, prediction: dspy.Prediction) -> float:
    """Score, with the judge's help."""
    return graded(example, prediction) if ask(lm) else 0.0


class Judging:
    """A metric that is an object with a model two objects deep."""

    def __init__(self, lm: dspy.BaseLM) -> None:
        self.parts = types.SimpleNamespace(models={"judge": [lm]})

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        return helped(self.parts.models["judge"][0], example, prediction)


def by_global(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
    """Score by the judge in a table of the module."""
    return helped(JUDGES["lm"], example, prediction)


@case
def a_judge_in_a_helper(world: World) -> Any:
    lm = judge(world)

    def opinion(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return helped(lm, example, prediction)

    return lambda example, prediction, trace=None: opinion(example, prediction)


@case
def a_judge_in_a_global_dict(world: World) -> Any:
    JUDGES["lm"] = judge(world)
    return by_global


@case
def a_judge_in_a_configuration(world: World) -> Any:
    config = types.SimpleNamespace(models=types.SimpleNamespace(judge=judge(world)))
    return lambda example, prediction, trace=None: helped(config.models.judge, example, prediction)


@case
def a_judge_in_a_partial(world: World) -> Any:
    def metric(lm: dspy.LM, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        return helped(lm, example, prediction)

    return functools.partial(metric, judge(world))


@case
def a_judge_two_objects_deep(world: World) -> Any:
    return Judging(judge(world))


@case
def a_judge_made_in_the_metric(world: World) -> Any:
    return lambda example, prediction, trace=None: helped(judge(world), example, prediction)


@case
def a_judge_that_is_a_program(world: World) -> Any:
    program = dspy.Predict("question, given -> opinion")
    program.set_lm(judge(world))

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        program(question=example.question, given=prediction.answer)
        return graded(example, prediction)

    return metric


@case
def a_judge_by_litellm(world: World) -> Any:
    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        return graded(example, prediction) if completion(world, "judge") else 0.0

    return metric


@case
def a_judge_in_a_thread(world: World) -> Any:
    pool, lm = ThreadPoolExecutor(2, thread_name_prefix="kept"), judge(world)
    return lambda example, prediction, trace=None: pool.submit(helped, lm, example, prediction).result()


@case
def a_judge_awaited(world: World) -> Any:
    lm = judge(world)

    async def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        await lm.acall("is it right?")
        return graded(example, prediction)

    return metric


@case
def an_evaluation_in_the_metric(world: World) -> Any:
    inner = dspy.Predict("question -> opinion")
    inner.set_lm(judge(world))

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        evaluate = dspy.Evaluate(devset=TRAIN[:2], metric=lambda e, p: 1.0, num_threads=2, display_progress=False)
        return graded(example, prediction) if evaluate(inner).score else 0.0

    return metric


# --- scores and answers of other kinds ---------------------------------------------------------------------


def scored(score: Callable[[bool], Any]) -> Metric:
    """Return a metric with other scores."""
    return lambda example, prediction, trace=None: score(prediction.answer == example.answer)


SCORES: Mapping[str, Callable[[bool], Any]] = {
    "scores 1 to 5": lambda right: 5 if right else 2,
    "scores 0 to 100": lambda right: 90.0 if right else 40.0,
    "negative scores": lambda right: -1.0 if right else -7.5,
    "scores that never reach 1": lambda right: 0.9 if right else 0.2,
    "always the same score": lambda right: 0.5,
    "no score for some": lambda right: 1.0 if right else None,
    "minus infinity for some": lambda right: 1.0 if right else -math.inf,
    "a numpy bool": lambda right: np.bool_(right),
    "a numpy float": lambda right: np.float32(0.75 if right else 0.25),
    "a decimal": lambda right: decimal.Decimal("0.75") if right else decimal.Decimal("0.25"),
    "feedback": lambda right: dspy.Prediction(score=1.0 if right else 0.2, feedback="It should be a word."),
}
for _name, _score in SCORES.items():
    MAKERS[_name] = lambda world, score=_score: (plain(), scored(score))  # type: ignore[misc]


@case
def five_arguments(world: World) -> Any:
    return lambda gold, pred, trace, pred_name, pred_trace: dspy.Prediction(score=graded(gold, pred), feedback="so so")


@case
def an_awaited_metric(world: World) -> Any:
    async def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        await asyncio.sleep(0)
        return graded(example, prediction)

    return metric


def right(sent: Sent) -> bool:
    """Say whether the rule is right."""
    return "none" not in by_rule(sent)


def answering(kind: str, write: Callable[[bool], str], good: Callable[[Any], bool]) -> Callable[[World], Any]:
    """Return what makes a program whose answers are of another kind."""

    def maker(world: World) -> Any:
        world.answer = lambda sent: fields(answer=write(right(sent)))
        signature = dspy.Signature(f"question -> answer: {kind}", "Answer as you are asked.", custom_types=KINDS)
        return dspy.Predict(signature), lambda e, p, trace=None: 1.0 if good(p.answer) else PARTLY

    return maker


class Person(pydantic.BaseModel):
    """An answer with parts."""

    name: str
    tags: list[str] = []


KINDS = {"Person": Person}
TEXT = "A sentence of some eight words, again and again. " * 250
ANSWERS: Mapping[str, tuple[str, Callable[[bool], str], Callable[[Any], bool]]] = {
    "answers of 2,000 words": ("str", lambda ok: TEXT + ("good" if ok else "bad"), lambda a: a.endswith("good")),
    "answers in JSON": ("str", lambda ok: json.dumps({"good": ok, "why": ["{", '"']}), lambda a: json.loads(a)["good"]),
    "answers that are lists": ("list[str]", lambda ok: json.dumps(["a", "b"] if ok else []), lambda a: len(a) == 2),
    "answers that are objects": (
        "Person", lambda ok: json.dumps({"name": "Ann" if ok else "Bob"}), lambda a: a.name == "Ann"),
    "answers that are numbers": ("float", lambda ok: "1.5" if ok else "-2", lambda a: a > 0),
    "answers that are missing": ("Optional[str]", lambda ok: "yes" if ok else "null", lambda a: a == "yes"),
}  # fmt: skip
for _name, _answer in ANSWERS.items():
    MAKERS[_name] = answering(*_answer)


class Picture(dspy.Signature):  # type: ignore[misc]
    """Answer as you are asked."""

    question: str = dspy.InputField()
    picture: dspy.Image = dspy.InputField()
    answer: str = dspy.OutputField()


@case
def pictures(world: World) -> Any:
    image = dspy.Image(url="data:image/png;base64," + base64.b64encode(b"\x89PNG" * 3000).decode())
    return Program(lambda self, question: self.kept.look(question=question, picture=image), look=dspy.Predict(Picture))


MIXED |= {"an adapter that asks"}

# --- the tests ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Provider]:
    """A provider on the loopback interface."""
    importlib.import_module("litellm")  # seconds, which no case should pay
    with Provider(replies()) as running:
        yield running


@dataclasses.dataclass
class Ran:
    """A compile: its record, where it is kept, and what was asked."""

    compilation: Compilation
    run_dir: Path | None
    asked: Mapping[str, int]

    @property
    def calls(self) -> int:
        return sum(self.asked.values())

    @property
    def counted(self) -> Mapping[str, int]:
        return {role: usage.calls for role, usage in self.compilation.spent.by_role.items() if usage.calls}


def run(name: str, server: Provider, run_dir: Path | None = None, in_flight: int = 8, **caps: Any) -> Ran:
    """Compile a case, all of whose objects are new."""
    world = World(server)
    student, metric = MAKERS[name](world)
    world.begin()
    with dspy.context(lm=world.lm("target")):
        compiled = cuesmith.compile(
            student, "iterative-ape", metric=metric, trainset=TRAIN, valset=VALID, run_dir=run_dir, seed=3,
            optimizer_lm=world.lm("optimizer"), max_in_flight=in_flight, example_timeout=PATIENCE,
            budget=Budget(**caps) if caps else None, **SMALL,
        )  # fmt: skip
    return Ran(compiled.compilation, run_dir, world.by_role)


@pytest.fixture(scope="module")
def whole(server: Provider, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ran]:
    """The cases without a cap, each compiled once."""
    return functools.cache(lambda name: run(name, server, tmp_path_factory.mktemp("whole")))


def replays(first: Ran, again: Ran) -> None:
    """Check that the same again sent nothing, and gave the same."""
    assert again.calls == 0, f"paid again: {again.asked}"
    assert facts(again.compilation, spent=False) == facts(first.compilation, spent=False)
    assert again.compilation.spent.total.calls == first.compilation.spent.total.calls


@pytest.mark.parametrize("name", MAKERS)
def test_every_call_is_counted_for_its_role_and_every_reply_replayed(
    name: str, server: Provider, whole: Callable[[str], Ran]
) -> None:
    """No more, and no fewer, than arrived."""
    ran = whole(name)
    assert ran.compilation.spent.total.calls == ran.calls
    assert name in MIXED or ran.counted == ran.asked
    assert ran.compilation.stopped_by is None
    replays(ran, run(name, server, ran.run_dir))


@pytest.mark.parametrize("in_flight", [pytest.param(1, marks=pytest.mark.slow), 64])
@pytest.mark.parametrize("name", MAKERS)
def test_a_cap_holds(name: str, in_flight: int, server: Provider, whole: Callable[[str], Ran], tmp_path: Path) -> None:
    """Not one call more arrives, every one is counted, and what was called in other threads is not waited for.

    The same again sends nothing, also where a cap has cut it.
    """
    cap, began = max(1, whole(name).calls * 6 // 10), time.monotonic()
    ran = run(name, server, tmp_path, in_flight, calls=cap)
    assert time.monotonic() - began < PATIENCE / 2
    assert ran.calls <= cap
    assert ran.compilation.spent.total.calls == ran.calls
    assert ran.compilation.stopped_by == "calls"
    if in_flight > 1:
        replays(ran, run(name, server, tmp_path, in_flight, calls=cap))


TOKENS = ["a judge in a global dict", "a judge that is a program", "the same pool always", "a request object", "react"]


@pytest.mark.parametrize("in_flight", [1, 64])
@pytest.mark.parametrize("name", TOKENS)
def test_a_cap_on_tokens_holds(name: str, in_flight: int, server: Provider, whole: Callable[[str], Ran]) -> None:
    """What all calls used stays below it."""
    cap = EACH * whole(name).calls * 6 // 10
    ran = run(name, server, in_flight=in_flight, tokens=cap)
    assert EACH * ran.calls == ran.compilation.spent.total.tokens <= cap
    assert ran.compilation.stopped_by == "tokens"


@pytest.mark.parametrize("in_flight", [1, 64])
def test_a_cap_in_dollars_holds_for_a_judge_that_is_found_nowhere(in_flight: int, server: Provider) -> None:
    """Two models of different, known prices on a server."""
    world = World(server)
    JUDGES["lm"] = world.served("gpt-4.1-mini")
    world.begin()
    with dspy.context(lm=world.served("gpt-4.1-nano")):
        found: Compilation = cuesmith.compile(
            plain(), "iterative-ape", metric=by_global, trainset=TRAIN, valset=VALID, max_in_flight=in_flight,
            budget=Budget(usd=0.006), **SMALL,
        ).compilation  # fmt: skip
    prices = importlib.import_module("litellm").model_cost
    paid = sum(n * (400 * prices[name]["input_cost_per_token"] + 100 * prices[name]["output_cost_per_token"])
               for name, n in world.asked.items())  # fmt: skip
    assert found.spent.total.usd == pytest.approx(paid) and paid <= 0.006
    assert found.stopped_by == "usd" and found.spent.by_role["judge"].calls == world.asked["gpt-4.1-mini"] > 0

"""What a user of dspy's optimizers has with dspy, he has here: each option, the evidence, and names in one line."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest
from e2e_support import ToyEngine, exact, number, result_of, toy_lm, toy_reply, words
from test_peers import Learner, Toy, Two, learnt, reply

import cuesmith
from cuesmith import Budget
from cuesmith.modules.prompter import Prompted
from cuesmith.teleprompters.align_pro import AlignPro
from cuesmith.teleprompters.alignment.training import Training
from cuesmith.teleprompters.alignment.training_result import alignment_of
from cuesmith.teleprompters.peers import COPRO, GEPA, MIPRO, SIMBA, Bootstrap, Peer
from cuesmith.teleprompters.peers.gepa import PASSED_ON
from cuesmith.teleprompters.registry import ALIASES, COMPILERS, compiler_class
from cuesmith.testing import Sent

KERNEL = {
    "metric": "the metric that every compiler has",
    "num_threads": "max_in_flight",
    "student": "compile's",
    "trainset": "compile's, of which the run keeps the report's examples hidden",
    "valset": "compile's",
    "seed": "the seed that every compiler has",
    "prompt_model": "optimizer_lm",
    "task_model": "the configured model, or the student's own",
    "reflection_lm": "optimizer_lm",
    "max_errors": "a run that fails counts as 0, a provider that fails ends the run: no number of errors does",
    "log_dir": "run_dir: a second checkpoint would answer for calls that the record never saw",
    "use_wandb": "callbacks and the record: a resumed run would log everything again",
    "wandb_api_key": "see use_wandb",
    "wandb_init_kwargs": "see use_wandb",
    "use_mlflow": "see use_wandb",
    "verbose": "a library does not print",
    "provide_traceback": "see verbose",
    "warn_on_score_mismatch": "see verbose",
    "kwargs": "swallows misspelt options",
    "_kwargs": "swallows misspelt options",
    "eval_kwargs": "num_threads and displays of dspy's Evaluate",
    "requires_permission_to_run": "deprecated: raises if it is True",
}
"""dspy's parameters that every hosted optimizer has otherwise, or that mean nothing here -> what stands for them."""

KEPT = {"track_stats": "the record has every program that was scored: compilation.candidates"}

HOSTED: dict[type[Peer], tuple[type[Any], Mapping[str, str]]] = {
    MIPRO: (dspy.MIPROv2, KEPT),
    GEPA: (dspy.GEPA, {
        "teacher": "refused by dspy.GEPA",
        "code_proposer": "writes code of dspy.Flex modules, and a candidate holds instructions and demonstrations",
    }),
    SIMBA: (dspy.SIMBA, {}),
    COPRO: (dspy.COPRO, KEPT),
    Bootstrap: (dspy.BootstrapFewShotWithRandomSearch, {}),
}  # fmt: skip
"""Ours -> dspy's, and which of its parameters are left out besides `KERNEL`, each with the reason."""

OTHERWISE = {(GEPA, "auto"): "dspy demands one of three limits"}
"""Options whose default is not dspy's."""

GEPA_LEFT_OUT = {
    **dict.fromkeys(("task_lm", "evaluator"), "are for gepa's own adapter; dspy gives another"),
    **dict.fromkeys(("reflection_lm_kwargs",), "is for a model that is given by name; dspy gives a function"),
    **dict.fromkeys(("custom_candidate_proposer", "reflection_strategy"), "gepa refuses them beside dspy's adapter"),
    **dict.fromkeys(("reflection_prompt_template", "max_reflection_cost"), "dspy refuses them"),
    **dict.fromkeys(
        ("wandb_attach_existing", "mlflow_attach_existing", "mlflow_tracking_uri", "mlflow_experiment_name",
         "tracking_key_prefix"), "are for loggers, see KERNEL"),
    "use_cloudpickle": "is for the checkpoint, see log_dir",
}  # fmt: skip
"""Options of `gepa.optimize` that neither dspy.GEPA gives itself nor `gepa_kwargs` takes."""


def parameters(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Return a method's parameters but for `self`."""
    return {name: p for name, p in inspect.signature(function).parameters.items() if name != "self"}


@pytest.mark.parametrize("kind", list(HOSTED))
def test_each_option_of_dspys_is_an_option_or_left_out_with_a_reason(kind: type[Peer]) -> None:
    theirs, left_out = HOSTED[kind]
    known = parameters(theirs.__init__) | parameters(theirs.compile)
    own = {name: p for name, p in parameters(kind.__init__).items() if p.kind is p.KEYWORD_ONLY}
    missing = set(known) - set(own) - set(KERNEL) - set(left_out)
    assert not missing, f"dspy's {theirs.__name__} has {missing}: make them options, or say here why not"
    assert not set(left_out) - set(known) and not set(own) & set(left_out), "a reason for nothing"
    defaults = {**parameters(theirs.compile), **parameters(theirs.__init__)}
    for name in set(own) & set(known):
        same = own[name].default == defaults[name].default
        assert same or (kind, name) in OTHERWISE, f"{name}: {own[name].default} here, {defaults[name].default} there"


def test_what_gepa_takes_besides_is_passed_on_or_left_out_with_a_reason() -> None:
    gepa = importlib.import_module("gepa")
    source = inspect.getsource(dspy.GEPA.compile).partition("optimize(\n")[2]
    given = set(re.findall(r"^ +(\w+)=", source, re.MULTILINE))
    known = set(inspect.signature(gepa.optimize).parameters)
    assert given <= known and {"adapter", "seed", "module_selector"} <= given
    assert known - given == {*PASSED_ON, *GEPA_LEFT_OUT} and not set(PASSED_ON) & {*given, *GEPA_LEFT_OUT}


# --- evidence ------------------------------------------------------------------------------------------------


class Reflecting(Toy):
    """A toy whose optimizer model keeps what it is shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        super().__init__(optimizer=ToyEngine(reply=self._reply))

    def _reply(self, system: str, user: str, drawn: int | None = None) -> str:
        self.shown.append(user)
        return reply(system, user, drawn)

    @property
    def told(self) -> str:
        """All of it."""
        return "\n".join(self.shown)


def test_gepa_is_told_what_was_expected_of_a_wrong_answer_alone() -> None:
    toy = Reflecting()
    record = toy.compile("gepa").compilation
    shown = [json.loads(text) for text in re.findall(r"^\[\{.*\}\]$", toy.told, re.MULTILINE)]
    told = [one for each in shown for one in each]
    assert len(told) > 4 and {one["Generated Outputs"]["answer"] == "no" for one in told} == {True, False}
    for one in told:
        word, wrong = one["Inputs"]["question"].removeprefix("say "), one["Generated Outputs"]["answer"] == "no"
        expected = f"0.0.\nexpected answer: {word}" if wrong else "1.0."
        assert one["Feedback"] == f"This trajectory got a score of {expected}"
    assert not any("expected" in str(t) for t in record.candidates), "it is evidence, and no part of the record"
    toy = Reflecting()
    toy.compile("gepa", expected_as_feedback=False)
    assert "expected answer" not in toy.told and "got a score of 0.0" in toy.told


def test_only_the_rewritten_predictors_answers_are_expected_of_it() -> None:
    toy = Reflecting()
    examples = [dspy.Example(**e, source=f"book {i}").with_inputs("question") for i, e in enumerate(words(12, "t"))]
    with dspy.context(lm=toy_lm(toy.task)):
        compiler = GEPA(exact, optimizer_lm=toy_lm(toy.optimizer), max_metric_calls=60)
        compiler.compile(dspy.Predict("question -> answer"), trainset=examples, valset=words(16, "v"))
    assert "expected answer" in toy.told and "book" not in toy.told


class Drafted(dspy.Module):  # type: ignore[misc]
    """Two stages, the first without a label of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = dspy.Predict("question -> draft"), dspy.Predict("question, draft -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """Draft, then answer."""
        return self.second(question=question, draft=self.first(question=question).draft)


def test_another_stages_label_is_called_the_programs() -> None:
    toy = Reflecting()
    toy.compile("gepa", student=Drafted(), component_selector="all")
    kinds = {
        "draft" in one["Generated Outputs"]: re.findall(r"^.*expected.*(?=: )", one["Feedback"], re.MULTILINE)
        for text in re.findall(r"^\[\{.*\}\]$", toy.told, re.MULTILINE)
        for one in json.loads(text)
        if "expected" in one["Feedback"]
    }
    assert kinds == {True: ["the program's expected answer"], False: ["expected answer"]}


def test_the_metrics_own_words_stand_and_five_arguments_get_the_predictor() -> None:
    seen: set[tuple[str | None, int]] = set()

    def five(
        gold: dspy.Example, pred: dspy.Prediction, trace: object, pred_name: str | None, pred_trace: Any
    ) -> dspy.Prediction:
        seen.add((pred_name, len(pred_trace or ())))
        hint = f"{pred_name} should repeat" if number(gold.question) % 2 else None
        return dspy.Prediction(score=float(exact(gold, pred)), feedback=hint)

    toy = Reflecting()
    toy.compile("gepa", metric=five, student=Two(), component_selector="all")
    assert seen == {(None, 0), ("first", 1), ("second", 1)}
    assert "second should repeat" in toy.told and "expected answer" in toy.told
    assert not re.search(r"should repeat[^\"]*expected", toy.told)


def test_what_else_a_metric_gives_reaches_gepa_and_simba() -> None:
    def judged(example: dspy.Example, prediction: dspy.Prediction) -> dspy.Prediction:
        right = float(exact(example, prediction))
        return dspy.Prediction(score=right, objective_scores={"right": right, "short": 1.0}, seen_by="nobody")

    toy = Reflecting()
    compiled = toy.compile(
        "gepa", metric=judged, gepa_kwargs={"frontier_type": "hybrid"}, track_stats=True, track_best_outputs=True
    )
    found = compiled.compilation.extras["detailed_results"]
    assert isinstance(found.best_candidate, dspy.Predict) and set(found.objective_pareto_front) == {"right", "short"}
    assert not hasattr(compiled, "detailed_results"), "as docs/from-dspy.md says"
    trials = {trial.candidate.id: trial for trial in compiled.compilation.candidates}
    assert {parent for one in trials.values() for parent in one.candidate.origin.parents} <= {*trials}
    assert found.best_outputs_valset and len(found.val_aggregate_scores) == len(found.candidates) > 1
    assert "expected answer" in toy.told
    toy, numbers = Reflecting(), itertools.count()
    toy.task = ToyEngine(reply=lambda system, user, drawn: toy_reply(f"skill={9 * (next(numbers) // 6 % 2)}", user))
    toy.compile("simba", metric=judged, max_demos=0, max_in_flight=1)
    assert "nobody" in toy.told


def test_gepas_model_is_asked_at_temperature_1_where_its_own_is_0() -> None:
    found: list[object] = []

    def proposer(**given: object) -> dict[str, str]:
        found.append(dspy.settings.lm.kwargs.get("temperature"))
        return {}

    for own in (0, 0.7, None):
        toy = Toy()
        toy.compile("gepa", optimizer_lm=toy_lm(toy.optimizer, temperature=own), instruction_proposer=proposer)
    assert list(dict.fromkeys(found)) == [1.0, 0.7, None]


# --- parts that a user writes ----------------------------------------------------------------------------------


def test_a_proposer_and_a_selector_of_ones_own_are_within_the_run(tmp_path: Path) -> None:
    asked: list[list[str]] = []
    own = ToyEngine(reply=reply)
    student = Two()

    def proposer(
        candidate: dict[str, str], reflective_dataset: dict[str, list[Any]], components_to_update: list[str]
    ) -> dict[str, str]:
        asked.append(list(components_to_update))
        with dspy.context(lm=toy_lm(own, "own")):
            mine = dspy.Predict("feedback -> instruction")(feedback=str(reflective_dataset))
        theirs = dspy.Predict("feedback -> instruction")(feedback=str(reflective_dataset))
        return dict.fromkeys(components_to_update, f"{mine.instruction} {theirs.instruction}")

    def last(state: object, trajectories: object, scores: object, index: int, candidate: dict[str, str]) -> list[str]:
        return [list(candidate)[-1]]

    toy = Toy()
    options: dict[str, Any] = {"instruction_proposer": proposer, "component_selector": last}
    record = toy.compile("gepa", student=student, run_dir=tmp_path, **options).compilation
    roles = {role: used.calls for role, used in record.spent.by_role.items()}
    assert asked and all(names == ["second"] for names in asked)
    assert roles["optimizer"] == toy.optimizer.calls + own.calls == 2 * len(asked) and roles["target"] == toy.task.calls
    best, given = record.best.candidate, record.baseline.candidate
    assert best.prompts["first"] == given.prompts["first"] and "skill" in best.prompts["second"].instructions
    again, calls = Toy(), own.calls
    resumed = again.compile("gepa", student=student, run_dir=tmp_path, **options)
    assert again.calls == 0 and own.calls == calls, "a recorded call of a proposer is paid once"
    assert resumed.compilation.best.candidate == best
    capped = Toy()
    record = capped.compile("gepa", student=student, budget=Budget(calls=70), **options).compilation
    assert capped.calls + own.calls - calls == record.spent.total.calls <= 70


def test_dspys_proposer_with_options_is_known_as_its_own() -> None:
    from dspy.teleprompt.gepa import InstructionProposer

    toy = Reflecting()
    proposer = InstructionProposer(additional_instructions="Write in verse.", max_chars=200)
    with dspy.context(lm=toy_lm(toy.task)):
        compiler = GEPA(exact, optimizer_lm=toy_lm(toy.optimizer), instruction_proposer=proposer, max_metric_calls=60)
        student, train, val = dspy.Predict("question -> answer"), words(12, "t"), words(16, "v")
        forecast = compiler.estimate(student, trainset=train, valset=val)
        compiler.compile(student, trainset=train, valset=val)
    assert "Write in verse." in toy.told and "at most 200 characters" in toy.told
    assert toy.optimizer.calls <= forecast.optimizer_calls


def test_gepas_own_strategies_are_passed_on() -> None:
    from gepa.strategies.batch_sampler import EpochShuffledBatchSampler
    from gepa.strategies.proposal_sampling import SameParentSampling
    from gepa.strategies.proposal_selection import BestImprovement
    from gepa.utils import NoImprovementStopper

    class Seen:
        """Keeps which events came."""

        def __init__(self) -> None:
            self.events: list[str] = []

        def on_candidate_selected(self, event: object) -> None:
            self.events.append("selected")

    seen, toy = Seen(), Toy()
    given = {
        "sampling_strategy": SameParentSampling(2), "selection_strategy": BestImprovement(), "callbacks": [seen],
        "acceptance_criterion": "improvement_or_equal", "cache_evaluation": True,
        "stop_callbacks": NoImprovementStopper(3),
    }  # fmt: skip
    record = toy.compile("gepa", gepa_kwargs=given, candidate_selection_strategy="epsilon_greedy").compilation
    assert len(seen.events) >= 2 and record.stopped_by is None and record.spent.total.calls == toy.calls
    sampler: Any = EpochShuffledBatchSampler(5)
    options: dict[str, Any] = {"reflection_minibatch_size": None, "gepa_kwargs": {"batch_sampler": sampler}}
    with dspy.context(lm=toy_lm(Toy().task)):
        compiler = GEPA(exact, max_metric_calls=60, **options)
        forecast = compiler.estimate(dspy.Predict("question -> answer"), trainset=words(12, "t"), valset=words(16, "v"))
    toy = Toy()
    record = toy.compile("gepa", **options).compilation
    assert record.stopped_by is None and toy.task.calls <= forecast.program_runs
    assert toy.optimizer.calls <= forecast.optimizer_calls


def test_what_mipros_proposals_are_told_can_be_chosen() -> None:
    toy = Reflecting()
    toy.compile("mipro")
    parts = ("dataset_description", "program_code", "tip")
    assert all(f"## {part} ##" in toy.told for part in (*parts, "task_demos"))
    toy, aware = Reflecting(), ("program_aware", "data_aware", "tip_aware", "fewshot_aware")
    off: dict[str, Any] = {f"{each}_proposer": False for each in aware}
    assert toy.compile("mipro", **off).compilation.stopped_by is None
    assert toy.shown and not any(f"## {part} ##" in toy.told for part in parts)
    few, many = Reflecting(), Reflecting()
    few.compile("mipro", view_data_batch_size=2)
    many.compile("mipro", view_data_batch_size=12)
    assert few.optimizer.calls > many.optimizer.calls


# --- teachers ------------------------------------------------------------------------------------------------


def shouting(system: str, user: str, drawn: int | None = None) -> str:
    """Know every word but those with an even number, at which no reply can be read."""
    word = re.search(r"say (\S+)", user)
    if word and number(word[1]) % 2 == 0:
        return "unreadable"
    return f"[[ ## answer ## ]]\n{word[1] if word else 'no'}\n\n[[ ## completed ## ]]"


class Pupil(Learner):
    """Knows a word only once a demonstration shows what is wanted."""

    def _answer(self, sent: Sent) -> str:
        return super()._answer(sent) if len(sent.turns) > 1 else learnt("", "")


UNLABELED: Mapping[str, Mapping[str, Any]] = {
    "mipro": {"max_labeled_demos": 0}, "bootstrap": {"max_labeled_demos": 0}, "simba": {}}  # fmt: skip
"""What leaves successful runs as the only demonstrations."""


@pytest.mark.parametrize("name", list(UNLABELED))
def test_a_stronger_model_teaches_what_the_student_cannot(name: str, tmp_path: Path) -> None:
    untaught = Toy(task=Pupil()).compile(name, **UNLABELED[name]).compilation
    assert untaught.best.select.mean == 0
    strong, toy = ToyEngine(reply=shouting), Toy(task=Pupil())
    options: dict[str, Any] = {**UNLABELED[name], "teacher_settings": {"lm": toy_lm(strong, "strong")}}
    compiled = toy.compile(name, run_dir=tmp_path, max_in_flight=1, **options)
    record, used = compiled.compilation, compiled.compilation.spent.by_role
    assert strong.calls > 0 and len(compiled.demos) > 0 and record.best.select.mean == 1
    assert used["target"].calls == strong.calls + toy.task.calls
    calls = strong.calls
    again = Toy(task=Pupil())
    resumed = again.compile(name, run_dir=tmp_path, max_in_flight=1, **options)
    assert again.calls == 0 and strong.calls == calls and result_of(resumed)["best"] == result_of(compiled)["best"]


@pytest.mark.parametrize("name", ["mipro", "bootstrap"])
def test_a_program_teaches_with_its_own_model(name: str) -> None:
    strong, teacher = ToyEngine(reply=shouting), dspy.Predict("question -> answer")
    own = teacher.lm = toy_lm(strong, "strong")
    compiled = Toy(task=Pupil()).compile(name, teacher=teacher, **UNLABELED[name])
    assert strong.calls > 0 and compiled.compilation.best.select.mean == 1 and compiled.lm is None
    assert teacher.lm is own and teacher.demos == [] and type(teacher) is dspy.Predict


def test_a_teachers_failure_is_no_outcome_of_a_candidate() -> None:
    known: list[tuple[float | None, ...]] = []

    class Knowing(Bootstrap):
        async def search(self, run: Any) -> Any:
            found = await super().search(run)
            known.append(run.known(run.baseline, run.train))
            return found

    strong = ToyEngine(reply=shouting)
    for lm in (None, toy_lm(strong, "strong")):
        toy = Toy(task=ToyEngine(reply=shouting))
        with dspy.context(lm=toy_lm(toy.task)):
            settings = {} if lm is None else {"teacher_settings": {"lm": lm}}
            compiler = Knowing(exact, num_candidate_programs=1, max_labeled_demos=0, **settings)  # type: ignore[arg-type]
            compiler.compile(dspy.Predict("question -> answer"), trainset=words(12, "t"), valset=words(16, "v"))
    assert 0.0 in known[0], "the student's own failures are its own"
    assert strong.calls and set(known[1]) == {None}


def test_which_sets_bootstrap_compares_can_be_chosen() -> None:
    toy = Toy(task=Learner())
    with dspy.context(lm=toy_lm(toy.task)):
        compiler = Bootstrap(exact, restrict=[-3, -2], labeled_sample=False, max_labeled_demos=2)
        student, train, val = dspy.Predict("question -> answer"), words(12, "t"), words(16, "v")
        forecast = compiler.estimate(student, trainset=train, valset=val)
        compiled = compiler.compile(student, trainset=train, valset=val)
    assert [demo.question for demo in compiled.demos] == [example.question for example in train[:2]]
    assert toy.calls <= forecast.calls < 60


# --- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options", "error", "message"), [
    (GEPA, {"gepa_kwargs": {"log_dir": "x"}}, TypeError, "gepa_kwargs has no option log_dir: it takes acceptance_"),
    (GEPA, {"gepa_kwargs": ["x"]}, TypeError, "gepa_kwargs must be a mapping"),
    (GEPA, {"gepa_kwargs": {"frontier_type": "wide"}}, ValueError, "gepa_kwargs['frontier_type'] must be one of"),
    (GEPA, {"gepa_kwargs": {"batch_sampler": object()}}, ValueError, "give reflection_minibatch_size=None with it"),
    (GEPA, {"track_best_outputs": True}, ValueError, "needs track_stats=True"),
    (GEPA, {"instruction_proposer": "me"}, TypeError, "instruction_proposer must be callable"),
    (GEPA, {"candidate_selection_strategy": "best"}, ValueError, "candidate_selection_strategy must be one of"),
    (GEPA, {"expected_as_feedback": 1}, TypeError, "expected_as_feedback must be True or False"),
    (MIPRO, {"teacher_settings": {"trace": []}}, ValueError, "teacher_settings has trace: it takes lm, adapter"),
    (SIMBA, {"teacher_settings": {"adapter": None}}, ValueError, "teacher_settings has adapter: it takes lm"),
    (SIMBA, {"teacher_settings": {"lm": "gpt"}}, TypeError, "teacher_settings['lm'] must be a dspy.LM, got 'gpt'"),
    (MIPRO, {"teacher_settings": {"lm": None}}, TypeError, "teacher_settings['lm'] must be a dspy.LM, got None"),
    (Bootstrap, {"teacher_settings": "gpt"}, TypeError, "teacher_settings must be a mapping"),
    (Bootstrap, {"restrict": [16]}, ValueError, "restrict must be from -3 to 15, got 16"),
    (Bootstrap, {"restrict": []}, ValueError, "restrict must name at least one set"),
    (Bootstrap, {"restrict": 3}, TypeError, "restrict must be a list"),
    (AlignPro, {"training": Training()}, ValueError, "there is none: give prompter="),
    (AlignPro, {"pairs": [("a", "b")]}, ValueError, "pairs are for a local prompter"),
])  # fmt: skip
def test_options_are_checked_early(
    kind: type[Any], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        kind(exact, **options)


@pytest.mark.parametrize(("teacher", "error", "message"), [
    ("gpt", TypeError, "teacher must be a dspy.Module or None"),
    (Two(), ValueError, "teacher must have the student's predictors (self), it has first, second"),
    (dspy.Predict("question -> answer, why"), ValueError, "teacher's predictor 'self' has other"),
])  # fmt: skip
def test_a_teacher_that_cannot_teach_is_refused_before_it_costs(
    teacher: object, error: type[Exception], message: str
) -> None:
    toy = Toy()
    with pytest.raises(error, match=re.escape(message)):
        toy.compile("bootstrap", teacher=teacher)
    with pytest.raises(ValueError, match="cannot be held: cuesmith-test/strong runs on a custom engine"):
        toy.compile("simba", budget=Budget(usd=1), teacher_settings={"lm": toy_lm(ToyEngine(), "strong")})
    assert toy.calls == 0


# --- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(COMPILERS))
def test_the_swap_is_one_line_with_every_name(name: str) -> None:
    toy, student = Toy(), dspy.Predict("question -> answer")
    with dspy.context(lm=toy_lm(toy.task)):
        compiled = cuesmith.compile(student, name, metric=exact, trainset=words(40), optimizer_lm=toy_lm(toy.optimizer))
        record = compiled.compilation
        assert record.spent.total.calls == toy.calls > 0 and compiled(question="say w1").answer
    assert record.compiler == compiler_class(name).__name__ and record.stopped_by is None
    assert record.best.select is not None and record.baseline.select is not None
    assert record.best.select.mean >= record.baseline.select.mean and student.signature.instructions.startswith("Given")


@pytest.mark.parametrize(("said", "name"), [
    *ALIASES.items(), *((name, name) for name in COMPILERS),
    *((name.upper().replace("-", "_"), name) for name in COMPILERS),
    ("MIPROv2", "mipro"), ("BootstrapFewShotWithRandomSearch", "bootstrap"), ("bootstraprs", "bootstrap"),
    ("BootstrapRS", "bootstrap"), ("promptagent", "prompt-agent"), ("AlignPro", "align-pro"), ("APOSum", "apo-sum"),
    ("iterative_ape", "iterative-ape"), ("APE", "iterative-ape"), ("GEPA", "gepa"),
])  # fmt: skip
def test_a_compiler_has_several_names(said: str, name: str) -> None:
    assert compiler_class(said) is compiler_class(name)


@pytest.mark.parametrize(("said", "meant"), [
    ("mirpo", "did you mean 'mipro'? There are abo, align-pro"), ("prompt agnet", "did you mean 'prompt-agent'?"),
    ("mipro v2", "did you mean 'mipro'?"), ("zzz", "is called 'zzz': there are abo"), (3, "is called 3: there are"),
])  # fmt: skip
def test_a_name_that_is_none_is_answered_by_the_nearest(said: Any, meant: str) -> None:
    with pytest.raises(ValueError, match=re.escape(meant)):
        compiler_class(said)


# --- Align-Pro without a prompter ------------------------------------------------------------------------------


def spelt(system: str, user: str, drawn: int | None = None) -> str:
    """As a target, know only words in capitals; as a prompter, write them so."""
    if "`rewritten`" in system:
        text = re.search(r"\[\[ ## text ## \]\]\s*(.*?)\s*\n\nRespond", user, re.DOTALL)
        return f"[[ ## rewritten ## ]]\n{text[1].upper() if text else '?'}\n\n[[ ## completed ## ]]"
    word = re.search(r"\[\[ ## question ## \]\]\s*SAY (\S+)", user)
    return f"[[ ## answer ## ]]\n{word[1].lower() if word else 'no'}\n\n[[ ## completed ## ]]"


def align(**options: Any) -> tuple[dspy.Module, Sequence[ToyEngine]]:
    """Compile a program that needs capitals by "align-pro" in one line; returns it and the engines."""
    task, optimizer = ToyEngine(reply=spelt), ToyEngine(reply=spelt)
    with dspy.context(lm=toy_lm(task)):
        compiled = cuesmith.compile(
            dspy.Predict("question -> answer"), "align-pro", trainset=words(12, "t"), valset=words(40, "v"),
            **{"metric": exact, "optimizer_lm": toy_lm(optimizer, "optimizer"), **options},
        )  # fmt: skip
        assert not isinstance(compiled, Prompted) or compiled(question="say x").answer == "x"
    return compiled, (task, optimizer)


def test_without_a_prompter_the_optimizer_rewrites_untrained_and_a_note_says_so(tmp_path: Path) -> None:
    compiled, (task, optimizer) = align(run_dir=tmp_path)
    record = compiled.compilation
    assert isinstance(compiled, Prompted) and record.best.candidate.origin.move == "untrained prompter"
    assert record.baseline.select.mean == 0 and record.best.select.mean == 1 and record.gain.low > 0
    (note,) = [note for note in record.notes if note.kind == "alignment"]
    assert note.startswith("Nothing is trained: the optimizer model rewrites as it is. To train a prompter, give ")
    assert (found := alignment_of(record)) is not None and found.curve == () and found.verdict() == ""
    assert task.calls + optimizer.calls == record.spent.total.calls + 2, "and the two of a run afterwards"
    assert optimizer.calls > 20, "the prompter is the optimizer model"
    again, engines = align(run_dir=tmp_path)
    assert again.compilation.best.candidate == record.best.candidate and sum(e.calls for e in engines) == 2


def test_a_prompter_by_default_keeps_to_the_budget_and_the_estimate() -> None:
    compiled, _ = align(budget=Budget(calls=45))
    record = compiled.compilation
    assert record.spent.total.calls <= 45 and record.stopped_by == "calls"
    assert any("Nothing is trained" in note for note in record.notes)
    engine = ToyEngine(reply=spelt)
    with dspy.context(lm=toy_lm(engine)):
        compiler = AlignPro(exact)  # the configured model is optimizer and prompter
        student, train, val = dspy.Predict("question -> answer"), words(12, "t"), words(40, "v")
        forecast = compiler.estimate(student, trainset=train, valset=val)
        assert engine.calls == 0
        done = compiler.compile(student, trainset=train, valset=val)
    best = done.compilation.best.select
    assert best is not None and best.mean == 1 and engine.calls <= forecast.calls


def test_weights_without_a_prompter_take_the_optimizer_model_too() -> None:
    def loud(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return float(prediction.answer != "no")

    compiled, _ = align(metric=loud, mode="weights", rewrites=2, yardstick=2)
    assert compiled.compilation.best.select.mean == 1
    assert not any("Nothing is trained" in note for note in compiled.compilation.notes)

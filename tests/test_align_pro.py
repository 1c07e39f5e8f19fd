"""Align-Pro as a compiler: it learns, keeps the kernel's rules, and says what share of the possible it reached."""

from __future__ import annotations

import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import dspy
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from align_support import COLOURS, SMALL, VOCABULARY, compiled_by, compiler, echo, things, untaught  # noqa: E402
from e2e_support import ToyEngine, exact, toy_lm  # noqa: E402

from cuesmith import Budget, compile  # noqa: E402
from cuesmith.modules.prompter import Prompted, Prompter  # noqa: E402
from cuesmith.modules.reweighted import Reweighted  # noqa: E402
from cuesmith.modules.tiny import tiny_policy  # noqa: E402
from cuesmith.teleprompters.align_pro import AlignPro  # noqa: E402
from cuesmith.teleprompters.alignment.checkpoints import LearningCurve  # noqa: E402
from cuesmith.teleprompters.alignment.training import Training  # noqa: E402
from cuesmith.teleprompters.alignment.training_result import TrainingStepDone, alignment_of  # noqa: E402
from cuesmith.teleprompters.runtime.events import Event, RunStarted  # noqa: E402
from cuesmith.testing.purity import source_faults, sources_of  # noqa: E402

torch.set_num_threads(1)


def test_it_trains_a_prompter_and_says_what_share_of_the_possible_it_reached() -> None:
    engine, events = ToyEngine(reply=echo), list[Event]()
    made = compiler(engine, callbacks=[events.append], **untaught())
    student = dspy.Predict("question -> answer")
    before = student.dump_state()
    with dspy.context(lm=toy_lm(engine, temperature=0)):
        done = made.compile(student, trainset=things(30), valset=things(48, 30))
    c = done.compilation
    assert student.dump_state() == before and isinstance(done, Prompted)
    assert [s.best_id for s in c.steps] != [] and c.stopped_by is None
    assert c.best.candidate.origin.move == "trained by ppo" and c.gain is not None and c.gain.low > 0.3
    curve = [e for e in events if isinstance(e, TrainingStepDone)]
    found = alignment_of(c)
    assert [e.step for e in curve] == list(range(1, len(curve) + 1)) and found is not None
    assert tuple(curve) == found.curve
    best, share = found.attainable, found.realised
    # By hand: rho_sft names the right colour in some two of five draws, so lambda log Z is near 1 - 0.1 ln(5 / 2).
    assert best is not None and best.value is not None and 0.85 < best.value.mean < 0.96
    assert share is not None and share.share is not None and 0.8 < share.share <= 1.05
    assert f"Training realised {100 * share.share:.0f} %" in " ".join(c.notes)
    with dspy.context(lm=toy_lm(engine, temperature=0)):
        assert [done(question=f"{t} n5 n5").answer for t in COLOURS] == list(COLOURS.values())
    started = next(e for e in events if isinstance(e, RunStarted))
    assert engine.calls <= started.forecast.calls


def test_rewrites_that_repeat_are_not_paid_twice_and_the_cap_is_exact() -> None:
    engine = ToyEngine(reply=echo)
    done = compiled_by(compiler(engine, budget=Budget(calls=150)), engine)
    c = done.compilation
    assert engine.calls == c.spent.total.calls <= 150
    assert (found := alignment_of(c)) is None or len(found.curve) < SMALL.steps


def test_what_is_left_for_the_end_is_kept_out_of_the_training() -> None:
    engine = ToyEngine(reply=echo)
    done = compiled_by(compiler(engine, budget=Budget(calls=420), training=SMALL), engine)
    c = done.compilation
    assert engine.calls <= 420 and c.stopped_by is None and c.gain is not None
    assert (found := alignment_of(c)) is not None and found.realised is not None, "it was measured after its early end"


def test_no_training_where_nothing_can_be_gained() -> None:
    def deaf(system: str, user: str, drawn: int | None) -> str:
        return "[[ ## answer ## ]]\nno\n\n[[ ## completed ## ]]"

    engine = ToyEngine(reply=deaf)
    c = compiled_by(compiler(engine), engine).compilation
    assert (found := alignment_of(c)) is not None and found.curve == () and "No prompter can gain" in found.verdict()
    assert c.best.candidate == c.baseline.candidate


@pytest.mark.slow
def test_an_outage_in_training_stops_it_and_a_resumed_run_ends_as_if_there_had_been_none(tmp_path: Path) -> None:
    broken = [False]

    def hook(nth: int) -> None:
        if broken[0]:
            raise dspy.utils.exceptions.LMAuthError("key revoked", model="toy")

    def on_event(event: object) -> None:
        broken[0] |= isinstance(event, TrainingStepDone) and event.step == 12

    engine = ToyEngine(reply=echo, hook=hook)
    first = compiled_by(compiler(engine, callbacks=[on_event], **untaught()), engine, tmp_path / "run").compilation
    assert first.stopped_by == "auth"
    assert all(score is None or score in (0.0, 1.0) for t in first.candidates for score in t.scores)
    broken[0], calls = False, engine.calls
    resumed = compiled_by(compiler(engine, **untaught()), engine, tmp_path / "run")
    whole = ToyEngine(reply=echo)
    straight = compiled_by(compiler(whole, **untaught()), whole, tmp_path / "other")
    assert resumed.prompter.fingerprint == straight.prompter.fingerprint
    assert resumed.compilation.gain == straight.compilation.gain
    assert engine.calls - calls < whole.calls, "what the first part paid for is not paid again"


def test_weights_need_no_training_and_no_label() -> None:
    def bluish(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        return 1.0 if prediction.answer == "blue" else 0.0

    engine = ToyEngine(reply=echo)
    made = compiler(engine, metric=bluish, mode="weights", training=Training(kl_coefficient=0.05))
    done = compiled_by(made, engine)
    c = done.compilation
    assert isinstance(done, Reweighted) and (found := alignment_of(c)) is not None and found.curve == ()
    assert c.best.select is not None and c.best.select.mean > 0.5


def test_an_estimate_of_weights_is_an_upper_bound() -> None:
    def bluish(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        return 1.0 if prediction.answer == "blue" else 0.0

    def varied(system: str, user: str, drawn: int | None) -> str:
        if "`rewritten`" in system:
            rewrite = "blue" if engine.calls % 2 else f"n{engine.calls}"
            return f"[[ ## rewritten ## ]]\n{rewrite}\n\n[[ ## completed ## ]]"
        return echo(system, user, drawn)

    engine = ToyEngine(reply=varied)
    made = compiler(
        engine,
        metric=bluish,
        mode="weights",
        prompter=toy_lm(engine, temperature=0),
        pairs=(),
        optimizer_lm=toy_lm(engine, temperature=0),
        yardstick=0,
    )
    with dspy.context(lm=toy_lm(engine, temperature=0)):
        bound = made.estimate(dspy.Predict("question -> answer"), trainset=things(30), valset=things(48, 30))
        assert engine.calls == 0
    done = compiled_by(made, engine)
    assert isinstance(done, Reweighted) and bound.calls / 4 < engine.calls <= bound.calls


def test_a_line_of_the_curve_that_was_cut_off_costs_that_line_only(tmp_path: Path) -> None:
    file = tmp_path / "curve.jsonl"
    steps = [TrainingStepDone(number, 3, 0.5, 0.1, 0.0, 0, 0.2) for number in (1, 2, 3)]
    curve = LearningCurve(tmp_path)
    curve.add(steps[0])
    with file.open("a") as lines:
        lines.write('\n{"step": 2, "of"')
    again = LearningCurve(tmp_path)
    assert again.steps == steps[:1]
    again.add(steps[1])
    again.add(steps[2])
    again.add(steps[1])
    assert LearningCurve(tmp_path).steps == again.steps == steps[:2], "a step that is repeated takes back what followed"


def test_weights_refuse_a_metric_that_needs_labels() -> None:
    engine = ToyEngine(reply=echo)
    made = AlignPro(exact, prompter=tiny_policy(VOCABULARY, hidden=16, layers=1), mode="weights")
    with pytest.raises(ValueError, match="use a reward model or a judge"):
        compiled_by(made, engine)


def test_it_swaps_in_one_line_chains_and_survives_a_round_trip(tmp_path: Path) -> None:
    engine = ToyEngine(reply=echo)

    def prompter(seed: int) -> Prompter:
        return Prompter(tiny_policy(VOCABULARY, seed=seed, hidden=16, layers=1))

    train, val = things(20), things(20, 30)
    with dspy.context(lm=toy_lm(engine, temperature=0)):
        short = Training(steps=2, batch_size=8, generations=2)
        done = compile(
            dspy.ChainOfThought("question -> answer"),
            "align-pro",
            metric=exact,
            trainset=train,
            valset=val,
            prompter=prompter(0),
            training=short,
            yardstick=0,
        )
        assert done.compilation.compiler == "AlignPro" and len(done.compilation.extras["alignment"].curve) == 2
        prompted = Prompted(prompter(0), dspy.Predict("question -> answer"), ["question"])
        again = compile(prompted, "opro", metric=exact, trainset=train, valset=val, budget=Budget(calls=60))
        again.save(tmp_path / "program.json")
        fresh = Prompted(prompter(5), dspy.Predict("question -> answer"), ["question"])
        assert fresh.prompter.fingerprint != prompted.prompter.fingerprint
        fresh.load(tmp_path / "program.json")
        assert fresh.prompter.fingerprint == prompted.prompter.fingerprint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mode": "tune"}, "mode='tune' must be one of train, weights"),
        ({"field": "text"}, "field='text' is no input of the examples: they have question"),
        ({"rewrites": 1}, "rewrites"),
        ({"yardstick": -1}, "yardstick"),
        ({"prompter": dspy.LM("openai/x")}, "mode='train' trains a local prompter"),
    ],
)
def test_bad_options_are_refused_before_any_call(change: dict[str, object], says: str) -> None:
    engine = ToyEngine(reply=echo)
    with pytest.raises(ValueError, match=says):
        compiled_by(compiler(engine, **change), engine)
    assert engine.calls == 0


def test_its_source_is_pure() -> None:
    rooms = "cuesmith.teleprompters.alignment"
    files = sources_of(AlignPro, {f"{rooms}.{name}" for name in ("frozen", "training", "checkpoints")})
    assert {file.name for file in files} >= {"align_pro.py", "prompters.py", "training_result.py", "yardstick.py"}
    for file in files:
        assert source_faults(file.read_text(), most_lines=1000) == [], file
    assert len(Path(inspect.getfile(AlignPro)).read_text().splitlines()) <= 250


def test_pairs_do_not_fit_a_model_behind_an_api() -> None:
    with pytest.raises(ValueError, match="is not fine-tuned here"):
        AlignPro(exact, prompter=dspy.LM("openai/x"), mode="weights", pairs=[("a", "b")])


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    def run(name: str, kill_at: int | None = None) -> bool:
        """Compile; kill it a moment after so many steps of its curve. Returns whether it ended by itself."""
        process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("align_support.py")),
                str(tmp_path / name),
                str(tmp_path / f"{name}.log"),
                str(tmp_path / f"{name}.json"),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        curve = tmp_path / name / "prompter" / "curve.jsonl"
        while process.poll() is None:
            done = curve.read_text().splitlines() if curve.exists() else []
            if kill_at is not None and done and json.loads(done[-1])["step"] >= kill_at:
                time.sleep(rng.uniform(0, 0.3))
                process.send_signal(signal.SIGKILL)
                process.wait()
                return False
            time.sleep(0.02)
        assert process.returncode == 0
        return True

    rng = random.Random(0)
    assert run("whole")
    steps = sorted(rng.sample(range(1, SMALL.steps - 2), 10))
    kills = sum(not run("killed", step) for step in steps)
    assert run("killed") and kills == 10
    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "killed"))
    assert one == other
    # Rewrites of different inputs may be the same request: what counts is how many more there were.
    once, all_in_all = (len((tmp_path / f"{name}.log").read_text().splitlines()) for name in ("whole", "killed"))
    repeated = all_in_all - once
    print(f"{kills} kills, {once} calls without, {repeated} asked again")
    assert repeated <= 32 * kills, "only what was in flight at a kill is asked again"

"""Training a prompter: known optimum, missing rewards, checkpoints, SIGKILL, LoRA, processes, and TRL's privates."""

from __future__ import annotations

import inspect
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from gguf_support import write_model  # noqa: E402

from cuesmith.modules.policy import LocalPolicy  # noqa: E402
from cuesmith.teleprompters.alignment.checkpoints import KEPT, MANIFEST, Checkpoints  # noqa: E402
from cuesmith.teleprompters.alignment.training import Trainer, Training, train, warm_start  # noqa: E402
from cuesmith.teleprompters.alignment.training_result import TrainingStepDone  # noqa: E402

WORDS = ("<end>", *"abcdef")
INPUTS = ("a", "b", "c")
TRAINERS = ["ppo", *(pytest.param(other, marks=pytest.mark.slow) for other in ("rloo", "grpo"))]
"""Two of the three are left for `pytest -m slow`."""
SMALL = Training(
    kl_coefficient=0.5, steps=6, batch_size=12, generations=4, updates_per_batch=2, learning_rate=1e-3,
    max_new_tokens=2, save_every=2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny_policy(seed: int = 0, hidden: int = 16) -> LocalPolicy:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=backend, eos_token=WORDS[0], pad_token=WORDS[0])
    torch.manual_seed(seed)
    shape: Any = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)
    with torch.no_grad():
        model.lm_head.weight.mul_(6.0)
    return LocalPolicy(model, tokenizer)


def worth(index: int, rewrite: str) -> float:
    """A reward that depends on the input and on every word."""
    return sum(math.sin(1 + 3 * index + 7 * WORDS.index(word) + place) for place, word in enumerate(rewrite.split()))


def rewards(indices: Sequence[int], rewrites: Sequence[str]) -> list[float | None]:
    return [worth(index, rewrite) for index, rewrite in zip(indices, rewrites, strict=True)]


def weights(policy: LocalPolicy) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}


def same(first: LocalPolicy, second: LocalPolicy) -> bool:
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def first_words(policy: LocalPolicy, text: str) -> Any:
    model: Any = policy.model
    with torch.no_grad():
        return torch.softmax(model(torch.tensor([policy.prompt_ids(text)])).logits[0, -1].double(), -1).numpy()


def distance(policy: LocalPolicy, reference: LocalPolicy, kl_coefficient: float) -> float:
    """Total variation to Lemma 1's optimum over rewrites of one word, mean over the inputs."""
    distances = []
    for i, text in enumerate(INPUTS):
        scores = np.array([0.0, *(worth(i, word) for word in WORDS[1:])])
        best = first_words(reference, text) * np.exp(scores / kl_coefficient)
        distances.append(0.5 * np.abs(best / best.sum() - first_words(policy, text)).sum())
    return float(np.mean(distances))


@pytest.mark.parametrize("trainer", TRAINERS[:2])
def test_reaches_the_known_optimum(trainer: Trainer) -> None:
    policy, numbers = tiny_policy(), np.random.default_rng(0)

    def noisy(indices: Sequence[int], rewrites: Sequence[str]) -> list[float]:
        return [worth(i, x) + numbers.normal(0, 0.3) for i, x in zip(indices, rewrites, strict=True)]

    config = Training(trainer=trainer, kl_coefficient=0.5, steps=50, learning_rate=6e-3, max_new_tokens=1)
    before = weights(policy)
    trained = train(policy, INPUTS, noisy, config)
    assert distance(policy, policy, 0.5) > 0.4
    assert distance(trained, policy, 0.5) < 0.12, distance(trained, policy, 0.5)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(policy).items())


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_missing_reward_is_not_zero(trainer: Trainer) -> None:
    """All rewards are negative, so that rewrites without one would win if they got 0."""
    table = {"d": -1.0, "c": -3.0, "b": -3.0}
    config = replace(SMALL, trainer=trainer, steps=15, learning_rate=6e-3, max_new_tokens=1, kl_coefficient=0.05)
    seen: list[TrainingStepDone] = []
    policy = tiny_policy()
    trained = train(
        policy, INPUTS, lambda _, rewrites: [table.get(x) for x in rewrites],
        replace(config, batch_size=48, generations=8), on_step=seen.append,
    )  # fmt: skip
    for text in INPUTS:
        assert WORDS[int(first_words(trained, text).argmax())] == "d"
    assert seen[0].missing > 0 and seen[0].reward < -1


@pytest.mark.parametrize("trainer", get_args(Trainer))
def test_rows_without_a_reward_do_not_train(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a batch with missing rewards is that of the batch without those rows."""
    from cuesmith.teleprompters.alignment import ppo, rollouts

    kind: Any = {"ppo": ppo.PPO, "rloo": rollouts.RLOO, "grpo": rollouts.GRPO}[trainer]
    original = kind._compute_loss
    compared = []

    def gradients(self: Any, model: Any, inputs: Any) -> Any:
        model.zero_grad()
        original(self, model, inputs).backward()
        found = torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        return found

    def compute(self: Any, model: Any, inputs: Any) -> Any:
        rows = inputs["completion_mask"].sum(1) > 0
        kept = {k: v[rows] if v.ndim else v for k, v in inputs.items()}
        if "scale" in kept:
            assert kept["scale"] == len(rows) / rows.sum()
            kept["scale"] = torch.tensor(1.0)
        assert 0 < rows.sum() < len(rows)
        compared.append((gradients(self, model, inputs), gradients(self, model, kept)))
        if trainer == "ppo":
            marks = kept["completion_mask"].bool()
            assert abs(float(kept["advantages"][marks].mean())) < 1e-5
            assert float(kept["advantages"][marks].std(unbiased=False)) == pytest.approx(1.0, abs=1e-3)
        return original(self, model, inputs)

    monkeypatch.setattr(kind, "_compute_loss", compute)
    config = replace(SMALL, trainer=trainer, steps=2)
    train(
        tiny_policy(), INPUTS,
        lambda indices, rewrites: [
            None if row % 3 == 0 else worth(i, x) for row, (i, x) in enumerate(zip(indices, rewrites, strict=True))
        ],
        config,
    )  # fmt: skip
    assert len(compared) == 4
    for whole, kept in compared:
        assert float(whole.abs().max()) > 1e-3
        assert torch.allclose(whole, kept, atol=1e-6)


def test_no_reward_at_all_changes_nothing() -> None:
    policy = tiny_policy()
    steps: list[TrainingStepDone] = []
    trained = train(policy, INPUTS, lambda i, x: [None] * len(x), replace(SMALL, steps=1), on_step=steps.append)
    assert same(trained, policy)
    assert steps[0].missing == 12 and math.isnan(steps[0].reward)


def test_advantages_against_a_calculation_by_hand() -> None:
    from cuesmith.teleprompters.alignment.ppo import generalised_advantages, token_rewards

    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    old, reference = torch.full((3, 3), -1.0), torch.tensor([[-2.0, -1.0, -1.5]] * 3)
    charged = token_rewards(torch.tensor([10.0, 20.0, math.nan]), old, reference, mask, 0.5)
    assert charged.tolist() == [[-0.5, 0.0, 9.75], [19.5, 0.0, 0.0], [0.0, 0.0, 0.0]]
    values = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    found = generalised_advantages(charged, values, mask, 0.5)
    last = 9.75 - 3.0
    middle = 0.0 + 3.0 - 2.0 + 0.5 * last
    assert found[0].tolist() == pytest.approx([-0.5 + 2.0 - 1.0 + 0.5 * middle, middle, last])
    assert found[1].tolist() == [18.5, 0.0, 0.0] and found[2].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_stopped_training_goes_on_to_the_same_weights(trainer: Trainer, tmp_path: Path) -> None:
    config = replace(SMALL, trainer=trainer, gradient_accumulation=2)
    seen: list[int] = []

    def until(last: int) -> Callable[[TrainingStepDone], bool]:
        def on_step(step: TrainingStepDone) -> bool:
            seen.append(step.step)
            return step.step == last

        return on_step

    whole = train(tiny_policy(), INPUTS, rewards, config)
    stopped = train(tiny_policy(), INPUTS, rewards, config, directory=tmp_path, on_step=until(3))
    assert seen == [1, 2, 3] and not same(stopped, whole)
    again = train(tiny_policy(), INPUTS, rewards, config, directory=tmp_path, on_step=lambda s: s.step == 3)
    assert same(again, stopped)
    resumed = train(tiny_policy(), INPUTS, rewards, config, directory=tmp_path, on_step=until(99))
    assert same(resumed, whole) and seen == [1, 2, 3, 3, 4, 5, 6]
    finished = train(tiny_policy(), INPUTS, lambda i, x: pytest.fail("asked again"), config, directory=tmp_path)
    assert same(finished, whole)


def test_an_error_of_the_reward_is_raised_after_a_checkpoint(tmp_path: Path) -> None:
    whole, calls = train(tiny_policy(), INPUTS, rewards, SMALL), []
    error = ConnectionError("the frozen program is away")

    def failing(indices: Sequence[int], rewrites: Sequence[str]) -> list[float | None]:
        calls.append(list(rewrites))
        if len(calls) == 4:
            raise error
        return rewards(indices, rewrites)

    with pytest.raises(ConnectionError) as caught:
        train(tiny_policy(), INPUTS, failing, SMALL, directory=tmp_path)
    assert caught.value is error
    resumed = train(tiny_policy(), INPUTS, failing, SMALL, directory=tmp_path)
    assert same(resumed, whole)
    assert calls[3] == calls[4] and len(calls) == 7  # the failed batch is drawn again, and nothing before it


@pytest.mark.parametrize("bad", [[1.0], [math.nan] * 12])
def test_rewards_of_the_wrong_kind_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="1 rewards for 12" if len(bad) == 1 else "nan"):
        train(tiny_policy(), INPUTS, lambda i, x: bad, SMALL)


def test_rewards_are_awaited_on_the_callers_thread_while_the_models_score(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuesmith.teleprompters.alignment.rollouts import Rollouts

    scored, caller, original = threading.Event(), threading.current_thread(), Rollouts._calculate_rewards

    def calculate(self: Any, *args: Any) -> Any:
        scored.set()  # TRL asks for the rewards after both passes
        return original(self, *args)

    def reward(indices: Sequence[int], rewrites: Sequence[str]) -> list[float | None]:
        assert threading.current_thread() is caller
        assert scored.wait(20), "the models waited for the reward"
        return rewards(indices, rewrites)

    monkeypatch.setattr(Rollouts, "_calculate_rewards", calculate)
    train(tiny_policy(), INPUTS, reward, replace(SMALL, steps=1))
    assert scored.is_set()


def test_the_policy_comes_back_clean(tmp_path: Path) -> None:
    from safetensors import safe_open

    policy, state = tiny_policy(), (random.getstate(), torch.get_rng_state())
    trained = train(policy, INPUTS, rewards, replace(SMALL, steps=1))
    assert weights(trained).keys() == weights(policy).keys() and not same(trained, policy)
    assert trained.model.__dict__.keys() == policy.model.__dict__.keys()
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
    trained.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as saved:
        assert not [name for name in saved.keys() if "value" in name]  # noqa: SIM118
    assert LocalPolicy.from_pretrained(tmp_path, device="cpu").logprobs(["a"], ["d"]) == trained.logprobs(["a"], ["d"])
    twin = trained.copy()
    torch.nn.init.zeros_(twin.model.lm_head.weight)
    assert trained.logprobs(["a"], ["d"]) != twin.logprobs(["a"], ["d"])


@pytest.mark.parametrize("trainer", TRAINERS)
def test_lora(trainer: Trainer, tmp_path: Path) -> None:
    policy = tiny_policy()
    steps: list[TrainingStepDone] = []
    config = replace(SMALL, trainer=trainer, lora_rank=2, learning_rate=2e-2, updates_per_batch=1, steps=4)
    whole = train(policy, INPUTS, rewards, config, on_step=steps.append)
    assert steps[0].kl == pytest.approx(0, abs=1e-6) and abs(steps[-1].kl) > 1e-3
    changed = {name for name, tensor in weights(whole).items() if not torch.equal(tensor, weights(policy)[name])}
    assert changed and all("proj" in name for name in changed)
    assert weights(whole).keys() == weights(policy).keys()
    train(policy, INPUTS, rewards, config, directory=tmp_path, on_step=lambda s: s.step == 2)
    assert same(train(policy, INPUTS, rewards, config, directory=tmp_path), whole)


def test_a_model_from_a_gguf_file_is_trained_and_saved_as_any_other(tmp_path: Path) -> None:
    policy = LocalPolicy.from_pretrained(write_model(tmp_path / "tiny.gguf"), device="cpu")
    config = replace(SMALL, lora_rank=2, learning_rate=2e-2, updates_per_batch=1, steps=2)
    trained = train(policy, INPUTS, lambda rows, rewrites: [float(len(text)) for text in rewrites], config)
    assert not same(trained, policy)
    trained.save_pretrained(tmp_path / "saved")
    assert same(LocalPolicy.from_pretrained(tmp_path / "saved", device="cpu"), trained)
    policy.copy().save_pretrained(tmp_path / "copied")
    loaded = LocalPolicy.from_pretrained(tmp_path / "copied", device="cpu")
    assert loaded.fingerprint == policy.fingerprint and loaded.sample(["a"], 2) == policy.sample(["a"], 2)


def test_another_training_in_the_directory_is_refused(tmp_path: Path) -> None:
    train(tiny_policy(), INPUTS, rewards, SMALL, directory=tmp_path)
    with pytest.raises(ValueError, match=r"kl_coefficient was 0\.5 there and is 0\.7 now"):
        train(tiny_policy(), INPUTS, rewards, replace(SMALL, kl_coefficient=0.7), directory=tmp_path)
    with pytest.raises(ValueError, match="inputs was"):
        train(tiny_policy(), ("a", "b"), rewards, SMALL, directory=tmp_path)
    with pytest.raises(ValueError, match="policy was"):
        train(tiny_policy(seed=1), INPUTS, rewards, SMALL, directory=tmp_path)


def test_lambda_may_fall_to_its_value_over_the_first_half() -> None:
    config = Training(kl_coefficient=0.1, kl_start=10.0, steps=8)
    assert [round(config.kl_at(step), 4) for step in (0, 1, 2, 4, 7)] == [10.0, 3.1623, 1.0, 0.1, 0.1]
    assert Training(kl_coefficient=0.1).kl_at(0) == 0.1
    short = replace(config, steps=4, batch_size=8, generations=2, max_new_tokens=1, updates_per_batch=1)
    policy = tiny_policy()
    plain, flat, falling = (
        train(policy, INPUTS, rewards, replace(short, kl_start=start)) for start in (None, 0.1, 10.0)
    )
    assert same(plain, flat) and not same(plain, falling)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trainer", "dpo"), ("kl_coefficient", 0.0), ("kl_coefficient", -0.5), ("kl_coefficient", math.nan),
        ("steps", 0), ("batch_size", 47), ("generations", 1), ("generations", 7), ("updates_per_batch", 0),
        ("learning_rate", 0.0), ("max_new_tokens", 0), ("gradient_accumulation", 5), ("lora_rank", 0),
        ("kl_start", 0.01), ("clip", 0.0),
        ("save_every", 0), ("gae_lambda", 1.5), ("value_coefficient", -1.0), ("seed", -1),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_with_their_value(name: str, value: Any) -> None:
    values: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        Training(**values)


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one input"):
        train(tiny_policy(), [], rewards, SMALL)
    with pytest.raises(ValueError, match="do not fit the model's 32"):
        train(tiny_policy(), ["a " * 31], rewards, SMALL)


def test_half_written_checkpoints_are_skipped(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    for updates in (2, 4, 6):
        folder = checkpoints.staging / f"checkpoint-{updates}"
        folder.mkdir(parents=True)
        (folder / "weights").write_text("w" * updates)
        checkpoints.commit(updates, {"step": updates})
    assert len(list(tmp_path.iterdir())) == KEPT
    (checkpoints.staging / "checkpoint-8").mkdir(parents=True)
    found = checkpoints.latest()
    assert found is not None and found.updates == 6 and found.about == {"step": 6}
    (tmp_path / "checkpoint-6" / "weights").write_text("w")  # a power cut
    found = checkpoints.latest()
    assert found is not None and found.updates == 4
    (tmp_path / "checkpoint-4" / MANIFEST).write_text("{")
    assert checkpoints.latest() is None


def test_a_damaged_checkpoint_costs_steps_only(tmp_path: Path) -> None:
    whole = train(tiny_policy(), INPUTS, rewards, SMALL, directory=tmp_path)
    newest = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (newest / "optimizer.pt").write_bytes(b"")
    steps: list[TrainingStepDone] = []
    resumed = train(tiny_policy(), INPUTS, rewards, SMALL, directory=tmp_path, on_step=steps.append)
    assert same(resumed, whole) and [step.step for step in steps] == [5, 6]


def test_warm_start_learns_rewrites_with_their_end_only() -> None:
    from cuesmith.teleprompters.alignment.supervised import IGNORED, _example

    policy, pairs = tiny_policy(), [("a", "d e"), ("b", "f"), ("c", "e e")]
    example = _example(policy, "a", "d e")
    assert example == {"input_ids": [1, 4, 5, 0], "labels": [IGNORED, 4, 5, 0]}
    before = weights(policy)
    taught = warm_start(policy, pairs, steps=60, learning_rate=2e-2)
    texts, rewrites = [x for x, _ in pairs], [y for _, y in pairs]
    assert [taught.rewrite(x) for x in texts] == rewrites
    assert min(taught.logprobs(texts, rewrites)) > math.log(0.7) > max(policy.logprobs(texts, rewrites))
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(policy).items())
    numbers: list[dict[str, Any]] = [{"steps": 0}, {"steps": 1, "batch_size": 0}, {"steps": 1, "learning_rate": -1.0}]
    for bad in numbers:
        with pytest.raises(ValueError, match="got"):
            warm_start(policy, pairs, **bad)
    with pytest.raises(ValueError, match="at least one pair"):
        warm_start(policy, [], steps=1)


def test_the_private_parts_of_trl_are_those_we_know() -> None:
    """Fails when TRL changes what `rollouts` and `ppo` override or read: adapt them, then the pin in pyproject.toml."""
    import transformers
    import trl

    from cuesmith.teleprompters.alignment._trl import GRPOTrainer, RLOOTrainer, add_fused_lm_head

    assert trl.__version__.startswith("1.16."), f"written for trl 1.16, this is {trl.__version__}"
    known = {
        "_generate_and_score_completions": ["self", "inputs"],
        "_generate": ["self", "prompts"],
        "_tokenize_prompts": ["self", "prompts"],
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "_compute_loss": ["self", "model", "inputs"],
        "_get_train_sampler": ["self", "dataset"],
        "_save_checkpoint": ["self", "model", "trial"],
        "_send_telemetry": ["self"],
        "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    }
    for kind in (GRPOTrainer, RLOOTrainer):
        for name, parameters in known.items():
            assert list(inspect.signature(getattr(kind, name)).parameters) == parameters, f"{kind.__name__}.{name}"
        passes = list(inspect.signature(kind._get_per_token_logps_and_entropies).parameters)
        assert passes[:7] == [
            "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
        ]  # fmt: skip
        source = inspect.getsource(kind._generate_and_score_completions)
        for part in ("_generate(prompts)", "self._calculate_rewards(", '"completion_mask"', "self.ref_model"):
            assert part in source, f"{kind.__name__} no longer has {part}"
    for name in ("old_per_token_logps", "ref_per_token_logps", "num_items_in_batch"):
        assert f'inputs["{name}"]' in inspect.getsource(GRPOTrainer._compute_loss) or f'"{name}"' in (
            inspect.getsource(GRPOTrainer._generate_and_score_completions)
        )
    assert 'inputs["old_logps"]' in inspect.getsource(RLOOTrainer._compute_loss)
    assert GRPOTrainer.loss_is_scaled_for_ga is True and RLOOTrainer.loss_is_scaled_for_ga is False
    assert "model.forward = types.MethodType" in inspect.getsource(add_fused_lm_head)
    for name in ("_get_output_dir", "_load_from_checkpoint", "save_model", "remove_callback"):
        assert hasattr(transformers.Trainer, name)


# A process that trains, and whose reward calls are on record; `python test_training.py FOLDER`.


def _record(folder: Path, rank: int, slow: float = 0.0) -> Callable[[Sequence[int], Sequence[str]], list[float | None]]:
    def reward(indices: Sequence[int], rewrites: Sequence[str]) -> list[float | None]:
        time.sleep(slow)
        with (folder / f"calls-{rank}.jsonl").open("a") as file:
            file.write(json.dumps([list(indices), list(rewrites)]) + "\n")
        return rewards(indices, rewrites)

    return reward


def _main(folder: Path, trainer: Trainer, slow: float) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    config = replace(SMALL, trainer=trainer, steps=12)
    if rank == 0:
        (folder / "started").touch()
    trained = train(tiny_policy(), INPUTS, _record(folder, rank, slow), config, directory=folder / "run")
    torch.save(weights(trained), folder / f"weights-{rank}.pt")


def _start(folder: Path, trainer: str, slow: float = 0.0, launcher: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, *launcher, __file__, str(folder), trainer, str(slow)]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _calls(folder: Path, rank: int = 0) -> list[Any]:
    path = folder / f"calls-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    config = replace(SMALL, steps=12)
    process = _start(tmp_path, "ppo", slow=0.05)
    _wait(lambda: len(_calls(tmp_path)) >= 7, process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    before = _calls(tmp_path)
    found = Checkpoints(tmp_path / "run").latest()
    assert found is not None and 0 < found.updates < 24
    resumed = train(tiny_policy(), INPUTS, _record(tmp_path, 0), config, directory=tmp_path / "run")
    reference = _record(tmp_path, 9)
    assert same(resumed, train(tiny_policy(), INPUTS, reference, config))
    done = found.updates // config.updates_per_batch
    whole = _calls(tmp_path, 9)
    assert _calls(tmp_path)[len(before) :] == whole[done:]  # nothing up to the checkpoint is asked again
    assert before == whole[: len(before)]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ppo", "rloo"])
def test_ten_kills(trainer: Trainer, tmp_path: Path) -> None:
    numbers, kills = random.Random(0), 0
    whole = train(tiny_policy(), INPUTS, _record(tmp_path, 9), replace(SMALL, trainer=trainer, steps=12))
    while kills < 10:
        process = _start(tmp_path, trainer, slow=0.1)
        calls = len(_calls(tmp_path))
        _wait(lambda seen=calls: len(_calls(tmp_path)) > seen, process)  # type: ignore[misc]
        time.sleep(numbers.uniform(0, 0.35))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 5, f"the training ended after {kills} kills"
    config = replace(SMALL, trainer=trainer, steps=12)
    assert same(train(tiny_policy(), INPUTS, _record(tmp_path, 0), config, directory=tmp_path / "run"), whole)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", get_args(Trainer))
def test_two_processes(trainer: Trainer, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = _start(tmp_path, trainer, launcher=launcher)
    try:
        assert process.wait(timeout=180) == 0, (tmp_path / "log").read_text()[-4000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    first, second = (torch.load(tmp_path / f"weights-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    start = weights(tiny_policy())
    assert any(not torch.equal(first[name], start[name]) for name in first)
    mine, theirs = _calls(tmp_path, 0), _calls(tmp_path, 1)
    assert len(mine) == len(theirs) == 12
    assert all(len(rewrites) == 6 for _, rewrites in (*mine, *theirs))  # each asks for its own half of the batch
    for (left, _), (right, _) in zip(mine, theirs, strict=True):
        assert sorted([*left, *right]) == [0] * 4 + [1] * 4 + [2] * 4
    assert [rewrites for _, rewrites in mine] != [rewrites for _, rewrites in theirs]


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))  # type: ignore[arg-type]

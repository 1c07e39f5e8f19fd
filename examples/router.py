"""A router: which team should see this message? One predictor, four classes, a metric that says what was right.

`python examples/router.py`, or with `--lm openai/gpt-4.1-mini --optimizer-lm openai/gpt-4.1` on real models.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import dspy
from offline import models, options, records, told

import cuesmith


class Route(dspy.Signature):
    """Choose the team that should see the message."""

    message: str = dspy.InputField()
    team: Literal["billing", "account", "sales", "technical"] = dspy.OutputField()


def right_team(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    """1 for the right team, else 0; the feedback names the right one."""
    right = example.team == prediction.team
    return dspy.Prediction(score=float(right), feedback="Right." if right else f"It belongs to {example.team}.")


def main() -> None:
    """Compile, save, load, use."""
    chosen = options(__doc__)
    lm, optimizer = models(chosen, rule, ADVICE)
    dspy.configure(lm=lm)
    data = [dspy.Example(**record).with_inputs("message") for record in records("router.jsonl")]
    train, test = data[:22], data[22:]

    compiled = cuesmith.compile(dspy.Predict(Route), chosen.compiler, metric=right_team, trainset=train,
                                optimizer_lm=optimizer, budget=cuesmith.Budget(calls=chosen.calls))  # fmt: skip
    before, after = (cuesmith.evaluate(program, test, right_team).mean for program in (dspy.Predict(Route), compiled))
    told(compiled, before, after)

    path = Path(chosen.save) / "router.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    compiled.save(path)
    router = dspy.Predict(Route)
    router.load(path)
    print(router(message="My card was charged twice, who can refund me?").team)


# --- without a model ---------------------------------------------------------------------------------------------

WORDS = {"billing": "charge refund invoice card", "account": "password log profile", "sales": "plan price contract"}
ADVICE = [
    "Money that was paid goes to billing: refund, charge, invoice, card.",
    "A password, a log-in or a profile belongs to account.",
    "Billing: refund, charge, invoice, card. Account: password, log-in, profile. Technical: what fails.",
    "Billing: refund, charge, invoice, card. Account: password, log-in, profile. Sales: plan, price, contract, demo. "
    "Everything else is technical.",
]


def rule(prompt: str, inputs: Mapping[str, str]) -> dict[str, object]:
    """Know a word only where the prompt has it."""
    said, known = inputs["message"].lower(), prompt.lower()
    found = (team for team, words in WORDS.items() for word in words.split() if word in said and word in known)
    return {"team": next(found, "technical")}


if __name__ == "__main__":
    main()

"""A ReAct agent with tools: looks prices up and works out what an order costs.

`python examples/agent.py`, or with `--lm openai/gpt-4.1-mini --optimizer-lm openai/gpt-4.1` on real models.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import dspy
from offline import models, options, records, told

import cuesmith
from cuesmith.programs.tasks import Number

PRICES = {"lamp": 12, "chair": 45, "desk": 180, "shelf": 60, "rug": 75, "clock": 18}


def price(item: str) -> str:
    """Return the price of one item in euros."""
    return str(PRICES.get(item.lower(), f"No {item!r}. There are: {', '.join(PRICES)}."))


def calculate(expression: str) -> str:
    """Work out a sum of products, such as "2 * 45 + 3 * 12"."""
    if not re.fullmatch(r"[\d\s*+]+", expression):
        return "Only whole numbers, * and +."
    return str(sum(_product(part) for part in expression.split("+")))


def _product(part: str) -> int:
    result = 1
    for factor in part.split("*"):
        result *= int(factor)
    return result


def shop() -> dspy.ReAct:
    """Return the agent."""
    return dspy.ReAct("question -> answer", tools=[price, calculate], max_iters=6)


def main() -> None:
    """Compile, save, load, use."""
    chosen = options(__doc__)
    lm, optimizer = models(chosen, rule, ["Think first.", "First look up the price of each item, then calculate."])
    dspy.configure(lm=lm)
    data = [dspy.Example(**record).with_inputs("question") for record in records("shop.jsonl")]
    train, test, metric = data[:16], data[16:], Number("answer")

    compiled = cuesmith.compile(shop(), chosen.compiler, metric=metric, trainset=train,
                                optimizer_lm=optimizer, budget=cuesmith.Budget(calls=chosen.calls))  # fmt: skip
    told(compiled, *(cuesmith.evaluate(program, test, metric).mean for program in (shop(), compiled)))

    path = Path(chosen.save) / "agent.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    compiled.save(path)
    agent = shop()
    agent.load(path)
    print(agent(question="What do 3 lamps and 2 rugs cost?").answer)


def rule(prompt: str, inputs: Mapping[str, str]) -> dict[str, object]:
    """Without a model: look up and calculate where the prompt says so, else finish at once and guess."""
    wanted = [(int(n), item.replace("ves", "fs")[:-1]) for n, item in re.findall(r"(\d+) (\w+)", inputs["question"])]
    seen = [value for name, value in inputs.items() if name.startswith("observation_") and value.isdigit()]
    if "look up" not in prompt or len(seen) > len(wanted):
        return {"next_tool_name": "finish", "next_tool_args": "{}", "answer": seen[-1] if seen else "10"}
    if len(seen) < len(wanted):
        return {"next_tool_name": "price", "next_tool_args": {"item": wanted[len(seen)][1]}}
    products = " + ".join(f"{n} * {cost}" for (n, _), cost in zip(wanted, seen, strict=True))
    return {"next_tool_name": "calculate", "next_tool_args": {"expression": products}}


if __name__ == "__main__":
    main()

"""Typed extraction: a pydantic record from the text of an invoice; the score is the share of right fields.

`python examples/extraction.py`, or with `--lm openai/gpt-4.1-mini --optimizer-lm openai/gpt-4.1` on real models.
"""

import calendar
import re
from collections.abc import Mapping
from pathlib import Path

import dspy
from offline import models, options, records, told
from pydantic import BaseModel

import cuesmith


class Invoice(BaseModel):
    vendor: str
    date: str
    total: float


class Read(dspy.Signature):
    """Read the invoice."""

    text: str = dspy.InputField()
    invoice: Invoice = dspy.OutputField()


def fields(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    """The share of right fields."""
    right, said = example.invoice.model_dump(), prediction.invoice.model_dump()
    wrong = [f"{name} is {value!r}, not {said[name]!r}." for name, value in right.items() if said[name] != value]
    return dspy.Prediction(score=1 - len(wrong) / len(right), feedback=" ".join(wrong) or "Right.")


def main() -> None:
    """Compile, save, load, use."""
    chosen = options(__doc__)
    lm, optimizer = models(chosen, rule, ADVICE)
    dspy.configure(lm=lm)
    pairs = [(row["text"], Invoice(**row["invoice"])) for row in records("invoices.jsonl")]
    data = [dspy.Example(text=text, invoice=invoice).with_inputs("text") for text, invoice in pairs]
    train, test = data[:16], data[16:]

    compiled = cuesmith.compile(dspy.Predict(Read), chosen.compiler, metric=fields, trainset=train,
                                optimizer_lm=optimizer, budget=cuesmith.Budget(calls=chosen.calls))  # fmt: skip
    told(compiled, *(cuesmith.evaluate(program, test, fields).mean for program in (dspy.Predict(Read), compiled)))

    path = Path(chosen.save) / "extraction.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    compiled.save(path)
    reader = dspy.Predict(Read)
    reader.load(path)
    print(reader(text=test[0].text).invoice)


# --- without a model ---------------------------------------------------------------------------------------------

ADVICE = ["Write the date as YYYY-MM-DD.", "Dates as YYYY-MM-DD. In amounts a comma parts the cents."]
MONTHS = list(calendar.month_name)


def rule(prompt: str, inputs: Mapping[str, str]) -> dict[str, object]:
    """Copy the fields, and put them into the form that the prompt asks for."""
    text = inputs["text"]
    vendor = re.search(r"From: (.+)|^(.+?)(?:\. Invoice| thanks)", text)
    date = re.search(r"\d+ [A-Z]\w+ \d{4}|[A-Z]\w+ \d+, \d{4}", text)
    total = re.search(r"[\d.]*\d,\d\d", text)
    assert vendor and date and total
    day, month, year = sorted(re.findall(r"\w+", date[0]), key=lambda part: (part.isdigit() and len(part) == 4, part))
    iso = f"{year}-{MONTHS.index(month):02d}-{int(day):02d}"
    total = float(re.sub(r"\D", "", total[0])) / (100 if "cents" in prompt else 1)
    return {"invoice": {"vendor": vendor[1] or vendor[2], "date": iso if "YYYY" in prompt else date[0], "total": total}}


if __name__ == "__main__":
    main()

"""Answers from a folder: BM25 over the paragraphs of local files, then an answer from what was found. No download.

`python examples/rag.py`, or with `--lm openai/gpt-4.1-mini --optimizer-lm openai/gpt-4.1` on real models.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import dspy
from offline import HERE, models, options, records, told

import cuesmith
from cuesmith.programs.tasks import TokenF1


class Search:
    """BM25 (Robertson and Zaragoza 2009) over the lines of the Markdown files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.lines = [line for file in sorted(folder.glob("*.md")) for line in file.read_text().splitlines() if line]
        self.bags = [Counter(re.findall(r"\w+", line.lower())) for line in self.lines]
        self.known = Counter(word for bag in self.bags for word in bag)
        self.mean = sum(bag.total() for bag in self.bags) / len(self.bags)

    def __call__(self, query: str, k: int = 3) -> list[str]:
        words = re.findall(r"\w+", query.lower())
        best = sorted(range(len(self.lines)), key=lambda i: -self._score(self.bags[i], words))
        return [self.lines[i] for i in best[:k]]

    def _score(self, bag: Counter[str], query: list[str]) -> float:
        length = 1.2 * (0.25 + 0.75 * bag.total() / self.mean)
        weight = {word: math.log(1 + len(self.bags) / self.known[word]) for word in query if word in bag}
        return sum(weight[word] * bag[word] / (bag[word] + length) for word in weight)


class Handbook(dspy.Module):
    """Looks up, then answers."""

    def __init__(self) -> None:
        super().__init__()
        self.search = Search(HERE / "handbook")
        self.answer = dspy.ChainOfThought("context: list[str], question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.answer(context=self.search(question), question=question)


def main() -> None:
    """Compile, save, load, use."""
    chosen = options(__doc__)
    lm, optimizer = models(chosen, rule, ["Answer in a short sentence.", "Give only the number and its unit."])
    dspy.configure(lm=lm)
    data = [dspy.Example(**record).with_inputs("question") for record in records("handbook.jsonl")]
    train, test, metric = data[:16], data[16:], TokenF1("answer")

    compiled = cuesmith.compile(Handbook(), chosen.compiler, metric=metric, trainset=train,
                                optimizer_lm=optimizer, budget=cuesmith.Budget(calls=chosen.calls))  # fmt: skip
    told(compiled, *(cuesmith.evaluate(program, test, metric).mean for program in (Handbook(), compiled)))

    path = Path(chosen.save) / "rag.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    compiled.save(path)
    handbook = Handbook()
    handbook.load(path)
    print(handbook(question="How much a night is paid for hotels?").answer)


def rule(prompt: str, inputs: Mapping[str, str]) -> dict[str, object]:
    """Without a model: the first line that was found, or only its figure where the prompt wants that."""
    line = re.findall(r"[^«»\n\[\]\"']+\.", inputs["context"])[0].strip()
    figure = re.search(r"\d+ \w+", line)
    return {"answer": figure[0] if figure and "only" in prompt.lower() else line}


if __name__ == "__main__":
    main()

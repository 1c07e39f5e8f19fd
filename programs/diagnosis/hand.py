"""Hand-labelled pairs of a rule and a response, to measure a judge of rules by. Written and labelled by us.

Half are followed. Rules are about form, about steps and about content; the hard ones come last in each group: a claim
to have followed stands in for the work, nearly all is done, or what looks like a breach is none.
"""

from __future__ import annotations

__all__ = ["HAND"]

HAND: tuple[tuple[str, str, bool], ...] = (
    # form
    ("Answer with a single word.", "answer: seven", True),
    ("Answer with a single word.", "answer: It is most likely seven.", False),
    ("Give only the number, without other words.", "answer: 42", True),
    ("Give only the number, without other words.", "answer: The total is 42.", False),
    ("Answer True or False.", "answer: False", True),
    ("Answer True or False.", "answer: It depends on which way you face.", False),
    ("Write the list as bullet points.", "answer: - bread\n- milk\n- eggs", True),
    ("Write the list as bullet points.", "answer: bread, milk and eggs, as bullet points", False),
    ("Use at most ten words.", "answer: The train leaves at noon from the second platform.", True),
    ("Use at most ten words.",
     "answer: Please note that the train will leave at noon today from the second platform on the left.", False),
    ("Write everything in lower case.", "answer: paris is the capital of france.", True),
    ("Write everything in lower case.", "answer: paris is the capital of France.", False),
    # steps
    ("Write the running total after each number.",
     "reasoning: 3, so 3; then 4, so 7; then 5, so 12.\nanswer: 12", True),
    ("Write the running total after each number.", "reasoning: I added 3, 4 and 5 carefully.\nanswer: 12", False),
    ("Number the words of the sentence.", "reasoning: 1 the 2 dog 3 sleeps\nanswer: 3", True),
    ("Number the words of the sentence.", "reasoning: I numbered all the words as told.\nanswer: 3", False),
    ("Check the result by doing the calculation backwards before you answer.",
     "reasoning: 6 * 7 = 42. Backwards: 42 / 7 = 6, as it should be.\nanswer: 42", True),
    ("Check the result by doing the calculation backwards before you answer.",
     "reasoning: 6 * 7 = 42. I have checked it.\nanswer: 42", False),
    # content
    ("Name the source of every figure.",
     "answer: 8.1 million people live there (census of 2020), 3 % more than before (statistics office, 2021).", True),
    ("Name the source of every figure.",
     "answer: 8.1 million people live there (census of 2020), 3 % more than ten years before.", False),
    ("Do not mention any brand name.", "answer: Any phone with a good camera and a large battery will do.", True),
    ("Do not mention any brand name.", "answer: A phone with a good camera will do, such as a Samsung.", False),
    ("Apologise before you explain the delay.",
     "answer: I am sorry that you had to wait. The parcel was held at the customs office.", True),
    ("Apologise before you explain the delay.",
     "answer: The parcel was held at the customs office. I am sorry that you had to wait.", False),
)
"""(rule, response as `following` shows it to a judge, whether the response follows the rule)."""

"""Reports in words: templates, figures from estimates and from numbers, paragraphs; and that nothing is left out."""

from __future__ import annotations

import math

import pytest
from jinja2 import DictLoader, UndefinedError

from cuesmith.programs.diagnosis import words
from cuesmith.programs.diagnosis.figures import Figure, Section
from cuesmith.teleprompters.runtime.statistics import Estimate95

TEMPLATE = """
% macro sections(share, text, made)
% call section("First")
What was found:
% if share.n
something.
% endif
% endcall
% call figure("share (%)", share | percent, p=0.5)
{{ text }} said it. ->
Do this,
or that.
% endcall
% call figure("plain", 2, 1, 3, 7)
{{ 0.126 | fmt(".2f") }} of it. -> Nothing.
% endcall
% call figure("equal", share | unless_equal)
All the same. -> Nothing.
% endcall
{{ add(made) }}
% endmacro


% macro limits(known)
One sentence,
in two lines.

% if known
{{ unknown }}

% endif
Another.
% endmacro
"""
SHARE = Estimate95(0.5, 0.25, 0.25, 4)


@pytest.fixture(autouse=True)
def template(monkeypatch: pytest.MonkeyPatch) -> None:
    made = words._environment().overlay(loader=DictLoader({"own.j2": TEMPLATE}))
    monkeypatch.setattr(words, "_environment", lambda: made)


def test_sections_and_figures() -> None:
    last = Section("Last", "Made elsewhere.", ())
    first, second = words.sections_of("own", SHARE, "a -> b", last)
    assert (first.title, first.summary, second) == ("First", "What was found: something.", last)
    share, plain, equal = first.figures
    assert share == Figure("share (%)", 50.0, 25.0, 25.0, 4, 0.5, "a -> b said it.", "Do this, or that.")
    assert plain == Figure("plain", 2.0, 1.0, 3.0, 7, None, "0.13 of it.", "Nothing.")
    assert (equal.value, equal.low, equal.high, equal.n) == (0.5, None, None, 4)
    empty = words.sections_of("own", Estimate95(math.nan, math.nan, math.nan, 0), "", last)[0]
    assert empty.summary == "What was found:" and empty.figures[0].value is None


def test_paragraphs_and_what_is_not_known() -> None:
    assert words.paragraphs_of("own", False) == ("One sentence, in two lines.", "Another.")
    with pytest.raises(UndefinedError):
        words.paragraphs_of("own", True)
    with pytest.raises(ValueError, match="too many values"):
        words.section_of("own", SHARE, "a", Section("b", "c", ()))

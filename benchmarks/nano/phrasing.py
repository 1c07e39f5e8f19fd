"""The wordings of prompts: a grammar of task phrasings, steps, vague requests and irrelevant sentences.

Templates write alternatives as ``{a|b|c}``, which nest; `expand` draws one of them. An empty alternative leaves
something out.
"""

# ruff: noqa: E501
from __future__ import annotations

import random
import re

from cuesmith.modules.embedded.families import FAMILIES, is_held_out
from cuesmith.signatures.rendering import FOLLOW

_CHOICE = re.compile(r"\{([^{}]*)\}")


def expand(template: str, rng: random.Random) -> str:
    """Draw one text from a template."""
    while True:
        text, count = _CHOICE.subn(lambda match: rng.choice(match[1].split("|")), template)
        if not count:
            return " ".join(text.split()).replace(" .", ".").replace(" ,", ",").replace(" ?", "?")
        template = text


_GIVE = "{Give|Return|Output|Write|State|Report|Print|Provide|Say|Find|Determine|Identify|Name|Produce|Work out|Figure out|Get|Show|Compute|Tell me|Give me|Show me|Find me|Write down|Let me know|Respond with|Answer with|Reply with|Come up with}"
_GIVE_LOW = "{give|return|output|write|state|report|provide|find|determine|identify|name|produce|work out|figure out|tell me|give me|find out|say|write down}"

_FRAMES = (
    f"{_GIVE} <np>.",
    f"{_GIVE} <np>.",
    f"{_GIVE} <np>.",
    f"{_GIVE} just <np>.",
    f"{{Please|Kindly}} {_GIVE_LOW} <np>.",
    f"{{Your {{task|job|goal|aim}} is to|You {{must|should|have to|need to}}|I want you to|I'd like you to|The {{task|goal|aim}} is to|Try to|We need to|Can you|Could you}} {_GIVE_LOW} <np>.",
    f"{{Read|Look at|Take|Consider|Look through|Go through|Use}} {{the input|the text|the list|what is given|`<in>`|the given input|everything given}} and {_GIVE_LOW} <np>.",
    f"{{Given|For|From}} {{the input|the text|the list|`<in>`|this input|what I give you}}, {_GIVE_LOW} <np>.",
    "{What is|What's|Which is|Do you know|Can you tell me|Could you tell me|Would you tell me} <np>?",
    "{I need|I want|I would like|I'd like|I am looking for|I'm looking for|I am after|I only want|All I need is|We want|We are interested in} <np>.",
    "{The answer is|The answer should be|The output is|The output should be|The result must be|The answer must be|The expected answer is|`<out>` is|`<out>` should be|`<out>` must be|`<out>`:|Answer:|Output:|Task:|Goal:|Wanted:|Needed:} <np>.",
    "<Np>{,|} please.",
    "<Np>.",
    "<Np>{, nothing else| only|, that is all|, and nothing more}.",
    f"{_GIVE} <np> as `<out>`.",
    "{Fill|Set|Write} `<out>` {with|to} <np>.",
)

_PLACE = "{|||||| of the list| in the list| of the input| in `<in>`| of `<in>`| given| in the text| that I give you}"
_WORDS = "{words|words|words|terms|entries|items of the list|tokens|strings}"
_WORD = "{word|word|word|term|entry|token|item of the list}"
_FIRST = "{first|first|first|initial|opening|leading|very first|earliest|front|foremost}"
_LAST = "{last|last|last|final|closing|very last|ending|rearmost|concluding}"
_START = "{start|beginning|very start|very beginning|front|head|left end}"
_FINISH = "{end|very end|tail|back|right end|close}"
_HAVE = "{do I have|are there|are listed|are mentioned|do I own|are in the list|have I got|can you find|do you see|appear|are here|in total do I have|am I holding|are in my possession}"
_THINGS = "{objects|objects|things|items I own|pieces|single objects|single things|individual objects|individual things|individual items|belongings|possessions|units}"
_NUMBERS = f"{{the numbers|all the numbers|all numbers|the values|the given numbers|these numbers|the listed numbers|every number|the integers|the figures|all of the values|all values}}{_PLACE}"
_BIG = "{largest|largest|biggest|highest|greatest|maximum|maximal|top|most large}"
_SMALL = "{smallest|smallest|lowest|least|minimum|minimal|tiniest|littlest}"
_NUM = "{number|number|number|value|integer|figure|one of the numbers|entry}"
_TALLY = "{Count|Count|Count up|Tally|Tally up|Number|Total|Add up|Sum up|Reckon up}"
_COUNT_OF = "{the number of|the number of|the count of|the total number of|the total count of|the amount of|the quantity of|the overall number of|a count of}"
_WALK = "{the walk|the moves|the path|the route|the instructions|these moves|these instructions|the directions|these steps|the journey}"
_HOME = "{the starting point|the start|the origin|where {you|it|I|we} started|where {you|it|I|we} began|the place {you|it|I} left|the initial position|the point of departure|your starting position|home}"
_EXPR = "{the expression|the logical expression|the Boolean expression|the formula|this expression|the statement|the logic|the proposition|the given logical formula}"
_TF = "{|||, True or False|: True or False|, as True or False| (True or False)}"


def _kind(one: str, many: str) -> dict[str, tuple[str, ...]]:
    others = "{other things|everything else|all other things|the rest|whatever is not " + one + "}"
    return {
        "np": (
            f"{_COUNT_OF} {many}{_PLACE}", f"how many {many} {{there are|I have|are listed|are mentioned|I own}}",
            f"how many of {{the things|these|my things|the objects|them}} are {many}",
            f"the {{total|sum}} {{over|of}} {{all|the}} {many}", f"the {{size|count}} of my {{collection|set|group}} of {many}",
        ),
        "do": (
            f"{_TALLY} {{|only|just}} {{the|all the|all|my|all my|every one of the}} {many}{_PLACE}.",
            f"{{Ignore|Skip|Leave out|Disregard}} {others} and count {{the|my}} {many}.",
            f"Count {{the|my}} {many}, {{not|and ignore|ignoring|but skip|leaving out}} {others}.",
            f"{{Add|Sum}} {{|up|together}} the {{quantities|numbers|amounts}} of {{the|all|my}} {many}.",
        ),
        "ask": (
            f"How many {many} {_HAVE}?", f"How many of {{these|them|the things|the objects|my things}} are {many}?",
            f"{{What is|What's}} {_COUNT_OF} {many}?", f"How many {{|single|individual}} {many} {{altogether|in all|in total|are there in all|all together}}?",
        ),
    }  # fmt: skip


GRAMMAR: dict[str, dict[str, tuple[str, ...]]] = {
    "first": {
        "np": (
            f"the {_FIRST} {_WORD}{_PLACE}", f"the {_FIRST} of {{the|these|all the}} {_WORDS}",
            f"{{the|whichever|whatever}} {_WORD} {{at the|at its|standing at the|that stands at the|that appears at the|found at the|from the|that is at the|you see at the}} {_START}{{| of the list| of the input}}",
            f"{{the|whichever|whatever}} {_WORD} {{that comes|that goes|coming|which comes|that is listed|that appears|listed|appearing|that I wrote|you read|mentioned|in place one|in position 1|before all others|before all the others|that precedes the others|preceding all others}}{{ first|}}",
            f"{{what|which word}} {{comes|stands|is|appears}} {{first|at the {_START}}}", f"{_WORD} {{number|no.}} {{one|1}}", "the head of the {list|sequence}",
        ),
        "do": (
            f"{{Pick|Pick out|Choose|Select|Take|Extract|Copy|Repeat|Keep|Quote|Echo}} {{|only|just}} the {_FIRST} {_WORD}{_PLACE}.",
            f"{{Drop|Remove|Delete|Discard|Skip|Leave out}} {{everything|all words|all}} {{but|except}} the {_FIRST} {_WORD}.",
            f"{{Pick|Choose|Select|Take|Copy|Repeat|Pick out}} {{the|whichever|whatever}} {_WORD} {{at the|appears at the|that is at the|stands at the}} {_START}.",
            f"{{Start|Begin}} and stop with the {_FIRST} {_WORD}.",
        ),
        "ask": (
            f"{{Which|What}} {_WORD} {{comes|is|stands|appears|goes|do you read|was listed|is listed}} {{first|at the {_START}|in front|before the others}}?",
            f"{{With|By}} {{which|what}} {_WORD} does {{the list|it|the input|the text}} {{start|begin|open}}?", "What does {the list|the input|it|the text} {start|begin|open} with?",
        ),
    },
    "last": {
        "np": (
            f"the {_LAST} {_WORD}{_PLACE}", f"the {_LAST} of {{the|these|all the}} {_WORDS}",
            f"{{the|whichever|whatever}} {_WORD} {{at the|at its|standing at the|that stands at the|that appears at the|found at the|from the|that is at the|you see at the}} {_FINISH}{{| of the list| of the input}}",
            f"{{the|whichever|whatever}} {_WORD} {{that comes|that goes|coming|which comes|that is listed|that appears|listed|appearing|that I wrote|you read|mentioned}} last", f"{{the|whichever}} {_WORD} {{after all others|after all the others|that follows the others|that nothing follows|in the last place}}",
            f"{{what|which word}} {{comes|stands|is|appears}} {{last|at the {_FINISH}}}", "the tail of the {list|sequence}",
        ),
        "do": (
            f"{{Pick|Pick out|Choose|Select|Take|Extract|Copy|Repeat|Keep|Quote|Echo}} {{|only|just}} the {_LAST} {_WORD}{_PLACE}.",
            f"{{Drop|Remove|Delete|Discard|Skip|Leave out}} {{everything|all words|all}} {{but|except}} the {_LAST} {_WORD}.",
            f"{{Pick|Choose|Select|Take|Copy|Repeat|Pick out}} {{the|whichever|whatever}} {_WORD} {{at the|appears at the|that is at the|stands at the}} {_FINISH}.",
            f"{{Go|Skip|Jump}} to the {_FINISH} and {_GIVE_LOW} the {_WORD} there.",
        ),
        "ask": (
            f"{{Which|What}} {_WORD} {{comes|is|stands|appears|goes|do you read|was listed|is listed}} {{last|at the {_FINISH}|after the others}}?",
            f"{{With|By}} {{which|what}} {_WORD} does {{the list|it|the input|the text}} {{end|finish|close|stop}}?", "What does {the list|the input|it|the text} {end|finish|close|stop} with?",
        ),
    },
    "reverse": {
        "np": (
            f"{{the|all the|all}} {_WORDS} {{in reverse order|in reversed order|backwards|backward|in backward order|in the opposite order|from last to first|in reverse|from the end to the start|the other way round|starting from the last|reversed|from back to front|in the order last to first}}",
            "the {reversed|backward|inverted|mirrored|flipped} {list|order|sequence|version of the list|order of the words}", "the {list|sequence} {turned around|flipped|backwards|reversed|in reverse|read from the end}",
        ),
        "do": (
            f"{{Reverse|Invert|Flip|Turn around|Mirror|Switch round}} {{the order|the list|the sequence|the order of the {_WORDS}|the {_WORDS}}}{{| of the list| of the input}}.",
            f"{{List|Write|Repeat|Read out|Copy|Put|Arrange|Recite|Order|Read|Spell out}} {{the|all the|all}} {_WORDS} {{backwards|in reverse|from last to first|in reverse order|in the opposite order|from the end|the other way round|starting with the last|from back to front|last one first}}.",
            "{Start|Begin} {with|at|from} the last word and {go|work|end|move|walk} {back to|at|towards} the first.", "{Go|Read|Walk} through the {list|words} {backwards|from the end}{| and write every word}.",
        ),
        "ask": (
            "{What is|What's|How does|What would be} {the list|the sequence|the order|it} {backwards|reversed|in reverse|in reverse order}?", f"How do the {_WORDS} {{read|look|go}} {{backwards|in reverse|from the end|from last to first}}?",
        ),
    },
    "count": {
        "np": (
            f"{_COUNT_OF} {_WORDS}{_PLACE}", f"how many {_WORDS} {{there are|are given|are listed|I gave|the list has|the input has|you see|you were given}}", "the {length|size} of the {list|input|sequence|list of words}",
            "how long the {list|sequence|input} is",
        ),
        "do": (
            f"{{Count|Count|Count up|Tally|Number}} {{|only|just}} {{the|all the|all|these}} {_WORDS}{_PLACE}.", "{Measure|Determine} the {length|size} of the {list|sequence|input}{| in words}.",
        ),
        "ask": (
            f"How many {_WORDS} {{are there|are given|are listed|does the list have|does the list contain|are in the list|do you see|did I write|make up the list|are in it}}?", "How {long|big|large} is {the list|this list|the sequence|it}?",
            "{What is|What's} the {length|size} of {the|this} {list|sequence}?",
        ),
    },
    "sum": {
        "np": (
            f"the {{sum|sum|total|grand total|overall total|overall sum|combined value|combined total|result of adding}} {{of|over}} {_NUMBERS}", "the {sum|total|grand total|overall sum}", f"what {{you get by adding {_NUMBERS}|the numbers add up to|they add up to|the numbers come to|all of them make together|the numbers amount to}}",
            "how much {it|the numbers|they|all the numbers} {is|make|come to|are} {in all|together|altogether|in total}",
        ),
        "do": (
            f"{{Add|Add|Sum|Add up|Sum up|Add together|Total|Total up|Combine by addition}} {_NUMBERS}.", "{Add|Sum} {everything|them|them all|it all|all of them} {up|together}.", "{Put together|Accumulate} all the {numbers|values} {by adding|into one sum}.",
        ),
        "ask": (
            f"{{What is|What's}} the {{sum|total}} of {_NUMBERS}?", "How much {is it|do they make|do the numbers make|are they|are the numbers} {in total|altogether|in all|together|when added}?",
            "What do {the numbers|they|these numbers|all the values} {add up to|sum to|come to|total|make together|amount to}?",
        ),
    },
    "max": {
        "np": (
            f"the {_BIG} {_NUM}{_PLACE}", f"the {_BIG} of {_NUMBERS}", "the {maximum|max|highest|biggest|largest|greatest}", f"{{the|whichever}} {_NUM} {{that is|which is|}} {{larger|bigger|higher|greater}} than {{all others|all the others|the others|the rest|every other}}",
            f"which {_NUM} is {{the {_BIG}|{_BIG}|bigger than the rest}}",
        ),
        "do": (
            f"{{Pick|Pick out|Choose|Select|Take|Extract|Keep}} {{|only|just}} the {_BIG} {_NUM}{_PLACE}.", f"{{Drop|Remove|Discard}} {{everything|all}} {{but|except}} the {_BIG} {_NUM}.",
            "{Take|Compute|Get|Calculate} the {maximum|max}{| of the numbers| of the list}.",
        ),
        "ask": (f"{{Which|What}} {_NUM} is {{the|}} {_BIG}?", "{What is|What's} the {maximum|max|highest value|largest|biggest one}?", "Which {of the numbers|of them|of these|one} is {the largest|the biggest|largest|biggest|highest|the greatest}?", "How {high|large|big} {do the numbers get|does it get|is the largest of them}?"),
    },
    "min": {
        "np": (
            f"the {_SMALL} {_NUM}{_PLACE}", f"the {_SMALL} of {_NUMBERS}", "the {minimum|min|lowest|smallest|least|tiniest}", f"{{the|whichever}} {_NUM} {{that is|which is|}} {{smaller|lower|less}} than {{all others|all the others|the others|the rest|every other}}",
            f"which {_NUM} is {{the {_SMALL}|{_SMALL}|smaller than the rest}}",
        ),
        "do": (
            f"{{Pick|Pick out|Choose|Select|Take|Extract|Keep}} {{|only|just}} the {_SMALL} {_NUM}{_PLACE}.", f"{{Drop|Remove|Discard}} {{everything|all}} {{but|except}} the {_SMALL} {_NUM}.",
            "{Take|Compute|Get|Calculate} the {minimum|min}{| of the numbers| of the list}.",
        ),
        "ask": (f"{{Which|What}} {_NUM} is {{the|}} {_SMALL}?", "{What is|What's} the {minimum|min|lowest value|smallest|smallest one}?", "Which {of the numbers|of them|of these|one} is {the smallest|the lowest|smallest|least|lowest|the least}?", "How {low|small} {do the numbers get|does it get|is the smallest of them}?"),
    },
    "objects": {
        "np": (
            f"{_COUNT_OF} {_THINGS}{_PLACE}", f"how many {_THINGS} {{there are|I have|I own|are listed|there are in all|I have in total|I have altogether}}", "the {total|sum|grand total} of {all|the} {quantities|amounts}", "how {many things|much stuff|many pieces} I {own|have}{| in all| altogether}",
            "the {total|overall} {quantity|amount|number} {of everything|of all things|of all the things|of it all}", "{the total|the overall total} {with|including|counting} {all|the} quantities",
        ),
        "do": (
            f"{_TALLY} {{|all|every one of}} {{the|my|all my|all the}} {_THINGS}{_PLACE}.", "{Count|Tally|Total|Add up} {everything|all of it|all of them|it all}{| I own| I have| that is listed| with quantities| including quantities| mentioned}.",
            "{Add|Sum} {|up} {the|all the|all} {quantities|amounts|numbers of things}{| of everything| of all things| that I list}.", "Count {each|every} {single thing|object|piece|single object|copy}{, not just the kinds|, including duplicates|, with its quantity|}.",
        ),
        "ask": (f"How many {_THINGS} {_HAVE}?", "How {many things|much|many objects} {do I have|do I own|are there|have I} {in total|altogether|in all|all in all|all together}?", f"{{What is|What's}} {_COUNT_OF} {_THINGS}?", "What is the {total|sum} of {the|all} quantities?"),
    },
    "items": {
        "np": (
            f"{_COUNT_OF} {{different|distinct|separate|various|unique}} {{things|kinds|kinds of things|items|types|objects|sorts of things|sorts|types of things|entries}}{_PLACE}", "how many {different|distinct|separate|unique} {things|kinds|items|types|sorts|kinds of things} {there are|I have|I own|are listed}", "how many {kinds|types|sorts} {of things|of objects|of items} {there are|I have|are listed}",
            "the number of {kinds|types|sorts|entries|list entries|kinds of things|types of objects}", "the {length|number of entries} of {the|my} list{|, ignoring quantities|, whatever the quantities}",
        ),
        "do": (
            f"{{Count|Tally|Count up}} {{|only|just}} the {{different|distinct|separate|unique}} {{things|kinds|kinds of things|items|types|objects|sorts|types of things}}{_PLACE}.", "{Count|Tally} the {kinds|types|sorts|entries|kinds of things|types of things|sorts of things}{|, not the quantities|, ignoring quantities|, whatever the quantities|, each only once}.",
            "Count {each|every} {kind|type|sort|entry|kind of thing} {once|only once|just once|a single time}.", "{Ignore|Disregard|Forget} {the quantities|the amounts|how many there are of each} and count the {kinds|entries|kinds of things|different things}.",
        ),
        "ask": (f"How many {{different|distinct|separate|unique}} {{things|kinds|items|types|objects|sorts|kinds of things}} {_HAVE}?", f"How many {{kinds|types|sorts}} {{|of things|of objects}} {_HAVE}?", "How many {entries|kinds} does {the|my} list have{|, ignoring quantities}?"),
    },
    "animals": _kind("an animal", "{animals|animals|animals|animals|living creatures|creatures|beasts}"),
    "fruits": _kind("a fruit", "{fruits|fruits|fruits|pieces of fruit|fruit}"),
    "navigate": {
        "np": (f"{{whether|if}} {{you|I|one|we|they}} {{return|end up back|get back|come back|are back|end}} {{to|at}} {_HOME}{_TF}", f"{{whether|if}} {_WALK} {{ends|end|leads back|lead back|returns|return|finishes|bring you back|brings you back}} {{at|to}} {_HOME}{_TF}", "{whether|if} the {final|last|end} position {is|equals|is the same as} the {first|start|starting|initial} {one|position|point}" + _TF),
        "do": (f"{{Decide|Judge|Check|Tell|Say|Determine|Find out|Verify|See}} {{whether|if}} {{you|I|one|we}} {{return to|end up at|get back to|are back at|end at|come back to}} {_HOME}{_TF}.", f"{{Follow|Trace|Walk|Simulate|Carry out}} {_WALK} and {{say|decide|tell|check|see}} {{whether|if}} {{you|they|I}} {{return to|end at|are back at|get back to}} {_HOME}{_TF}.", f"{{Say|Answer|Write|Return|Output|Respond}} True if {{you|I|we}} {{return to|end at|are back at|end up at}} {_HOME}{{| and False otherwise| and False if not|, else False|, otherwise False}}."),
        "ask": (f"{{If you follow {_WALK}, do|After {_WALK}, do|Following {_WALK}, do|Do|At the end, do|In the end, do}} you {{return to|end up at|get back to|end up back at|come back to}} {_HOME}?", f"{{Does|Will}} {{the walk|the path|the route|the journey}} {{end|finish|lead back|stop}} {{at|to}} {_HOME}?", f"{{Am I|Are you|Are we|Is one}} {{back at|again at}} {_HOME}{{| at the end| after the walk| in the end| afterwards}}?"),
    },
    "position": {
        "np": ("the {final|last|end|resulting} {position|coordinates|location|point|place}{| of the walk| as coordinates| after all moves| of the path| as x and y}", "the {coordinates|position|location} {of the end|at the end|of the end point|where it ends|where you end up|after the moves|reached|you reach}", "where {you|I|it|the walk|we|the path} {end|ends|end up|finish|stop}{| as coordinates| on the grid|, as coordinates}", "the {coordinates|x and y coordinates|x and y} {at the end|of the last point|in the end}"),
        "do": (f"{{Follow|Trace|Walk|Simulate|Carry out}} {_WALK} and {_GIVE_LOW} the {{final|end|last}} {{position|coordinates|point}}.", "{Work out|Calculate|Compute|Track} the {coordinates|position} {where the walk ends|at the end|after the last move}.", "Starting {at|from} 0 0{| facing north}, {give|find|return|write} the {coordinates|position|point} where {you|the walk|I} {end|ends|end up|stop}."),
        "ask": ("{Where|At which coordinates|At what point|At which point|In what position} {does the walk end|do you end|do you end up|do I end up|does the path end|do you finish|am I in the end}?", "What {are|is} the {final|last|end} {coordinates|position|location|point}?"),
    },
    "bool": {
        "np": (f"the {{truth value|value|result|truth|logical value|outcome}} of {_EXPR}", f"{{whether|if}} {_EXPR} {{is true|holds|is true or false|comes out true|is True or False}}", f"what {_EXPR} {{evaluates to|gives|comes to|amounts to}}"),
        "do": (f"{{Evaluate|Compute|Calculate|Work out|Resolve|Simplify|Solve|Judge|Reduce}} {_EXPR}{{|| to True or False| to one value| to a single truth value}}.", f"{{Decide|Determine|Check|Tell|Say}} {{whether|if}} {_EXPR} {{is true|holds|is true or false}}{_TF}."),
        "ask": (f"Is {_EXPR} {{true|True or False|true or false}}?", f"Does {_EXPR} hold?", f"What {{is the value of|does one get from|is the truth value of|is the result of}} {_EXPR}?"),
    },
    "trues": {
        "np": ("{the number of|the count of|the total number of|how many of} {|the|all} {terms|values|parts|operands|conditions|single terms|literals} {that are true|that hold|which are true|that have the value True|with the value True|that come out true}", "how many {|of the} {terms|values|parts|operands|conditions|literals} {are true|hold|are True|have the value True}"),
        "do": ("{Count|Tally|Count up|Number} {|only|just} the {terms|values|parts|operands|conditions|literals} {that are true|that hold|that have the value True|which are true|with the value True}{| after applying not}.", "Count {how many|the} {of the terms are|terms that come out} true.", "Ignore and and or and count the {terms|values|literals} that {are true|hold}."),
        "ask": ("How many {|of the} {terms|values|parts|operands|conditions|literals} {are true|hold|are True|have the value True|come out true}?", "How often does {a|one} {term|value|literal} {come out|turn out} true?"),
    },
}  # fmt: skip
"""Per family: noun phrases (put into frames), commands and questions."""


def _task_text(family: str, rng: random.Random, source: str, target: str) -> str:
    entry = GRAMMAR[family]
    roll = rng.random()
    if roll < 0.15:
        return rng.choice(FAMILIES[family].instructions)
    if roll < 0.6:
        noun = rng.choice(entry["np"])
        frame = rng.choice(_FRAMES).replace("<np>", noun)
        text = expand(frame.replace("<Np>", noun), rng)
    else:
        text = expand(rng.choice(entry["do" if roll < 0.8 else "ask"]), rng)
        if roll < 0.8 and rng.random() < 0.12:
            text = rng.choice(("Please ", "Kindly ", "You should ", "You must ")) + text[0].lower() + text[1:]
    return (text[0].upper() + text[1:]).replace("<in>", source).replace("<out>", target)


def task(
    family: str, rng: random.Random, source: str = "question", target: str = "answer", *, held_out: bool = False
) -> str:
    """Draw a precise phrasing of a family's task.

    Args:
        family: The family's name.
        rng: The source of randomness.
        source: The name of the input field, which some phrasings mention.
        target: The name of the output field.
        held_out: Whether to draw a phrasing of the tenth that is never trained on.
    """
    while True:
        text = _task_text(family, rng, source, target)
        key = text.replace(f"`{source}`", "`in`").replace(f"`{target}`", "`out`").lower()
        if text not in FAMILIES[family].instructions and is_held_out("phrase:" + key) != held_out:
            continue
        if held_out and text in FAMILIES[family].instructions:
            continue
        if " ".join(re.findall("[a-z]+", key)) not in FREE_KEYS:
            return text


def noun_phrase(family: str, rng: random.Random) -> str:
    """Draw a noun phrase for a family's answer, such as "the largest number"."""
    text = expand(rng.choice(GRAMMAR[family]["np"][:2]), rng)
    return re.sub(r"( in| of)? `<in>`", "", text).replace("<out>", "answer")


FREE: dict[str, tuple[str, ...]] = {
    "first": ("Please pick out whichever word appears at the very beginning.", "The opening word is what I'm after.",
              "Tell me how this list starts off.", "I only care about the word in front."),
    "last": ("Just the final one of these words.", "Please pick out whichever word appears at the very end.",
             "Tell me the word this list closes on.", "I only care about the word that finishes the list."),
    "reverse": ("Turn the list back to front.", "Say these words the other way around.", "Flip the sequence of words.",
                "Recite them starting at the end."),
    "count": ("How long is this list?", "Number of words please.", "Tell me how many words you see here.",
              "Give the list's length."),
    "sum": ("What do these come to when you add them?", "Add everything together.", "Total of the numbers please.",
            "Tell me what all of them make in sum."),
    "max": ("Largest number please.", "Which one is the greatest here?", "Tell me the top value of the list.",
            "I want to know the number no other exceeds."),
    "min": ("Smallest number please.", "Which one is the lowest here?", "Tell me the least value of the list.",
            "I want to know the number no other is below."),
    "objects": ("Count everything I own.", "Tell me how many things that is altogether.", "How many objects is that in all?",
                "Give me the grand total of my stuff."),
    "items": ("How many sorts of things is that?", "Count the kinds, not the quantities.",
              "Tell me how many different things you see.", "Every kind counts once: how many are there?"),
    "animals": ("Tell me how many creatures I keep.", "Animals only: how many?", "How big is my zoo, counting each animal?",
                "Number of animals please."),
    "fruits": ("Tell me how much fruit I have, in pieces.", "Fruits only: how many?", "Number of fruits please.",
               "Leave out all that is no fruit and count."),
    "navigate": ("Would I be home again after that?", "Tell me if the route is a closed loop, True or False.",
                 "Does one come back to where one set off?", "Check whether this leads back to the start."),
    "position": ("Coordinates of the end point please.", "Where on the grid would I be standing afterwards?",
                 "Tell me the final coordinates.", "Give the spot where all this ends."),
    "bool": ("Is that true?", "Does the whole thing hold?", "Tell me what the expression comes out as.",
             "Work this logic out."),
    "trues": ("Number of true terms please.", "Tell me how many of the terms hold.", "How many true ones are there?",
              "Count whatever is true here."),
}  # fmt: skip
"""Phrasings written by hand, apart from the grammar and never trained on: a test of free phrasing."""
FREE_KEYS = frozenset(" ".join(re.findall("[a-z]+", text.lower())) for texts in FREE.values() for text in texts)

_VAGUE = (
    "{Answer|Solve|Do|Complete|Handle|Work on|Process|Respond to|Deal with|Look at} {the|this|the given|the following} {question|task|problem|input|request|query|exercise|text|`<in>`}{| well| correctly| properly| as well as you can| for me}.",
    "{Produce|Give|Return|Write|Provide|Generate|Find|Output} {the|a|the right|the correct|an appropriate|the expected|a suitable|the best} {answer|output|response|result|reply|`<out>`}{| for the input| for `<in>`| to the question| for the task| to the request}.",
    "{Given|From|Using|Based on} {`<in>`|the input|the text|the given input}, {produce|give|write|predict|find|generate} {`<out>`|the answer|the output|the result|the right output}.",
    "{Please|Kindly} {answer|help|respond|do the task|solve it|handle this}.", "{Help me|Help} with {this|the|the following} {task|question|problem|request}.",
    "{Do what is asked|Do what is needed|Perform the task|Answer as expected|Do the usual|Fill in the missing field|Do your best|Complete the output fields|Map the input to the output|Process the data|Analyse the input|Transform the input}.",
    "{You are a helpful assistant|You are an expert|You are a capable system}. {Answer|Solve|Complete|Do} the {question|task|problem}.",
    "{What is|What's} the {answer|result|right answer|correct output}?",
    "{Read|Study|Inspect|Look at} {the input|`<in>`|the text} and {answer|respond|give the answer|write `<out>`|reply}.",
)  # fmt: skip


def vague(rng: random.Random, sources: tuple[str, ...], targets: tuple[str, ...], *, held_out: bool = False) -> str:
    """Draw a vague request, often dspy's default instruction."""
    if not held_out and rng.random() < 0.4:
        left, right = (", ".join(f"`{name}`" for name in names) for names in (sources, targets))
        return f"Given the fields {left}, produce the fields {right}."
    while True:
        text = expand(rng.choice(_VAGUE), rng)
        if is_held_out("vague:" + text) == held_out:
            return text.replace("<in>", sources[0]).replace("<out>", targets[-1])


_FLUFF = (
    "{Be|Stay} {careful|precise|exact|accurate|thorough|concise|attentive|brief|patient|calm|rigorous|consistent}{| and {careful|precise|exact|patient|thorough|clear}}{|| in your answer| with details| with every part of the input| when you answer| at all times| throughout}.",
    "{Pay|Give} {close|careful|special|extra} attention to {the details|the details of the input|every part of the input|the wording|what is asked|edge cases|the format|small details|the whole input}.",
    "{Double-check|Check|Verify|Review|Recheck|Reconsider} {your answer|your work|the result|your result|the output|everything|your final answer}{| before responding| before you answer| carefully| at the end| twice| once more}.",
    "Be careful with {ambiguous cases|ambiguous inputs|edge cases|tricky inputs|unusual cases|hard cases}{| and double-check| and double-check your answer| and verify the result}.",
    "{Avoid|Do not make|Try not to make|Watch out for} {common mistakes|mistakes|errors|careless mistakes|typical errors|hasty mistakes}.",
    "{Make sure|Ensure|Be sure} {that|} {the answer is correct|your answer is right|the output is accurate|nothing is missed|the result is correct|you understood the task|you consider everything|the format is right}.",
    "{Take|Use} {your time|a deep breath|all the time you need|care}.", "{This|The task|It} is {very|really|quite|extremely|} {important|easy|simple|hard|common|useful|urgent}{| to me| for my work| to my career| for us| for the team}.",
    "You are {a helpful|a careful|an expert|a skilled|a precise|a world-class|an experienced|a friendly} {assistant|analyst|teacher|helper|expert|editor|clerk|system|librarian}.",
    "{Keep|Make} {the answer|your answer|it|the output} {short|brief|concise|clean|to the point|simple|plain}.", "{Do not|Never|Don't} {explain|guess|add comments|apologise|add anything else|repeat the question|rush|hurry|skip anything|assume too much}.",
    "{Only|Just} {the answer|give the answer|output the answer|write the answer|respond with the answer}{|, nothing else|, no explanation}.", "{Thank you|Thanks|Good luck|Many thanks|You can do it|I believe in you}{|!| very much| in advance| for your help}.",
    "{The input|The text|It|Each input|The data} {is given|comes|was collected|was written|stems} {below|in one line|by a user|from a form|in plain English|from a file|by hand}.", "{A user|Someone|A colleague|My teacher|A customer} {needs|asked for|is waiting for|depends on} {this|the answer|it|the result}{| today| now| soon|}.",
    "{If|When} {unsure|in doubt|the input is unclear|something is ambiguous|you are uncertain}, {choose the most likely answer|read it again|use common sense|pick the best answer|look at the input again|reread the input}.", "{Consider|Take into account|Think about|Keep in mind} {all details|the whole input|every detail|the context|all relevant information|the exact wording|the user's needs|previous mistakes}.",
    "{Read|Go over} {the input|everything|the question|the text|it} {carefully|twice|slowly|completely|attentively|with care}{| before answering| first|}.", "{Errors|Mistakes|Wrong answers} {are costly|will be penalised|cost points|must be avoided|are unacceptable|have consequences}.",
    "{Use|Follow} {the required format|the given format|the output format|common sense|the format exactly|plain language|standard conventions}.", "{Focus on|Concentrate on} {accuracy|correctness|the key information|the relevant parts|what matters|quality|the essentials}.",
)  # fmt: skip


def fluff(rng: random.Random, *, held_out: bool = False) -> str:
    """Draw an irrelevant sentence, such as the advice that reflective optimizers add."""
    while True:
        text = expand(rng.choice(_FLUFF), rng)
        if is_held_out("fluff:" + text) == held_out:
            return text.replace("!.", "!")


_STEPWISE = (
    "{Think|Reason|Work|Proceed|Go|Solve it|Answer} {step by step|one step at a time|in steps|in small steps|step after step}{|| before answering| before you answer| and show your work| first| and write down each step| in your reasoning}.",
    "{Let's|Let us} {think|work|reason|go} {step by step|through it step by step|through this in steps|one step at a time}.", "{Show|Write down|Write out|Give|Spell out} {your work|all steps|every step|each step|the steps|your reasoning step by step|all intermediate results|intermediate results|the single steps|your working}{|| before the answer| first| in the reasoning| one by one}.",
    "{Break|Split} {the problem|it|the task|this} {down into|into} {steps|small steps|simple steps|parts}{| and do them one by one| and solve each}.", "{Explain|Lay out|Derive} {the answer|the solution|your solution|how you get there} {step by step|in steps|one step at a time}.",
    "{Use|Do it in|Work in} {numbered|labelled|clear|separate|small|explicit} steps.",
)  # fmt: skip


def stepwise(rng: random.Random, *, held_out: bool = False) -> str:
    """Draw a generic request for stepwise reasoning."""
    while True:
        text = expand(rng.choice(_STEPWISE), rng)
        if is_held_out("stepwise:" + text) == held_out:
            return text


STEPS_HEADER = FOLLOW  # the line that `render_steps` writes is the one to train on
_HEADERS = (
    "{Follow|Carry out|Do|Execute|Perform|Work through|Use|Go through} {these|the|all|every one of these|each of these|the following} steps{| in order| one by one| in the given order| exactly| below| in your reasoning}{:|:|.|, labelling each:| and label each one:| and write the work of each:}",
    "{Steps|Procedure|Method|Instructions|How to do it|Plan|Recipe|Follow this plan|Work as follows|Proceed as follows|Do this}:",
    "{Follow|Do} every step in order and {start|begin|open} {the work of each|each one|each} with its {label|number}:",
)  # fmt: skip


def steps_header(rng: random.Random, *, held_out: bool = False) -> str:
    """Draw the line above a block of steps, mostly `STEPS_HEADER`."""
    if not held_out and rng.random() < 0.6:
        return STEPS_HEADER
    while True:
        text = expand(rng.choice(_HEADERS), rng)
        if is_held_out("header:" + text) == held_out:
            return text


_COPY_WORDS = "{Copy|Write down|List|Repeat|Write out} {the words|all the words|all words|every word}{| in order| as given| in their order}."
_COPY_NUMBERS = "{Copy|Write down|List|Repeat|Write out} {the numbers|all the numbers|all numbers|every number}{| in order| as given| in their order}."
_NUMBER_WORDS = "{Number|Enumerate|Write a number before} {the words|all words|each word|every word}{| in order| from 1 on|, starting with 1}."
_MOVES = "{Start at 0 0|Starting at 0 0|Begin at 0 0|From 0 0}{| facing north|, facing north,} {and|} {write|note|list|give} {the number, direction, distance and position|number, direction, distance and position|direction, distance and position with a number} {for|of|after} {each|every} {move|sentence|instruction}."
_LAST_TOTAL = "{Give|Take|Write|Return|State|Answer with} the {last|final} {total|running total}{| as the answer}."
_NOTS = "{Apply|Resolve|Carry out|Work out|Remove} {every not|each not|all nots|the nots|every negation|all negations}{|, keeping the rest}."


def _of_kind(one: str, many: str) -> tuple[str, ...]:
    return (
        f"{{Write down|List|Pick out|Keep|Copy|Select}} {{only|just}} the {many} {{with|and}} {{their quantities|their numbers|quantities}}.",
        f"{{Write|List|Give|Note}} {{each|every}} {one} with {{the running total|its running total|the total so far}}{{| of the quantities}}.",
        _LAST_TOTAL,
    )


_MOST = "For {each|every} number {write|note|give} the <w> {number|one} {so far|seen so far|up to there}."
STEP_TEXTS: dict[str, tuple[str, ...]] = {
    "first": (_COPY_WORDS, "{Give|Take|Write|Return|State} the {first|first one} of {them|these|the words}{| as the answer}."),
    "last": (_COPY_WORDS, "{Give|Take|Write|Return|State} the {last|last one|final one} of {them|these|the words}{| as the answer}."),
    "reverse": (
        _NUMBER_WORDS, "{Write|List|Repeat|Copy} the numbered words {from the last to the first|from last to first|backwards|in reverse order}.",
        "{Give|Write|List|Return} the words {in that order|in this order|of that list} without {their|the} numbers{| as the answer}.",
    ),
    "count": (_NUMBER_WORDS, "{Give|Take|Write|Return|State} the {number|index} of the {last|final} word{| as the answer}."),
    "sum": (
        _COPY_NUMBERS, "{Add|Sum} {the numbers|them|all numbers} {one at a time|one by one|one after the other}, {writing|noting|giving} {each|every} {sum|sum so far|intermediate sum}.",
        "{Give|Take|Write|Return|State} the {final|last} {sum|total}{| as the answer}.",
    ),
    "max": (_COPY_NUMBERS, _MOST.replace("<w>", "{largest|biggest|greatest|highest}"), "{Give|Take|Write|Return|State} the last {of these|of them|one}, the {largest|biggest|greatest|highest}."),
    "min": (_COPY_NUMBERS, _MOST.replace("<w>", "{smallest|least|lowest}"), "{Give|Take|Write|Return|State} the last {of these|of them|one}, the {smallest|least|lowest}."),
    "objects": ("{Write|List|Give|Note} {each|every} {thing|object|item|thing listed} with {the running total|its running total|the total so far}{| of the quantities}.", _LAST_TOTAL),
    "items": (
        "{Number|Enumerate} the {kinds of things|kinds|different things|entries} in order, {ignoring|leaving out|without} {quantities|the quantities}.",
        "{Give|Take|Write|Return|State} the number of the last {kind|entry|thing}{| as the answer}.",
    ),
    "animals": _of_kind("animal", "animals"),
    "fruits": _of_kind("fruit", "fruits"),
    "navigate": (
        _MOVES, "{Give|Write|State|Note} the {final|last} position.",
        "{Answer|Say|Write} True if {the final position|it|that position|the last position} is 0 0{, otherwise False| and False otherwise|, else False}.",
    ),
    "position": (_MOVES, "{Give|Write|State|Return} the {final|last} position as the answer."),
    "bool": (
        _NOTS, "{Join|Combine|Reduce} {each group|every group|the terms} {of and|joined by and} {into|to} one value.",
        "{Join|Combine|Reduce} the values {with or|joined by or} {into|to} the answer.",
    ),
    "trues": (_NOTS, "{Write|List|Give} {each|every} value with the {count|number} of True so far.", "{Give|Take|Write|Return|State} the {last|final} count{| as the answer}."),
}  # fmt: skip
"""Per family the wordings of its steps."""

FILLER_STEPS = (
    "{Read|Look at|Go over|Study} {the input|the question|the text|everything} {carefully|with care|closely|first|attentively}.",
    "{Check|Double-check|Verify|Review} {your work|the result|everything|the steps above|your answer}{| once more| carefully}.",
    "{Make sure|Ensure} {you understand the task|nothing was missed|the answer is right|the format is right}.",
)


def step_texts(family: str, rng: random.Random, *, own: float = 0.5) -> list[str]:
    """Draw the wording of each of a family's steps, with the share ``own`` of a family's own wording."""
    pairs = zip(FAMILIES[family].steps, STEP_TEXTS[family], strict=True)
    if rng.random() < own * 0.6:
        return list(FAMILIES[family].steps)
    return [step if rng.random() < own / 2 else expand(template, rng) for step, template in pairs]


def filler_step(rng: random.Random) -> str:
    """Draw a step that asks for nothing; its work is "Done."."""
    return expand(rng.choice(FILLER_STEPS), rng)

"""Think, then edit: what the MLLM is asked before an edit, and how its answer is read.

It is asked for a JSON object, whose texts say what changes, how that looks and what stays. Together they are the
sentence that the edit follows. An answer that cannot be read is asked for again, a bounded number of times; then the
instruction itself is the sentence, and ``Inputs.notes`` says so.

The shipped question follows what works for others: a rewriter that knows the picture, resolves what the instruction
only hints at, and states in concrete nouns what is to be seen and what is kept (the prompt rewriting of Qwen-Image-Edit
and FLUX.2; EditThinker, arXiv:2512.05965).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from reasonbrain.config.schema import ThinkingConfig
from reasonbrain.interfaces import Inputs, Mllm

QUESTION = """Look at the picture and at this instruction for an edit of it: "{instruction}"

The instruction may only hint at the edit. Work out what really happens to the things in this picture, then write the \
edit for an image editor that draws well but cannot reason. Name things by what they look like and where they are. Say \
what is to be seen, not what is to be missing. Contradict nothing in the instruction, and add nothing that does not \
follow from it. Write English, at most {words} words in all. Answer with this JSON object and nothing else:
{answer}"""

ANSWER = {
    "change": "a command: which thing to turn into what",
    "look": "how it looks then: shape, colour, material, place, the traces it leaves",
    "keep": "what stays exactly as it is",
}
REVIEW = """The first picture is a photograph, the second an edit of it, side by side or one above the other on a grey \
sheet. The instruction was: "{instruction}"
The editor was told: "{sentence}"

Does the second picture show what would come of the first by this instruction, and is everything else kept? Give two \
whole numbers from 0 (not at all) to 10 (perfectly): "follows" and "keeps". Then write the edit of the first picture \
anew, so that the editor does better: more plainly where it missed something, and with what it should have kept. \
Repeat what was right. At most {words} words in all. Answer with this JSON object and nothing else:
{answer}"""
SCORES = {"follows": "<0 to 10>", "keeps": "<0 to 10>"}
OBJECTS = "objects"  # the key of the names of the things that the edit is about
AGAIN = "\n\nYour last answer could not be read: {reason}. Answer with the JSON object alone."
TOKENS = 6  # the MLLM may generate this many per word that it may use, for JSON, objects and thoughts
SLACK = 2  # an answer may have this many times the words asked for: models count badly


class Thought(NamedTuple):
    """What an answer says: the sentence, and the names of the objects."""

    sentence: str
    objects: list[str]


def question(thinking: ThinkingConfig, instruction: str) -> str:
    """What the MLLM is asked about an instruction."""
    return fill(thinking.question or QUESTION, thinking, instruction=instruction)


def fill(template: str, thinking: ThinkingConfig, first: Mapping[str, str] = MappingProxyType({}), **texts: str) -> str:
    """``template`` with the texts, and the form of the answer, in the places named ``{...}``. first: what the answer
    begins with."""
    form: dict[str, Any] = {key: f"<{what}>" for key, what in (thinking.answer or ANSWER).items()}
    form = {**first, **form, OBJECTS: ["<name>", "..."]}
    texts = {"words": str(thinking.words), "answer": json.dumps(form, indent=1), **texts}
    # in one pass, so that braces in an instruction are plain text
    return re.sub(r"\{(\w+)\}", lambda found: texts.get(found[1], found[0]), template)


def objects_in(answer: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in an answer, outside of ``<think>`` tags."""
    text = re.sub(r"<think>.*?(</think>|$)", "", answer, flags=re.DOTALL)
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield found
        at = text.find("{", end)


def read(thinking: ThinkingConfig, answer: str | Mapping[str, Any]) -> Thought:
    """The sentence and the objects of an answer. Raises ValueError, which says what is wrong with it."""
    found = answer if isinstance(answer, Mapping) else next(objects_in(answer), None)
    if found is None:
        raise ValueError("it holds no JSON object" if answer else "it is empty")
    texts = [found.get(key) for key in thinking.answer or ANSWER]
    if missing := [key for key, text in zip(thinking.answer or ANSWER, texts, strict=True) if not _is_said(text)]:
        raise ValueError(f"'{missing[0]}' is missing or not a text")
    sentence = " ".join(_ended(text) for text in texts)
    if (count := len(sentence.split())) > SLACK * thinking.words:
        raise ValueError(f"it has {count} words, and {thinking.words} were asked for")
    names = found.get(OBJECTS)
    named = [" ".join(name.split()) for name in names if _is_said(name)] if isinstance(names, list) else []
    return Thought(sentence, named)


def _is_said(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip()) and " ".join(text.split()).isprintable()


def _ended(said: Any) -> str:
    text = " ".join(said.split())
    return text if text[-1] in ".!?" else text + "."


def think(thinking: ThinkingConfig, mllm: Mllm, inputs: Inputs) -> Inputs:
    """``inputs`` with ``sentences`` and ``notes``. Rows without objects get those of the answer.

    An answer that cannot be read is asked for again for its row alone, so that a row does not depend on the others of
    its batch."""
    asked = [question(thinking, text) for text in inputs.instructions]
    said = mllm.reason(replace(inputs, instructions=asked), TOKENS * thinking.words)
    sentences, notes, objects = [], [], []
    for row, answer in enumerate(said):
        thought, note = _settle(thinking, mllm, inputs, row, asked[row], answer)
        sentences.append(thought.sentence)
        objects.append(inputs.objects[row] or thought.objects)
        notes.append(note)
    return replace(inputs, sentences=sentences, objects=objects, notes=notes)


def _settle(
    thinking: ThinkingConfig, mllm: Mllm, inputs: Inputs, row: int, asked: str, answer: str
) -> tuple[Thought, str]:
    """The thought of a row, and a note if it is only the instruction."""
    for attempt in range(thinking.retries + 1):
        try:
            return read(thinking, answer), ""
        except ValueError as e:
            wrong = str(e)
        if attempt < thinking.retries:
            again = asked + AGAIN.format(reason=wrong)
            (answer,) = mllm.reason(replace(one_row(inputs, row), instructions=[again]), TOKENS * thinking.words)
    note = f"the MLLM gave no readable answer ({wrong}); the instruction itself was used"
    return Thought(inputs.instructions[row], []), note


def one_row(inputs: Inputs, row: int) -> Inputs:
    """One row as a batch."""
    one = slice(row, row + 1)
    ready = {slot: features[one] for slot, features in inputs.ready.items()}
    return Inputs(inputs.images[one], inputs.instructions[one], inputs.objects[one], inputs.regions[one], ready)


class Review(NamedTuple):
    """What the MLLM says of an edit. follows, keeps: 0..10, how well it follows the instruction and keeps the rest.
    sentence: what to tell the editor next."""

    follows: int
    keeps: int
    sentence: str

    @property
    def score(self) -> float:
        """The geometric mean of both scores, as in VIEScore (arXiv:2312.14867): 0 if either is."""
        return math.sqrt(self.follows * self.keeps)


def review(thinking: ThinkingConfig, mllm: Mllm, sheet: Inputs, sentence: str) -> Review | None:
    """The MLLM's review of one edit; None if no answer can be read. sheet: one row, the source and the edit in one
    picture, with the instruction."""
    asked = fill(REVIEW, thinking, SCORES, instruction=sheet.instructions[0], sentence=sentence)
    question = asked
    for _ in range(thinking.retries + 1):
        (answer,) = mllm.reason(replace(sheet, instructions=[question]), TOKENS * thinking.words)
        try:
            return _read_review(thinking, answer)
        except ValueError as e:
            question = asked + AGAIN.format(reason=e)
    return None


def _read_review(thinking: ThinkingConfig, answer: str) -> Review:
    found = next(objects_in(answer), {})
    numbers = [found.get(key) for key in SCORES]
    for key, value in zip(SCORES, numbers, strict=True):
        if type(value) is not int or not 0 <= value <= 10:  # true and false are ints
            raise ValueError(f"'{key}' is not a whole number from 0 to 10")
    return Review(numbers[0], numbers[1], read(thinking, found).sentence)  # type: ignore[arg-type]

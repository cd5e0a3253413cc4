"""Extracts the objects that an instruction names, for records and edits without ``objects``.

Noun chunks come from spaCy if it and its model ``en_core_web_sm`` are installed, otherwise from TextBlob's rule-based
parser, which needs no download. Either is imported on first use.

    find_objects("What would happen if the ice cube on the blue plate were left in the sun?")
    -> ["ice cube", "blue plate", "sun"]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

MAX_OBJECTS = 4
MAX_WORDS = 4  # of one phrase; the last is the head noun
MAX_CHARACTERS = 4000  # of the instruction; the rest is ignored
SPACY_MODEL = "en_core_web_sm"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Head nouns that are not objects.
_PICTURE = "picture image photo photograph scene view look show version result outcome instruction edit"
_TIME = """time moment second minute hour day night evening morning noon midday afternoon midnight week weekend month
    year decade century season spring summer autumn winter today tomorrow yesterday tonight sunset sunrise while
    january february march april may june july august september october november december"""
_PLACE = """top bottom side end start beginning middle left right front back rest part way place center centre edge
    home dark"""
_OTHER = """thing one what which who whom whose other kind sort lot bit case fact idea effect change be have do go
    happen become s t"""
_NO_OBJECT = _words(f"{_PICTURE} {_TIME} {_PLACE} {_OTHER}")
_NOBODY = frozenset(f"{who}{end}" for who in ("some", "no", "any", "every") for end in ("one", "body", "thing"))

# Determiners and numerals: how many or which, not what.
_DETERMINERS = _words(
    """a an the this that these those my your his her its our their some any no all both each every either neither
    another such half many much more most several few less least enough only same own whole other not
    one two three four five six seven eight nine ten eleven twelve"""
)

Phrase = list[str]


def find_objects(instruction: str) -> list[str]:
    """The key objects of an instruction: at most four short lower-case noun phrases without determiners, in order of
    appearance. A second mention of an object is merged into the first: "the candle ... the red candle" gives
    ``["red candle"]``. The list is empty if the text names no object."""
    found: list[Phrase] = []
    for phrase in _finder()[1](instruction[:MAX_CHARACTERS]):
        phrase = _trimmed(phrase)
        if not phrase:
            continue
        same = [i for i, old in enumerate(found) if old[-1] == phrase[-1] and _one_within_other(old, phrase)]
        if same:
            found[same[0]] = max(found[same[0]], phrase, key=len)
        else:
            found.append(phrase)
    return [" ".join(phrase) for phrase in found[:MAX_OBJECTS]]


def _one_within_other(a: Phrase, b: Phrase) -> bool:
    return set(a) <= set(b) or set(b) <= set(a)


def finder_name() -> str:
    """The parser in use: ``spacy`` or ``textblob``."""
    return _finder()[0]


@cache
def _finder() -> tuple[str, Callable[[str], Iterator[Phrase]]]:
    try:
        nlp = import_module("spacy").load(SPACY_MODEL, exclude=["ner", "lemmatizer"])
        return "spacy", lambda text: _spacy_phrases(nlp, text)
    except (ImportError, OSError, ValueError):  # spaCy or its model is missing, or they do not fit
        return "textblob", _textblob_phrases


def _trimmed(phrase: Phrase) -> Phrase:
    """The phrase without determiners and numerals; empty if its head is not an object."""
    words = [w for w in (w.strip("-'’.") for w in phrase) if w and w not in _DETERMINERS and not w[0].isdigit()]
    if not words or words[0] in _NOBODY or not any(c.isalpha() for c in words[-1]):
        return []
    head = words[-1]
    return [] if head in _NO_OBJECT or head.removesuffix("s") in _NO_OBJECT else words[-MAX_WORDS:]


def _spacy_phrases(nlp: Any, text: str) -> Iterator[Phrase]:
    for chunk in nlp(text).noun_chunks:
        if chunk.root.pos_ in ("NOUN", "PROPN"):
            words = chunk.doc[chunk.start : chunk.root.i + 1]
            yield [t.lower_ for t in words if t.pos_ in ("ADJ", "NOUN", "PROPN", "VERB", "CCONJ")]


# The rule-based path matches a pattern against the parser's word classes, one letter a word. The tagger mostly errs by
# tagging nouns as verbs ("the purple peg") and verbs as nouns ("let the plant bloom"). So after a determiner the last
# word of the phrase counts as a noun, and in a clause without a verb the last noun counts as its verb.
_CLASS = {
    "DT": "D",
    "PRP$": "D",
    "CD": "J",
    "VB": "V",
    "VBP": "V",
    "VBZ": "Z",
    "VBG": "G",
    "VBN": "G",
    "MD": "M",
    "CC": "C",
}
_PHRASE = re.compile(r"D+(?:Z|(?:JCJ)?[JG]*(?:N+|V|J))|(?:JCJ)?J*N+")
_CLAUSE_OPENERS = _words("if when while once because whether unless until let")
_PARTICLES = _words("out over up down off away forward")


def _class(tag: str) -> str:
    coarse = {"NN": "N", "JJ": "J", "RB": "R", "VB": "W", "PR": "P", "IN": "I", "TO": "I"}
    return _CLASS.get(tag) or coarse.get(tag[:2], "." if tag in (".", ",", ":") else "x")


def _textblob_phrases(text: str) -> Iterator[Phrase]:
    parse = import_module("textblob.en").parse
    text = re.sub(r"n['’]t\b", " not", text)
    text = re.sub(r"['’]s\b", "", text)
    text = text.replace("/", " and ").replace("_", " ")
    text = re.sub(r"[^\w\s.,;:!?-]", " , ", text)  # the parser tags emojis as nouns
    for sentence in parse(text, chunks=False, relations=False, lemmata=False).split():
        words = [token[0].lower() for token in sentence]
        classes = "".join(_class(token[1]) for token in sentence)
        plural = [token[1] == "NNS" for token in sentence]
        for match in _PHRASE.finditer(classes):
            start, end = match.span()
            if not _is_verb(words, classes, start, end):
                yield words[start : end - _ends_in_verb(words, classes, plural, start, end)]


def _is_verb(words: list[str], classes: str, start: int, end: int) -> bool:
    """Whether a single noun is a verb: "Break the ice", "Blow out the candle", "until it topples"."""
    if classes[start:end] != "N":
        return False
    command = start == 0 and end < len(words) and (classes[end] == "D" or words[end] in _PARTICLES)
    return command or (start > 0 and words[start - 1] in ("i", "you", "he", "she", "it", "we", "they"))


def _ends_in_verb(words: list[str], classes: str, plural: list[bool], start: int, end: int) -> bool:
    """Whether the last noun is a verb: "let the plant bloom", "where would the candle fall", "an elbow hits the"."""
    if not re.fullmatch(r"D.*NN", classes[start:end]):
        return False
    rest = classes[end : next((i for i in range(end, len(words)) if words[i] in _CLAUSE_OPENERS), None)]
    rest = re.split("[.C]", rest)[0].lstrip("R")
    if rest[:1] != "I":
        rest = rest[:1]  # "the ball rolled"; after a preposition its verb may come later: "the ball on the ramp rolled"
    if set("VZWGM") & set(re.sub(r"D+[JG]*[VZG]", "", rest)):
        return False
    before = words[start - 1] if start else ""
    opened = before in _CLAUSE_OPENERS or classes[start - 1 : start] == "M"
    made = before == "make" and classes[end : end + 1] in ("", ".", "R")  # but "make the fire truck red"
    verb_form = plural[end - 1] and not plural[end - 2] and (start == 0 or words[start] in ("a", "an"))
    return opened or made or verb_form

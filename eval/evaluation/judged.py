"""What a judge is asked: judged metrics, their questions, pictures and scales, and what is made of the answers.

The criteria and scales are the benchmarks', the words are ours, so figures are near to published ones and not the same.

- **RISE ...** (arXiv:2504.02826; PhoenixZ810/RISEBench, gpt_eval.py): 1 to 5 for reasoning, appearance consistency and
  visual plausibility; in logical_reasoning the first two are 0 or 1, taken as 1 or 5, and there is no third. Score:
  0.5, 0.3, 0.2; logical 0.7, 0.3; where the benchmark sets consistency free, its weight goes to reasoning. A reasoning
  of 1 halves it, but not below 1. Accuracy: all that apply are 5.
- **KRIS ...** (arXiv:2505.16707; mercurystraw/Kris_Bench, metrics_*.py): visual consistency, visual quality,
  instruction following, and in the tasks about knowledge knowledge plausibility, each 1 to 5.
- **Ins-Align** (SmartEdit, arXiv:2312.06739): did the edit do what it was asked to? 0 or 1. People answered there.
- **MLLM Score** (EditWorld, arXiv:2405.14785): how well the edit fits instruction and expected result, 0 to 1. No
  prompt is published; this asks for tenths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from PIL import Image
from tqdm import tqdm

from reasonbrain.data.record import Record, Records
from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.edits import Edits
from reasonbrain.utils.endpoint import Endpoint, Failed, Refused

LINE = re.compile(r'^[\s*_`>#"{]*(?:final )?score[\s*_`"]*[:=][\s*_`"]*(-?[\d./]*\d)[\s*_`".,}]*$', re.I | re.M)

THREADS = 8  # records judged at a time
CAPTIONS = {
    "source": "The original picture:",
    "edit": "The edited picture:",
    "target": "The reference picture, which shows the right result:",
}
FIVE = {n: float(n) for n in range(1, 6)}
RIGHT_OR_WRONG = {0: 1.0, 1: 5.0}  # on the same scale
YES_OR_NO = {0: 0.0, 1: 1.0}
TENTHS = {n: n / 10 for n in range(11)}


@dataclass(frozen=True)
class Question:
    """``levels``: what an answer stands for. ``values``: the answers there are, and the score of each. ``shown``: of
    source, edit and target, in this order. ``facts``: what the judge is told."""

    asks: str
    levels: Mapping[int, str]
    values: Mapping[int, float]
    shown: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        facts = "".join(f"{name}: {said}\n" for name, said in self.facts.items())
        levels = "\n".join(f"{n}: {meaning}" for n, meaning in self.levels.items())
        return (
            f"{self.asks}\n\n{facts}\nThe scale:\n{levels}\n\nSay in a few sentences what you see and why. Then end "
            f"with one line of this form, N a whole number from {min(self.values)} to {max(self.values)}:\nscore: N"
        )


Scores = dict[str, float | None]


@dataclass(frozen=True)
class Judged:
    """``ask``: the question about a record, None where it does not apply. ``combine``: makes the score of a record's
    ``parts``, which are asked for; then nothing is asked besides."""

    ask: Callable[[Record], Question | None] = lambda record: None
    parts: tuple[str, ...] = ()
    combine: Callable[[Record, Scores], float | None] | None = None
    higher_is_better = True  # of all of them


def judge_rows(
    rows: list[dict[str, Any]], records: Records, edits: Edits, metrics: Mapping[str, Judged], judge: Endpoint
) -> dict[str, dict[str, Any]]:
    """Puts the judged scores of the edits before the rows' others; other systems are not judged. Returns for each
    metric that was asked for how many are ``judged``, and the ids of the ``unparsable`` answers and ``failed`` calls.

    Raises UserError where no call is answered at all, and like ``Endpoint.ask``."""
    names = list(dict.fromkeys(part for name, metric in metrics.items() for part in metric.parts or (name,)))
    tally: dict[str, dict[str, Any]] = {name: {"judged": 0, "unparsable": [], "failed": []} for name in names}
    failures: list[str] = []
    reading = Lock()  # readers are not made for threads

    def of(row: dict[str, Any]) -> tuple[Scores, dict[str, str]]:
        with reading:
            record = records[row["index"]]
            edit = edits(record)
        assert edit
        scores: Scores = dict.fromkeys(names)
        outcomes = {}
        for name in names:
            if question := JUDGED[name].ask(record):
                try:
                    scores[name] = _judge(question, record, edit, judge)
                    outcomes[name] = "unparsable" if scores[name] is None else "judged"
                except (Refused, Failed) as e:
                    failures.append(str(e))
                    outcomes[name] = "failed"
        made = {n: m.combine(record, scores) if m.combine else scores[n] for n, m in metrics.items()}
        return made, outcomes

    pool = ThreadPoolExecutor(THREADS)
    try:
        found = tqdm(pool.map(of, rows), desc="judged", total=len(rows), unit="record", disable=None)
        for row, (scores, outcomes) in zip(rows, found, strict=True):
            nothing: Scores = dict.fromkeys(scores)
            row["scores"] = {s: (scores if s == "edits" else nothing) | known for s, known in row["scores"].items()}
            for name, outcome in outcomes.items():
                if outcome == "judged":
                    tally[name]["judged"] += 1
                else:
                    tally[name][outcome].append(row["id"])
    finally:
        pool.shutdown(cancel_futures=True)
    failed = sum(len(t["failed"]) for t in tally.values())
    if failed and not any(t["judged"] or t["unparsable"] for t in tally.values()):
        raise UserError(f"all {failed} calls of the judge failed; the last: {failures[-1]}")
    return tally


def _judge(question: Question, record: Record, edit: Image.Image, judge: Endpoint) -> float | None:
    pictures = {"source": record.source, "edit": edit, "target": record.target}
    answer = judge.ask(question.text, {CAPTIONS[name]: p for name in question.shown if (p := pictures[name])})
    return read_score(answer, question.values)


def read_score(answer: str, values: Mapping[int, float]) -> float | None:
    """The value of the whole number on the line "score: N", also written N/HIGHEST. None where there is no such line,
    where several differ, or where ``values`` has no such number: a judge is never guessed at."""
    spelled = {text: value for n, value in values.items() for text in (str(n), f"{n}/{max(values)}")}
    found = {spelled.get(text) for text in LINE.findall(answer)}
    return found.pop() if len(found) == 1 else None


def _facts(record: Record, expected: str = "") -> dict[str, str]:
    return {"Instruction": record.instructions[0]} | ({"Expected result": expected} if expected else {})


UNTOUCHED = {
    5: "everything else is as it was",
    4: "one small thing differs that should not",
    3: "one thing differs clearly, or a few small ones",
    2: "two or more things differ clearly",
    1: "hardly anything is as it was: another scene, person or style",
}
KEPT = (
    "Judge how well an edited picture keeps what its instruction does not ask to change: persons, objects, places, "
    "colours, background and style. Changes that the instruction asks for, or that follow from it, do not count, and "
    "neither does whether they are right."
)
FOLLOWED = {
    5: "all that should change did, and rightly",
    4: "it did, apart from a small detail",
    3: "partly: the idea is there, something that matters is wrong or missing",
    2: "mostly not",
    1: "not at all, or misunderstood",
}
SOUND = {
    5: "clear, coherent and natural throughout",
    4: "one small flaw",
    3: "one or two flaws that catch the eye",
    2: "several flaws that disturb: bent shapes, smears, unreadable parts",
    1: "hardly to be recognised, or broken",
}


def _logical(record: Record) -> bool:
    return record.category == "logical_reasoning"


def _beside(record: Record) -> str:
    """What RISEBench lays beside the edit: in these two categories the reference picture, where there is one."""
    return "target" if record.target and record.category in ("spatial_reasoning", "logical_reasoning") else "source"


def rise_reasoning(record: Record) -> Question | None:
    beside, notes = _beside(record), record.notes
    expected = "" if beside == "target" else notes.get("reference") or notes.get("reference_txt", "")
    if beside == "source" and not expected:
        return None
    shown = (beside, "edit") if beside == "target" or "reasoning_img" in notes else ("edit",)
    asks = "Judge whether an edited picture shows the result that is expected, in kind and in degree, and only that."
    levels = {1: "it shows the right result", 0: "it does not"} if _logical(record) else FOLLOWED
    return Question(asks, levels, RIGHT_OR_WRONG if _logical(record) else FIVE, shown, _facts(record, expected))


def rise_consistency(record: Record) -> Question | None:
    if "consistency_free" in record.notes:
        return None
    beside = _beside(record)
    of = " Compare with the reference picture, which differs from the original by the right change alone."
    levels = {1: "style, setting and arrangement agree", 0: "they do not"} if _logical(record) else UNTOUCHED
    values = RIGHT_OR_WRONG if _logical(record) else FIVE
    return Question(KEPT + (of if beside == "target" else ""), levels, values, (beside, "edit"), _facts(record))


def rise_plausibility(record: Record) -> Question | None:
    if _logical(record):
        return None
    asks = "Judge how real a generated picture looks: is it sharp, coherent, and possible by the laws of nature?"
    return Question(asks, SOUND, FIVE, ("edit",))


RISE = {"RISE reasoning": 0.5, "RISE consistency": 0.3, "RISE plausibility": 0.2}


def rise_weights(record: Record) -> dict[str, float]:
    """The weights of the dimensions that apply to a record."""
    weights = {"RISE reasoning": 0.7, "RISE consistency": 0.3} if _logical(record) else dict(RISE)
    if "consistency_free" in record.notes:
        weights["RISE reasoning"] += weights.pop("RISE consistency")
    return weights


def rise_score(record: Record, scores: Scores) -> float | None:
    """1 to 5; None where a part of it is not known. RISEBench's tables show 25 (score - 1)."""
    known = {name: score for name in rise_weights(record) if (score := scores[name]) is not None}
    if known.keys() != rise_weights(record).keys():
        return None
    score = sum(weight * known[name] for name, weight in rise_weights(record).items())
    return max(score / 2, 1.0) if known["RISE reasoning"] == 1 else score


def rise_accuracy(record: Record, scores: Scores) -> float | None:
    """1 where all that applies is 5, else 0; None where a part of it is not known."""
    parts = [scores[name] for name in rise_weights(record)]
    return None if None in parts else float(all(part == 5 for part in parts))


# the tasks that are not about knowledge, by their folders in both published layouts
PERCEPTION = (
    *("count_change", "object_count", "color_change", "size_adjustment", "part_completion", "anomaly_correction"),
    *("position_movement", "viewpoint_change", "view_pair", "multi-instruction_execution"),
)


def kris_instruction(record: Record) -> Question:
    seen = record.category in ("viewpoint_change", "view_pair")
    expected = record.notes.get("explain_en", "") if record.category == "anomaly_correction" else ""
    asks = "Judge whether an edited picture carries out its instruction. What else has changed does not count."
    return Question(asks, FOLLOWED, FIVE, ("source", "edit", *(["target"] if seen else [])), _facts(record, expected))


def kris_knowledge(record: Record) -> Question | None:
    if record.category in PERCEPTION or not record.notes.get("explain_en"):
        return None
    asks = (
        "Judge whether an edited picture shows what must come of its instruction by what is known of the world, as the "
        "expected result explains it. Beauty does not count. Where the instruction is mostly not carried out, answer 1."
    )
    levels = {5: "all agrees with it", 4: "one small thing does not", 3: "one thing clearly does not"}
    levels |= {2: "several things clearly do not", 1: "it contradicts it, or does not show it"}
    return Question(asks, levels, FIVE, ("source", "edit"), _facts(record, record.notes["explain_en"]))


def kris_quality(record: Record) -> Question:
    asks = "Judge the quality of a generated picture: shapes, light, texture, nothing doubled or broken. "
    return Question(asks + "Few pixels and soft edges alone are no flaw.", SOUND, FIVE, ("edit",))


def ins_align(record: Record) -> Question:
    asks = "Judge whether an edited picture does what its instruction says or implies."
    levels = {1: "yes: whoever asked for it would take it as done", 0: "no"}
    return Question(asks, levels, YES_OR_NO, ("source", "edit"), _facts(record, (record.captions or ("", ""))[1]))


def mllm_score(record: Record) -> Question:
    asks = "Judge how well an edited picture fits its instruction and the result to be expected, all in all."
    levels = {10: "perfectly", 5: "half of it is right", 0: "not at all"}
    return Question(asks, levels, TENTHS, ("source", "edit"), _facts(record, (record.captions or ("", ""))[1]))


JUDGED: dict[str, Judged] = {
    "RISE score": Judged(parts=tuple(RISE), combine=rise_score),
    "RISE accuracy": Judged(parts=tuple(RISE), combine=rise_accuracy),
    "RISE reasoning": Judged(rise_reasoning),
    "RISE consistency": Judged(rise_consistency),
    "RISE plausibility": Judged(rise_plausibility),
    "KRIS instruction": Judged(kris_instruction),
    "KRIS knowledge": Judged(kris_knowledge),
    "KRIS consistency": Judged(lambda record: Question(KEPT, UNTOUCHED, FIVE, ("source", "edit"), _facts(record))),
    "KRIS quality": Judged(kris_quality),
    "Ins-Align": Judged(ins_align),
    "MLLM Score": Judged(mllm_score),
}

"""Judged metrics: the questions, pictures and scales for a multimodal judge, and the scores from its answers.

Criteria and scales are those of the benchmarks, but the prompts are not. Scores are therefore not comparable with
published ones.

- **RISE ...** (arXiv:2504.02826; PhoenixZ810/RISEBench, gpt_eval.py): 1 to 5 for reasoning, appearance consistency and
  visual plausibility. In logical_reasoning the first two are 0 or 1, mapped to 1 and 5, and plausibility is left out.
  The score weighs them 0.5, 0.3, 0.2 (logical: 0.7, 0.3). For records marked consistency_free, the weight of
  consistency goes to reasoning. A reasoning of 1 halves the score, with 1 as the minimum. Accuracy: 1 if all parts that
  apply are 5.
- **KRIS ...** (arXiv:2505.16707; mercurystraw/Kris_Bench, metrics_*.py): visual consistency, visual quality and
  instruction following, and knowledge plausibility in the knowledge tasks, each 1 to 5.
- **Ins-Align** (SmartEdit, arXiv:2312.06739): whether the edit follows the instruction, 0 or 1. In the paper, people
  judge this.
- **MLLM Score** (EditWorld, arXiv:2405.14785): how well the edit fits the instruction and the expected result, 0 to 1.
  The paper publishes no prompt; this one asks for tenths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from PIL import Image
from tqdm import tqdm

from reasonbrain.data.record import Record, Records
from reasonbrain.errors import UserError, reason
from reasonbrain.eval.evaluation.edits import Edits
from reasonbrain.utils.endpoint import Endpoint, Failed, Refused
from reasonbrain.utils.threads import as_finished

# runs in linear time for any answer: what precedes and follows the score must be on its line
LINE = re.compile(
    r'^[ \t\xa0*_`>#"{]*(?:final )?score[\s*_`"]*[:=][\s*_`"]*(-?[\d./]*\d)[ \t\r\xa0*_`".,}]*$', re.I | re.M
)

THREADS = 8  # records judged in parallel
CAPTIONS = {
    "source": "The original picture:",
    "edit": "The edited picture:",
    "target": "The reference picture, which shows the right result:",
}
FIVE = {n: float(n) for n in range(1, 6)}
RIGHT_OR_WRONG = {0: 1.0, 1: 5.0}  # mapped to the scale of FIVE
YES_OR_NO = {0: 0.0, 1: 1.0}
TENTHS = {n: n / 10 for n in range(11)}


@dataclass(frozen=True)
class Question:
    """A question to the judge, answered by a whole number."""

    asks: str
    levels: Mapping[int, str]  # meanings of answers
    values: Mapping[int, float]  # valid answers, and the score of each
    shown: tuple[str, ...]  # some of source, edit and target, in the order shown
    facts: Mapping[str, str] = field(default_factory=dict)  # texts of the record, by heading

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
    """A judged metric: one question about a record, or a combination of other judged metrics."""

    ask: Callable[[Record], Question | None] = lambda record: None  # None: the metric does not apply to the record
    parts: Mapping[str, Judged] = field(default_factory=dict)  # by name; asked instead of ``ask``
    combine: Callable[[Record, Scores], float | None] | None = None  # computes the score from those of the parts
    higher_is_better = True  # for every judged metric


def judge_rows(
    rows: list[dict[str, Any]], records: Records, edits: Edits, metrics: Mapping[str, Judged], judge: Endpoint
) -> dict[str, dict[str, Any]]:
    """Adds the judged scores of the edits to the rows, before the other scores. Baselines are not judged.

    Returns, for each metric that was asked, the number of ``judged`` records, and the ids of records with an
    ``unparsable`` answer or a ``failed`` call. Raises UserError like ``Endpoint.ask``, and if every call failed."""
    asked = {part: of for name, metric in metrics.items() for part, of in (metric.parts or {name: metric}).items()}
    tally: dict[str, dict[str, Any]] = {name: {"judged": 0, "unparsable": [], "failed": []} for name in asked}
    failures: list[str] = []
    reading = Lock()  # readers are not thread-safe

    def of(row: dict[str, Any]) -> tuple[Scores, dict[str, str]]:
        scores: Scores = dict.fromkeys(asked)
        outcomes = {}
        with reading:
            try:
                record = records[row["index"]]
                edit = edits(record)
            except Exception as e:  # it has become unreadable since it was scored
                failures.append(reason(e))
                return dict.fromkeys(metrics), dict.fromkeys(asked, "failed")
        assert edit
        for name, metric in asked.items():
            if question := metric.ask(record):
                try:
                    scores[name] = _judge(question, record, edit, judge)
                    outcomes[name] = "unparsable" if scores[name] is None else "judged"
                except (Refused, Failed) as e:
                    failures.append(str(e))
                    outcomes[name] = "failed"
        made = {n: m.combine(record, scores) if m.combine else scores[n] for n, m in metrics.items()}
        return made, outcomes

    answers = as_finished(of, rows, THREADS)
    found = dict(tqdm(answers, desc="judged", total=len(rows), unit="record", disable=None))
    for number, row in enumerate(rows):
        scores, outcomes = found[number]
        nothing: Scores = dict.fromkeys(scores)
        row["scores"] = {s: (scores if s == "edits" else nothing) | known for s, known in row["scores"].items()}
        for name, outcome in outcomes.items():
            if outcome == "judged":
                tally[name]["judged"] += 1
            else:
                tally[name][outcome].append(row["id"])
    failed = sum(len(t["failed"]) for t in tally.values())
    if failed and not any(t["judged"] or t["unparsable"] for t in tally.values()):
        raise UserError(f"all {failed} calls to the judge failed; the last: {failures[-1]}")
    return tally


def _judge(question: Question, record: Record, edit: Image.Image, judge: Endpoint) -> float | None:
    pictures = {"source": record.source, "edit": edit, "target": record.target}
    answer = judge.ask(question.text, {CAPTIONS[name]: p for name in question.shown if (p := pictures[name])})
    return read_score(answer, question.values)


def read_score(answer: str, values: Mapping[int, float]) -> float | None:
    """The score for the number on the line "score: N" or "score: N/HIGHEST". None if there is no such line, if several
    such lines differ, or if ``values`` does not contain the number."""
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


def _reference(record: Record) -> str:
    """The picture that RISEBench compares the edit with: in two categories the reference picture, if there is one."""
    return "target" if record.target and record.category in ("spatial_reasoning", "logical_reasoning") else "source"


def rise_reasoning(record: Record) -> Question | None:
    """RISEBench's question of whether the edit shows the expected result; None if no expected result is known."""
    reference, notes = _reference(record), record.notes
    expected = "" if reference == "target" else notes.get("reference") or notes.get("reference_txt", "")
    if reference == "source" and not expected:
        return None
    shown = (reference, "edit") if reference == "target" or "reasoning_img" in notes else ("edit",)
    asks = "Judge whether an edited picture shows the result that is expected, in kind and in degree, and only that."
    levels = {1: "it shows the right result", 0: "it does not"} if _logical(record) else FOLLOWED
    return Question(asks, levels, RIGHT_OR_WRONG if _logical(record) else FIVE, shown, _facts(record, expected))


def rise_consistency(record: Record) -> Question | None:
    """RISEBench's question of whether everything else is unchanged; None for ``consistency_free`` records."""
    if "consistency_free" in record.notes:
        return None
    reference = _reference(record)
    of = " Compare with the reference picture, which differs from the original by the right change alone."
    levels = {1: "style, setting and arrangement agree", 0: "they do not"} if _logical(record) else UNTOUCHED
    values = RIGHT_OR_WRONG if _logical(record) else FIVE
    return Question(KEPT + (of if reference == "target" else ""), levels, values, (reference, "edit"), _facts(record))


def rise_plausibility(record: Record) -> Question | None:
    """RISEBench's question of whether the image looks real; None for logical records."""
    if _logical(record):
        return None
    asks = "Judge how real a generated picture looks: is it sharp, coherent, and possible by the laws of nature?"
    return Question(asks, SOUND, FIVE, ("edit",))


RISE = {"RISE reasoning": 0.5, "RISE consistency": 0.3, "RISE plausibility": 0.2}


def rise_weights(record: Record) -> dict[str, float]:
    """The weights of the parts that apply to a record."""
    weights = {"RISE reasoning": 0.7, "RISE consistency": 0.3} if _logical(record) else dict(RISE)
    if "consistency_free" in record.notes:
        weights["RISE reasoning"] += weights.pop("RISE consistency")
    return weights


def rise_score(record: Record, scores: Scores) -> float | None:
    """1 to 5; None if a part is missing. RISEBench's tables show 25 (score - 1)."""
    known = {name: score for name in rise_weights(record) if (score := scores[name]) is not None}
    if known.keys() != rise_weights(record).keys():
        return None
    score = sum(weight * known[name] for name, weight in rise_weights(record).items())
    return max(score / 2, 1.0) if known["RISE reasoning"] == 1 else score


def rise_accuracy(record: Record, scores: Scores) -> float | None:
    """1 if all parts that apply are 5, else 0; None if a part is missing."""
    parts = [scores[name] for name in rise_weights(record)]
    return None if None in parts else float(all(part == 5 for part in parts))


# the tasks that need no knowledge, by the names of their folders in both published layouts
PERCEPTION = (
    *("count_change", "object_count", "color_change", "size_adjustment", "part_completion", "anomaly_correction"),
    *("position_movement", "viewpoint_change", "view_pair", "multi-instruction_execution"),
)


def kris_instruction(record: Record) -> Question:
    """KRIS-Bench's question of whether the instruction was carried out."""
    seen = record.category in ("viewpoint_change", "view_pair")
    expected = record.notes.get("explain_en", "") if record.category == "anomaly_correction" else ""
    asks = "Judge whether an edited picture carries out its instruction. What else has changed does not count."
    return Question(asks, FOLLOWED, FIVE, ("source", "edit", *(["target"] if seen else [])), _facts(record, expected))


def kris_knowledge(record: Record) -> Question | None:
    """KRIS-Bench's question of whether the edit agrees with world knowledge; None if no explanation is given."""
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
    """KRIS-Bench's question of the quality of the image."""
    asks = "Judge the quality of a generated picture: shapes, light, texture, nothing doubled or broken. "
    return Question(asks + "Few pixels and soft edges alone are no flaw.", SOUND, FIVE, ("edit",))


def ins_align(record: Record) -> Question:
    """The question of whether the edit follows its instruction, answered with yes or no."""
    asks = "Judge whether an edited picture does what its instruction says or implies."
    levels = {1: "yes: whoever asked for it would take it as done", 0: "no"}
    return Question(asks, levels, YES_OR_NO, ("source", "edit"), _facts(record, (record.captions or ("", ""))[1]))


def mllm_score(record: Record) -> Question:
    """The question of how well the edit fits the instruction and the expected result, in tenths."""
    asks = "Judge how well an edited picture fits its instruction and the result to be expected, all in all."
    levels = {10: "perfectly", 5: "half of it is right", 0: "not at all"}
    return Question(asks, levels, TENTHS, ("source", "edit"), _facts(record, (record.captions or ("", ""))[1]))


RISE_PARTS = {
    "RISE reasoning": Judged(rise_reasoning),
    "RISE consistency": Judged(rise_consistency),
    "RISE plausibility": Judged(rise_plausibility),
}
JUDGED: dict[str, Judged] = {
    "RISE score": Judged(parts=RISE_PARTS, combine=rise_score),
    "RISE accuracy": Judged(parts=RISE_PARTS, combine=rise_accuracy),
    **RISE_PARTS,
    "KRIS instruction": Judged(kris_instruction),
    "KRIS knowledge": Judged(kris_knowledge),
    "KRIS consistency": Judged(lambda record: Question(KEPT, UNTOUCHED, FIVE, ("source", "edit"), _facts(record))),
    "KRIS quality": Judged(kris_quality),
    "Ins-Align": Judged(ins_align),
    "MLLM Score": Judged(mllm_score),
}

"""Answering a question about a piece of text by extraction: the offline model's part as a sub-model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from orchestrator.models.offline import items, passages, spans, tables
from orchestrator.models.offline.lexicon import STOP_WORDS
from orchestrator.models.offline.passages import Passage
from orchestrator.models.offline.prompts import Document, take_apart
from orchestrator.models.offline.questions import COUNTS, ITEMS, STATISTICS, TABLE, Question
from orchestrator.models.offline.understand import understand

NOT_FOUND = "I could not find an answer in this text."
_QUOTE = re.compile(r"(?i)\bquote (?:what|the|any|all|every|those|only)\b")
_QUOTED = ("value", "definition", "passages")
_MAIL = re.compile(r"(?m)^From: ")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Form:
    """What the reply should look like."""

    as_json: bool
    key: str
    per_document: bool
    how_often: bool
    only: bool
    most: int

    @classmethod
    def of(cls, instruction: str) -> _Form:
        example = re.search(r"\{\s{0,3}[\"'](\w{1,40})[\"']\s{0,3}:", instruction)
        most = re.search(r"(?i)\bat most (\d{1,3})\b", instruction)
        return cls(
            as_json=bool(re.search(r"(?i)\bjson\b", instruction)) or example is not None,
            key=example[1] if example else "",
            per_document=bool(
                re.search(r"(?i)\b(?:for|per|in|of) (?:each|every)? ?(?:document|file|page|chapter)\b", instruction)
            )
            and bool(re.search(r"(?i)\b(?:each|every|per)\b", instruction)),
            how_often=bool(
                re.search(
                    r"(?i)\bhow (?:often|many times) each\b|\bwith (?:their |the )?(?:counts?|frequenc)", instruction
                )
            ),
            only=bool(re.search(r"(?i)\b(?:only|just|nothing (?:else|but))\b", instruction)),
            most=int(most[1]) if most else _SHOWN,
        )

    def write(self, data: Any, text: str) -> str:
        """Return ``data`` as JSON when that is wanted, and ``text`` otherwise."""
        if not self.as_json:
            return text
        return json.dumps({self.key: data} if self.key else data, ensure_ascii=False)


def answer(prompt: str) -> str:
    """Return the answer to a sub-call's prompt."""
    parts = take_apart(prompt)
    question = understand(parts.instruction)
    if _QUOTE.search(parts.instruction) and question.kind not in _QUOTED:
        question = Question(question.text, "passages", scope=question.scope)
    form = _Form.of(parts.instruction)
    documents = _within_scope(question, parts.documents)
    if question.kind == "unable":
        return question.what
    if not documents:
        return form.write(
            [] if question.kind in ITEMS else 0 if question.kind in COUNTS else None, "There is no text to look at."
        )
    if question.kind in COUNTS:
        return _counted(question, documents, form)
    if question.kind in ITEMS or question.kind == "nth":
        return _listed(question, documents, form)
    if question.kind == "summary":
        sentences = passages.summary(documents, form.most)
        return form.write(sentences, " ".join(sentences) or NOT_FOUND)
    return _quoted(question, documents, form)


def count(question: Question, document: Document) -> int:
    """Return how often what the question looks at is in the document."""
    text, terms = document.text, question.terms
    if question.noun == "occurrences":
        found = [items.occurrences(text, word, terms) for word in terms.words] if terms else []
        return 0 if terms and terms.every and not all(found) else sum(found)
    if terms is None:
        match question.noun:
            case "documents":
                return len(_MAIL.findall(text)) if "mail" in question.what else 1
            case "characters":
                return len(text)
            case "words":
                return len(text.split())
    return sum(1 for _ in fitting(question, document))


def fitting(question: Question, document: Document) -> list[str]:
    """Return the items of the document that the question looks at, in order, repeated ones too."""
    if question.noun == "labelled numbers":
        return _numbers_of(question.what, document.text)
    if question.noun in TABLE:
        table = tables.read(document.text)
        columns, rows = table or ([], iter(()))
        return columns if question.noun == "columns" else [",".join(row) for row in rows]
    if question.noun == "occurrences":
        words = question.terms.words if question.terms else ()
        return (
            [word for word in words for _ in range(items.occurrences(document.text, word, question.terms))]
            if question.terms
            else []
        )
    found = items.find(question.noun, document.text, document.name)
    return [item for item in found if item and items.fits(item, question.terms, question.relation, question.noun)]


def decimal(number: str) -> Decimal:
    """Return the value of a number as :mod:`items` finds it, whatever stands around the digits."""
    european = re.search(r"-?\d{1,3}(?:\.\d{3})+,\d{1,2}(?!\d)", number)
    if european:
        return Decimal(european.group().replace(".", "").replace(",", "."))
    match = re.search(r"-?[\d,]{1,60}(?:\.\d{1,40})?", number)
    return Decimal(match.group().replace(",", "")) if match else Decimal(0)


def statistic(question: Question, found: Counter[str]) -> Decimal | None:
    """Return the sum, mean, smallest or largest of numbers, each with how often it occurs."""
    if not found:
        return None
    values = {decimal(number): 0 for number in found}
    for number, times in found.items():
        values[decimal(number)] += times
    match question.kind:
        case "smallest":
            return min(values)
        case "largest":
            return max(values)
        case "sum":
            return sum((value * times for value, times in values.items()), Decimal(0))
        case _:
            return sum((value * times for value, times in values.items()), Decimal(0)) / found.total()


def _numbers_of(label: str, text: str) -> list[str]:
    cells = tables.column(label, text)
    if cells is None:
        return list(items.numbers_after(label, text))
    return [number for cell in cells for number in items.find("numbers", cell)][: len(cells)]


def _within_scope(question: Question, documents: Sequence[Document]) -> list[Document]:
    named = [document for document in documents if question.scope and document.name.endswith(question.scope)]
    return named or list(documents)


def _counted(question: Question, documents: list[Document], form: _Form) -> str:
    by_name: Counter[str] = Counter()
    for number, document in enumerate(documents, 1):
        by_name[document.name or (f"document {number}" if len(documents) > 1 else "the text")] += count(
            question, document
        )
    if question.negate:
        by_name = Counter({name: 1 for name, times in by_name.items() if times == 0})
    having = [name for name, times in by_name.items() if times]
    lines = "\n".join(f"{name}: {by_name[name]}" for name in having)
    if form.per_document:
        return form.write({name: by_name[name] for name in having}, lines or "0 in every document")
    match question.kind:
        case "count":
            return form.write(by_name.total(), str(by_name.total()))
        case "count_documents":
            return form.write(len(having), str(len(having)))
        case "which_documents":
            return form.write(having, "\n".join(having) or "none")
        case "top_documents":
            ranked = sorted(by_name, key=by_name.__getitem__, reverse=not question.least)[: question.number]
            return form.write(
                {name: by_name[name] for name in ranked}, "\n".join(f"{name}: {by_name[name]}" for name in ranked)
            )
        case _:
            return form.write(bool(having), f"Yes, {by_name.total()} found." if having else "No.")


def _listed(question: Question, documents: list[Document], form: _Form) -> str:
    found = Counter(item for document in documents for item in fitting(question, document))
    if question.plain_words:
        found = Counter({item: times for item, times in found.items() if item.lower() not in STOP_WORDS})
    if question.kind in STATISTICS:
        result = statistic(question, found)
        return form.write(
            None if result is None else float(result), NOT_FOUND if result is None else f"{result.normalize():f}"
        )
    match question.kind:
        case "count_distinct":
            return form.write(len(found), str(len(found)))
        case "count_both":
            return form.write(found.total(), f"{found.total()} ({len(found)} different)")
        case "common":
            ranked = sorted(found, key=lambda item: (found[item] if question.least else -found[item], item))[
                : question.number
            ]
            return form.write(
                {item: found[item] for item in ranked},
                "\n".join(f"{item}: {found[item]}" for item in ranked) or NOT_FOUND,
            )
        case "longest" | "shortest":
            ordered = sorted(found, key=len, reverse=question.kind == "longest")[: question.number]
        case "earliest" | "latest":
            ordered = sorted(found, reverse=question.kind == "latest")[: question.number]
        case "nth":
            every = [item for document in documents for item in fitting(question, document)]
            ordered = every[question.skip :][: question.number]
        case _:
            ordered = list(found)
    if form.how_often:
        return form.write(
            {item: found[item] for item in ordered},
            "\n".join(f"{item}: {found[item]}" for item in ordered) or NOT_FOUND,
        )
    return form.write(ordered, "\n".join(ordered) or NOT_FOUND)


def _quoted(question: Question, documents: list[Document], form: _Form) -> str:
    found = _exact(question, documents, form.most) or passages.find(question, documents, form.most)
    if question.kind == "definition":
        # A passage that merely shares the word is much less than a definition.
        found = [passage if passage.exact else replace(passage, confidence=passage.confidence / 2) for passage in found]
    data = [
        {
            "document": passage.document,
            "quote": passage.quote,
            **({"value": passage.value} if passage.value else {}),
            "confidence": passage.confidence,
        }
        for passage in found
    ]
    if form.as_json and not form.key:
        return form.write(data, "")
    best = next((passage for passage in found if passage.confidence >= 0.5), None)  # noqa: PLR2004 - half the weight
    if best is None:
        return form.write(None, NOT_FOUND)
    short = best.value or best.quote
    where = f" ({best.document})" if best.document else ""
    return form.write(short, short if form.only or not best.value else f"{best.value}\n“{best.quote}”{where}")


def _exact(question: Question, documents: list[Document], most: int) -> list[Passage]:
    """Find the value or the definition asked for by its form, which is surer than by the words around it."""
    found: list[Passage] = []
    for document in documents:
        text = document.text
        if question.kind == "value":
            places = spans.values(question.what, text)
            found += [
                Passage(document.name, text[start:end].strip(), value, round(sure, 3))
                for start, end, value, sure in places
            ]
        elif question.kind == "definition":
            lines = spans.definitions(question.what, question.noun, text)
            found += [
                Passage(document.name, text[start:end].strip(), "", round(sure, 3), exact=True)
                for start, end, sure in lines
            ]
    return sorted(found, key=lambda passage: -passage.confidence)[:most]

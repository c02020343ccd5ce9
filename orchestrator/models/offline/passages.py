"""Finding the passages of a text that answer a question, by the words they share with it.

This is search, not understanding: a passage scores by the weight of the question's words in it, and a rare word weighs
more.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestrator.models.offline import items, spans
from orchestrator.models.offline.lexicon import ASKING_WORDS, STOP_WORDS
from orchestrator.models.offline.prompts import Document
from orchestrator.models.offline.questions import Question

_MOST_HITS = 4_000
_MOST_TERMS = 16
_LONGEST_LINE = 600
_LONGEST_QUOTE = 700
_SHORT_WORD = 4
_NEIGHBOUR = 0.6
_TYPE_BONUS = 0.1
_QUOTABLE = (20, 500)
_PLAIN_SHARE = 0.92


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, word for word.

    Attributes:
        document: name of the document.
        quote: the piece.
        value: the part of it that answers, where one can be told apart; else empty.
        confidence: how much of the question's weight it carries, from 0 to 1.
        exact: its form says that it gives the value or the definition asked for.
    """

    document: str
    quote: str
    value: str
    confidence: float
    exact: bool = False


def key_terms(text: str) -> tuple[str, ...]:
    """Return the words of a question that its answer should share: in lower case, without endings and common words."""
    found = re.findall(r"[^\W_][\w.'’/-]*[^\W_]|[^\W_]|_\w+", text)
    kept = [word for word in found if word.lower() not in STOP_WORDS | ASKING_WORDS]
    return tuple(dict.fromkeys(stem(word) for word in kept))[:_MOST_TERMS]


def terms_of(question: Question) -> tuple[str, ...]:
    """Return the key terms of what a question is about."""
    return key_terms(question.what if question.kind in ("value", "definition") else question.text)


def stem(word: str) -> str:
    """Return ``word`` without a common English ending; an identifier stays as it is."""
    lowered = re.sub(r"['’]s$", "", word.lower())
    if not lowered.isalpha() or not (word.islower() or word.istitle()):
        return lowered
    for ending in ("ations", "ation", "ings", "ing", "ies", "ied", "ers", "es", "ed", "er", "s", "e", "y"):
        if lowered.endswith(ending) and len(lowered) - len(ending) >= _SHORT_WORD:
            return lowered[: -len(ending)]
    return (
        lowered[:-1]
        if lowered.endswith("s") and not lowered.endswith("ss") and len(lowered) >= _SHORT_WORD
        else lowered
    )


def find(question: Question, documents: Iterable[Document], most: int) -> list[Passage]:
    """Return the best passages, best first."""
    terms = terms_of(question)
    if not terms:
        return []
    found = (passage for document in documents for passage in _in_document(question, document, terms, most))
    best = heapq.nlargest(most * 2, found, key=lambda passage: passage.confidence)
    unique = {(passage.document, passage.quote): passage for passage in best}
    return list(unique.values())[:most]


def _in_document(question: Question, document: Document, terms: tuple[str, ...], most: int) -> Iterator[Passage]:
    text = document.text
    folded = items.fold(text)
    hits = [list(_hits(folded, term)) for term in terms]
    if not any(hits):
        return
    line_count = text.count("\n") + 1
    weights = [math.log(1 + line_count / (1 + len(positions))) + 0.1 for positions in hits]
    lines: dict[int, set[int]] = {}
    for index, positions in enumerate(hits):
        for position in positions:
            lines.setdefault(_line_start(text, position), set()).add(index)
    scored = heapq.nlargest(most * 2, ((score, start) for start, score in _scores(text, lines, weights)))
    whole = sum(weights)
    for score, start in scored:
        begin, end = spans.around(text, start, lambda piece: _weight(piece, terms, weights))
        quote = text[begin : min(end, begin + _LONGEST_QUOTE)].strip()
        value = spans.value_of(question, quote, terms)
        coverage = max(score, _weight(quote, terms, weights)) / whole
        bonus = _TYPE_BONUS if value else 0.0
        if quote:
            yield Passage(document.name, quote, value, round(min(coverage * (1 - _TYPE_BONUS) + bonus, 1.0), 3))


def _scores(text: str, lines: dict[int, set[int]], weights: list[float]) -> Iterator[tuple[int, float]]:
    # A sentence may be wrapped over lines, so what the neighbours hold counts too, if less.
    for start, own in lines.items():
        end = text.find("\n", start, start + _LONGEST_LINE)
        near: set[int] = set()
        if end >= 0:
            near |= lines.get(end + 1, set())
        if start > 0:
            near |= lines.get(_line_start(text, start - 1), set())
        yield start, sum(weights[index] for index in own) + _NEIGHBOUR * sum(weights[index] for index in near - own)


def _weight(piece: str, terms: tuple[str, ...], weights: list[float]) -> float:
    folded = items.fold(piece)
    return sum(weight for term, weight in zip(terms, weights, strict=True) if next(_hits(folded, term), -1) >= 0)


def _hits(folded: str, term: str) -> Iterator[int]:
    """Yield where a word begins with ``term`` and is not much longer."""
    at, found = folded.find(term), 0
    inflected = term.isalpha() and len(term) >= _SHORT_WORD
    while at >= 0 and found < _MOST_HITS:
        end = at + len(term)
        if at == 0 or not _is_word(folded[at - 1]):
            rest = folded[end : end + 6]
            tail = len(rest) - len(rest.lstrip("abcdefghijklmnopqrstuvwxyz"))
            if tail <= (5 if inflected else int(rest.startswith("s"))) and not _is_word(rest[tail : tail + 1]):
                found += 1
                yield at
        at = folded.find(term, end)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _line_start(text: str, position: int) -> int:
    lowest = max(position - _LONGEST_LINE, 0)
    newline = text.rfind("\n", lowest, position)
    return newline + 1 if newline >= 0 else lowest


def _is_prose(text: str) -> bool:
    shortest, longest = _QUOTABLE
    plain = sum(character.isalpha() or character in " ,.'’" for character in text[:longest])
    return shortest <= len(text) <= longest and text[:1].isupper() and plain >= _PLAIN_SHARE * len(text)


def summary(documents: Iterable[Document], most: int) -> list[str]:
    """Return the sentences whose words are the most frequent ones of the text, in the order of the text."""
    sentences = [sentence for document in documents for sentence in items.sentences(document.text)]
    words = [
        [word for word in re.findall(r"[^\W\d_]{3,40}", sentence.lower()) if word not in STOP_WORDS]
        for sentence in sentences
    ]
    frequency: dict[str, int] = {}
    for word in (word for sentence in words for word in sentence):
        frequency[word] = frequency.get(word, 0) + 1
    scores = [
        sum(math.log(frequency[word]) for word in set(sentence)) / math.sqrt(len(sentence) + 8)
        if _is_prose(text)
        else -1.0
        for sentence, text in zip(words, sentences, strict=True)
    ]
    best = heapq.nlargest(most, range(len(sentences)), key=scores.__getitem__)
    return [sentences[index] for index in sorted(best) if scores[index] >= 0]

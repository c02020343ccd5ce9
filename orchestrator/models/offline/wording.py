"""What the offline model writes in plain English: questions for its sub-calls, and the nouns of its answers.

The questions can be put to any model; nothing in them is a private sign.
"""

from __future__ import annotations

from orchestrator.models.offline.questions import COUNTS, ITEMS, Question, Terms

_RELATIONS = {"is": "named", "contains": "that contain", "starts": "that start with", "ends": "that end with"}
_ONE_RELATES = {"is": "named", "contains": "that contains", "starts": "that starts with", "ends": "that ends with"}
_ONE = {
    "labelled numbers": "number",
    "classes": "class",
    "ip addresses": "IP address",
    "times of day": "time of day",
    "amounts of money": "amount of money",
    "dates as YYYY-MM-DD": "date written as YYYY-MM-DD",
}
_AS_WRITTEN = {
    "labelled numbers": "numbers",
    "dates as YYYY-MM-DD": "dates written as YYYY-MM-DD",
    "emails": "email addresses",
    "urls": "URLs",
    "ip addresses": "IP addresses",
}


SUMMARY = "Summarise the text below in at most 5 sentences. Reply with one line of JSON, a list of sentences."
_COUNT = (
    "For each document below, how many {what}?{reading} Reply with one line of JSON, an object from document name to "
    "number, and nothing else. Leave out the documents where it is 0."
)
_ITEMS = (
    "List the distinct {items} in the documents below, with how often each occurs.{reading} Reply with one line of "
    "JSON, an object from item to number, and nothing else."
)
_QUOTES = (
    "Quote what answers it in the documents below, word for word. Reply with one line of JSON, a list of at most 5 "
    "objects with the keys document, quote, value (the part of the quote that is the answer, if there is one) and "
    "confidence (0 to 1). Reply with an empty list if nothing answers it."
)


def questions(question: Question) -> tuple[str, ...]:
    """Return what to ask of every slice; each text stands before the slice itself."""
    if question.kind in COUNTS and question.noun == "occurrences" and question.terms:
        return tuple(
            _count(f"times does {_term(word, question.terms)} occur", question.terms) for word in question.terms.words
        )
    if question.kind in COUNTS:
        return (_count(f"{noun(question)} are there", question.terms),)
    if question.kind in ITEMS:
        return (_ITEMS.format(items=noun(question), reading=_reading(question.terms)),)
    if question.kind == "summary":
        return (SUMMARY,)
    return (f"Question: {question.text}\n{_QUOTES}",)


def noun(question: Question, *, one: bool = False) -> str:
    """Return what is looked at, in the plural: ``functions that start with "test_"``.

    Args:
        question: whose noun is wanted.
        one: in the singular.
    """
    called = _AS_WRITTEN.get(question.noun, question.noun)
    if one:
        called = _ONE.get(question.noun, called.removesuffix("s") if not called.endswith("sses") else called[:-2])
    if question.noun == "occurrences" and question.terms:
        return f"{called} of {term(question.terms)}"
    if question.noun == "labelled numbers":
        return f"{called} after the label {quoted(question.what)}"
    if question.terms is None:
        return called
    joiner = " and " if question.terms.every else " or "
    relation = (_ONE_RELATES if one else _RELATIONS)[question.relation]
    return f"{called} {relation} {joiner.join(map(quoted, question.terms.words))}"


def term(terms: Terms) -> str:
    """Return terms as they stand in an answer: ``the word "deprecated"``."""
    joiner = " and " if terms.every else " or "
    label = "word" if terms.whole_word else "text"
    return f"the {label}{'s' * (len(terms.words) > 1)} {joiner.join(map(quoted, terms.words))}"


def reading(terms: Terms | None) -> str:
    """Return in brackets how terms were read."""
    if terms is None:
        return ""
    whole = "whole word" if terms.whole_word else "also inside longer words"
    return f" ({whole}, {'upper and lower case alike' if terms.ignore_case else 'upper and lower case told apart'})"


def quoted(text: str) -> str:
    """Return ``text`` in quotation marks that it does not hold itself."""
    for opening, closing in ('""', "``", "“”"):
        if opening not in text and closing not in text:
            return opening + text + closing
    return f"'{text}'"


def _term(word: str, terms: Terms) -> str:
    return f"the {'word' if terms.whole_word else 'text'} {quoted(word)}"


def _count(what: str, terms: Terms | None) -> str:
    return _COUNT.format(what=what, reading=_reading(terms))


def _reading(terms: Terms | None) -> str:
    if terms is None:
        return ""
    whole = "Whole words only" if terms.whole_word else "Only as written, as part of longer words too"
    return f" {whole}, upper and lower case {'alike' if terms.ignore_case else 'told apart'}."

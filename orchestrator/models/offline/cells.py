"""The cells the offline model writes as a root model: which program, with which parameters, for which question."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.models.offline import passages, programs, tables, wording
from orchestrator.models.offline.lexicon import STOP_WORDS
from orchestrator.models.offline.questions import COUNTS, ITEMS, STATISTICS, TABLE, Question

SLICE_CHARS = 100_000
# Distinct words and numbers of a slice make long replies; smaller slices keep them below the length limit.
SLICE_CHARS_OF_LISTS = 60_000
# Of the weight of a question's words, what a passage must share to count as an answer.
_ENOUGH = 0.6
# The confidence that tells a definition from a passage that merely holds the word.
_DEFINED = 0.55

#: How documents that were joined into one text are usually set apart; the name is the group.
SEPARATORS = {
    "=== NAME ===": r"(?im)^={3,} ?(?:(?:file|document|source)\b:? ?)?([^\s=][^\n]{0,200}?) ?={3,}$",
    "--- NAME ---": r"(?im)^-{3,} ?(?:(?:file|document|source)\b:? ?)?([^\s-][^\n]{0,200}?) ?-{3,}$",
    '<document name="NAME">': r'(?im)^<(?:document|doc|file)\b[^>\n]*?(?:name|path|title|id)="([^"\n]+)"[^>\n]*>$',
    "File: NAME": r"(?im)^(?:#+ |// |-- )?(?:file|document|filename|path): ?(\S[^\n]{0,200})$",
    "From: NAME": r"(?m)^From: (\S[^\n]{0,200})$",
    "Chapter N": r"(?m)^((?:CHAPTER|Chapter|BOOK|Book|PART|Part) (?:[IVXLC]+|\d+)\b[^\n]{0,80})$",
}
_CHAPTERS = "Chapter N"
_MAILS = "From: NAME"
# Kinds of question that are answered from the text before the first document too.
_SEARCHES = frozenset({"definition", "value", "passages", "yes_no"})
_COLUMN = re.compile(r"^column: (.+)$", re.MULTILINE)
_ABOUT_DOCUMENTS = frozenset({"count_documents", "which_documents", "top_documents", "definition", "value", "passages"})
_FORMS = re.compile(r"^lines of the form (.+) - (\d+)$", re.MULTILINE)


class _Name(str):
    """A parameter that is a name in the code, not a text."""

    __slots__ = ()
    __repr__ = str.__str__


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes cells for one reading of the question.

    Attributes:
        question: the reading.
        seen: what the last cell showed.
        failed: whether it failed.
        one_text: the context is one text, whose documents, if any, have to be found.
    """

    question: Question
    seen: str
    failed: bool
    one_text: bool

    @property
    def reduce(self) -> str:
        """Name of the program that reduces the replies."""
        if self.question.kind == "summary":
            return "summarise"
        if self.question.kind in COUNTS:
            return "reduce_counts"
        return "reduce_items" if self.question.kind in ITEMS else "reduce_quotes"

    @property
    def separator(self) -> str:
        """Pattern of the lines that set documents apart in one text, when the last cell showed such lines."""
        question = self.question
        if not (question.kind in _ABOUT_DOCUMENTS or question.noun == "documents" or question.scope):
            return ""
        shown = {form: int(number) for form, number in _FORMS.findall(self.seen)}
        usable = [form for form in SEPARATORS if shown.get(form, 0) > 1]
        if re.search(r"(?i)\b(?:chapter|part|book)s?\b", question.text):
            usable.sort(key=_CHAPTERS.__ne__)
        elif _CHAPTERS in usable:
            usable.remove(_CHAPTERS)
        if re.search(r"(?i)\b(?:e-?mails?|messages?|mails?)\b", question.text):
            usable.sort(key=_MAILS.__ne__)
        elif _MAILS in usable:
            usable.remove(_MAILS)
        return SEPARATORS[usable[0]] if usable else ""

    @property
    def counts_by_code(self) -> bool:
        """Whether code counts the terms too, so that there is an answer whatever the sub-calls say."""
        question = self.question
        return question.kind in COUNTS and question.terms is not None and question.noun in ("occurrences", "lines")

    @property
    def column(self) -> str:
        """Name of the table's column that the question is about, when the last cell showed such a column."""
        question = self.question
        if question.kind not in STATISTICS or question.noun != "labelled numbers":
            return ""
        columns = _COLUMN.findall(self.seen)
        exact = next((name for name in columns if tables.same(name, question.what)), "")
        # Asked for prices, a column "unit_price" will do where no other is of prices.
        within = [
            name for name in columns if any(tables.same(part, question.what) for part in re.split(r"[\W_]+", name))
        ]
        return exact or (within[0] if len(within) == 1 else "")

    @property
    def about_table(self) -> bool:
        """Whether the question is about rows, columns, or a column that is there."""
        return self.question.noun in TABLE or bool(self.column)

    def turn(self, *steps: str) -> str:
        """Return the reply that takes ``steps``: a sentence, and a block for each."""
        blocks = "\n\n".join(f"```repl\n{programs.load(step, **PROGRAMS[step](self))}```" for step in steps)
        return f"{programs.purpose(steps[0])}\n\n{blocks}"


def _inspect(writer: Writer) -> dict[str, object]:
    return {"SEPARATORS": SEPARATORS if writer.one_text else {}}


def _split(writer: Writer) -> dict[str, object]:
    question = writer.question
    return {
        "SEPARATOR": writer.separator,
        "SCOPE": question.scope,
        "TERMS": passages.terms_of(question),
        "SLICE_CHARS": SLICE_CHARS_OF_LISTS if question.kind in ITEMS else SLICE_CHARS,
        "QUESTION_COUNT": len(wording.questions(question)),
        "KEEP_BEFORE": question.kind in _SEARCHES,
    }


def _measure(writer: Writer) -> dict[str, object]:
    question = writer.question
    return {
        "NOUN": question.noun,
        **_ranking(question),
        "SKIP": question.skip,
        "CALLED": _called(question),
        "ONE": wording.noun(question, one=True),
        "STOP_WORDS": _stop_words(question),
    }


def _table(writer: Writer) -> dict[str, object]:
    question = writer.question
    return {"COLUMN": writer.column, "NOUN": question.noun, "KIND": question.kind}


def _called(question: Question) -> str:
    # "text messages" are messages.
    words = question.what.split() if question.noun == "documents" else []
    return words[-1] + "s" * (not words[-1].endswith("s")) if words else ""


def _ask(writer: Writer) -> dict[str, object]:
    listed = writer.reduce in ("reduce_quotes", "summarise")
    return {"QUESTIONS": wording.questions(writer.question), "SHAPE": _Name("list" if listed else "dict")}


def _reduce_counts(writer: Writer) -> dict[str, object]:
    question, terms = writer.question, writer.question.terms
    counted = terms if writer.counts_by_code else None
    return {
        "TERMS": counted.words if counted else (),
        "EVERY": bool(counted and counted.every),
        "WHOLE_WORD": bool(counted and counted.whole_word),
        "IGNORE_CASE": bool(counted and counted.ignore_case),
        "KIND": question.kind,
        "UNIT": question.noun,
        "RELATION": question.relation,
    }


def _answer_counts(writer: Writer) -> dict[str, object]:
    question, terms = writer.question, writer.question.terms
    plural = wording.noun(question)
    return {
        **_ranking(question),
        "SINGULAR": wording.term(terms) if terms and question.noun == "occurrences" else plural,
        "PLURAL": plural,
        "ONE": wording.noun(question, one=True),
        "READING": wording.reading(terms),
        "NEGATE": question.negate,
        "GUESSED": question.guessed,
    }


def _reduce_items(writer: Writer) -> dict[str, object]:
    return {"STOP_WORDS": _stop_words(writer.question), "NUMERIC": writer.question.kind in STATISTICS}


def _answer_items(writer: Writer) -> dict[str, object]:
    return {
        **_ranking(writer.question),
        "PLURAL": wording.noun(writer.question),
        "ONE": wording.noun(writer.question, one=True),
    }


def _reduce_quotes(writer: Writer) -> dict[str, object]:
    return {"TERMS": passages.terms_of(writer.question)}


def _answer_quotes(writer: Writer) -> dict[str, object]:
    question = writer.question
    return {"QUERY": question.text, "KIND": question.kind, "ENOUGH": _ENOUGH, "DEFINED": _DEFINED}


def _summarise(writer: Writer) -> dict[str, object]:
    return {"QUESTION": wording.SUMMARY, "FEW": writer.question.number, "GROUP_CHARS": SLICE_CHARS_OF_LISTS}


def _finish(writer: Writer) -> dict[str, object]:
    return {"NOTE": "\n(My code failed before this was checked.)" if writer.failed else ""}


def _ranking(question: Question) -> dict[str, object]:
    return {"KIND": question.kind, "NUMBER": question.number, "LEAST": question.least}


def _stop_words(question: Question) -> frozenset[str]:
    return STOP_WORDS if question.plain_words else frozenset()


#: Every program, and what gives its parameters.
PROGRAMS: dict[str, Callable[[Writer], dict[str, object]]] = {
    "inspect": _inspect,
    "split": _split,
    "measure": _measure,
    "table": _table,
    "ask": _ask,
    "again": lambda _writer: {},
    "reduce_counts": _reduce_counts,
    "answer_counts": _answer_counts,
    "reduce_items": _reduce_items,
    "answer_items": _answer_items,
    "reduce_quotes": _reduce_quotes,
    "answer_quotes": _answer_quotes,
    "summarise": _summarise,
    "finish": _finish,
}

"""What the offline model takes a question to be, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "count",
    "count_documents",
    "which_documents",
    "top_documents",
    "yes_no",
    "list",
    "count_distinct",
    "common",
    "longest",
    "shortest",
    "earliest",
    "latest",
    "sum",
    "mean",
    "smallest",
    "largest",
    "value",
    "definition",
    "passages",
    "summary",
    "count_both",
    "nth",
    "unable",
]
Relation = Literal["is", "contains", "starts", "ends"]

#: Kinds answered from one number a document.
COUNTS: frozenset[Kind] = frozenset({"count", "count_documents", "which_documents", "top_documents", "yes_no"})
#: Kinds answered from the distinct items in a list.
LISTS: frozenset[Kind] = frozenset(
    {"list", "count_distinct", "count_both", "common", "longest", "shortest", "earliest", "latest"}
)
#: Kinds answered by arithmetic on numbers.
STATISTICS: frozenset[Kind] = frozenset({"sum", "mean", "smallest", "largest"})
#: Kinds answered from the distinct items and how often each occurs.
ITEMS = LISTS | STATISTICS
#: Nouns a few lines of code measure exactly, so that no sub-call is needed.
SIZES = frozenset({"documents", "characters", "words", "lines", "sentences", "paragraphs"})
#: What a table has.
TABLE = frozenset({"rows", "columns"})
#: Items that have an identity: asked how many there are, how many different ones is said too.
IDENTITIES = frozenset(
    {"emails", "urls", "ip addresses", "phone numbers", "dates", "years", "UUIDs", "hashtags", "names"}
)


@dataclass(frozen=True, slots=True)
class Terms:
    """Pieces of text to look for.

    Attributes:
        words: the pieces, each on one line.
        every: a document counts only when all of them are in it; otherwise one is enough.
        whole_word: a piece inside a longer word does not count.
        ignore_case: upper and lower case are alike.
    """

    words: tuple[str, ...]
    every: bool = False
    whole_word: bool = True
    ignore_case: bool = True


@dataclass(frozen=True, slots=True)
class Question:
    """A question, understood.

    Attributes:
        text: as it was asked, without the instructions about the form of the reply.
        kind: what is wanted.
        noun: what is looked at: ``occurrences`` (of ``terms``), a size (:data:`SIZES`), ``labelled numbers``, or a kind
            of item (:data:`orchestrator.models.offline.items.FINDERS`).
        terms: what the occurrences are of, or what an item must be, contain, start or end with.
        relation: which of these four.
        number: how many results are wanted, where that is part of the question.
        least: the fewest instead of the most.
        negate: the documents that do not have it.
        what: name of the thing whose value, definition or numbers are asked for; what the question calls the
            documents; for ``unable`` what to say.
        scope: name of the one document the question is about, or empty.
        plain_words: leave very common words ("the", "of") out of a ranking of words.
        guessed: the noun asked for, when it is none that can be counted and the word is counted instead.
        skip: for ``nth``, how many stand before the first one wanted; negative numbers count from the end.
    """

    text: str
    kind: Kind
    noun: str = "occurrences"
    terms: Terms | None = None
    relation: Relation = "contains"
    number: int = 1
    least: bool = False
    negate: bool = False
    what: str = ""
    scope: str = ""
    plain_words: bool = False
    guessed: str = ""
    skip: int = 0

    @property
    def by_code(self) -> bool:
        """Whether plain arithmetic on the whole text answers it."""
        return self.noun in TABLE or (self.noun in SIZES and self.terms is None)

"""Reading the pieces of an English question: quoted terms, nouns, filters, numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from orchestrator.models.offline.questions import Relation, Terms

_QUOTED = re.compile(
    r"\"([^\"\n]{1,200})\"|“([^”\n]{1,200})”|`([^`\n]{1,200})`"
    r"|(?<!\w)'([^'\n]{1,200})'(?!\w)|(?<!\w)‘([^’\n]{1,200})’(?!\w)"
)
_HOLE = re.compile(r"⟦(\d+)⟧")
_TAIL = re.compile(
    r"[ ,]+(?:(?:in|across|over|within|from|throughout|among|inside|on) (?:total|all|both|them|here|it"
    r"|(?:the|this|these|those|all|each|every|any|our|my)\b.*)"
    r"|of (?:the|this|these|all|all the) (?:texts?|documents?|files?|context|corpus|collection)"
    r"|altogether|overall|combined|at all|at least once|anywhere|somewhere"
    r"|and (?:where|how often|how many times|in which|sort|count|return|give|show|print|order|say|tell)\b.*"
    r"|(?:does|do|did) (?:it|they|the|this|that|these|each)\b.*"
    r"|(?:that )?(?:is|are|was|were|get|gets) "
    r"(?:there|used|defined|present|named|in use|made|declared|contained|discussed)"
    r"|(?:that )?(?:(?:is|are|was|were) )?(?:mentioned|found|listed|given|stated|hidden)"
    r"|(?:are )?there|exist|occur|appear|occurs|appears)[ .,;:!?]*$",
    re.IGNORECASE,
)
_EDGES = " \t.,;:!?()"
_LEADING = re.compile(
    r"^(?:(?:all|every|each|any|some|of|the|these|those|a|an|its|their|different|distinct|unique|various|individual|"
    r"names? of|list of|full|complete|exact|single|actual|valid|at least one|one or more)\b ?)+",
    re.IGNORECASE,
)
_TERM_LABEL = re.compile(
    r"^(?:the |an? )?(?:exact |literal |whole |following |two |three )*"
    r"(?:words?|terms?|phrases?|strings?|texts?|tokens?|names?|expressions?|characters?|letters?|symbols?|sub-?strings?"
    r"|keywords?|identifiers?|labels?|library|package|modules?|value|function|class|method|variable|constant) (?=\S)",
    re.IGNORECASE,
)
_FILTER = re.compile(
    r"^(?:(?:that|which|whose (?:names?|text|lines?)) )?(?:(?:do|does|are|is) )?"
    r"(?P<relation>contain(?:s|ing)?|mention(?:s|ing)?|includ(?:es?|ing)|(?:start|begin)(?:s|n?ing)? with"
    r"|end(?:s|ing)? (?:with|in)|named|called|saying|says?|matching|with|have|has|having) (?P<what>.+)$",
    re.IGNORECASE,
)
_SUPERLATIVE = re.compile(r"(?:the )?(?:most|fewest|least|highest|lowest|largest|smallest)\b", re.IGNORECASE)
_AFTER_NOUN = re.compile(
    r"^(?:(?:that |which )?(?:have|has|with|whose) )?"
    r"(?:names?|mentioned|used|defined|found|listed|present|imported)\b ?",
    re.IGNORECASE,
)
_CHARACTERS = {
    "underscore": "_",
    "hyphen": "-",
    "dash": "-",
    "dot": ".",
    "period": ".",
    "comma": ",",
    "colon": ":",
    "semicolon": ";",
    "hash": "#",
    "question mark": "?",
    "exclamation mark": "!",
    "dollar sign": "$",
}
_COUNTING = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBERS = {word: number for number, word in enumerate(_COUNTING, 1)} | {"fifteen": 15, "twenty": 20}

# What people call the kinds of item; the first that fits wins, so the longer names stand first.
_NOUNS = [
    ("emails", r"e-?mail addresses|e-?mails?(?: address)?"),
    ("urls", r"urls?|hyper-?links?|(?:web )?links?|web ?addresses|web ?sites?"),
    ("ip addresses", r"ip(?:v4)?[ -]?address(?:es)?|ips"),
    ("phone numbers", r"(?:tele)?phone numbers?"),
    ("version numbers", r"versions?(?: numbers?)?"),
    ("dates as YYYY-MM-DD", r"dates written as YYYY-MM-DD"),
    ("dates", r"(?:calendar )?dates?"),
    ("times of day", r"times of day|clock times"),
    ("years", r"years?"),
    ("percentages", r"percentages?"),
    ("amounts of money", r"(?:dollar |euro |money |monetary )?amounts?(?: of money)?|prices?|sums of money"),
    ("numbers", r"(?:numbers?|integers?|numeric values?)"),
    (
        "imports",
        (
            r"(?:python |standard |external |third-party )*"
            r"(?:imports?(?: statements?)?|imported (?:python )?(?:modules?|packages?|librar(?:y|ies)|names?)"
            r"|(?:modules?|packages?|librar(?:y|ies)) (?:that (?:is|are) |which (?:is|are) )?imported)"
        ),
    ),
    ("classes", r"(?:python )?class(?:es)?(?: (?:names?|definitions?|statements?))?"),
    (
        "functions",
        (
            r"(?:python )?(?:functions?|methods?|defs|subroutines?)(?: (?:and|or) (?:functions?|methods?))?"
            r"(?: (?:names?|definitions?))?"
        ),
    ),
    ("decorators", r"decorators?"),
    ("constants", r"constants?"),
    ("headings", r"(?:section |chapter )?(?:headings?|headers?|titles?)"),
    ("hashtags", r"hash-?tags?"),
    ("keys", r"(?:config(?:uration)? |setting )?(?:keys?|settings?|options?|field names?|fields?)"),
    ("UUIDs", r"uuids?|guids?"),
    ("quoted strings", r"quoted (?:strings?|texts?)|string literals?|quotations?"),
    ("file names", r"file ?names?|(?:file )?paths?"),
    ("acronyms", r"acronyms?|abbreviations?"),
    (
        "names",
        (
            r"(?:proper |personal |full |people's |person )?names?(?: of (?:people|persons|places))?"
            r"|people|persons|proper nouns?"
        ),
    ),
    ("questions", r"questions?"),
    ("comments", r"comments?(?: lines?)?"),
    ("words", r"words?"),
    ("lines", r"lines?(?: of (?:code|text))?"),
    ("sentences", r"sentences?"),
    ("paragraphs", r"paragraphs?"),
    ("characters", r"characters?|letters?"),
]
# In an item that is no running text, a part of a word is asked for: a class that contains "Error".
_RUNNING_TEXT = frozenset({"lines", "sentences", "paragraphs", "comments", "headings", "questions", "quoted strings"})
_COMPILED = [(noun, re.compile(rf"(?:{pattern})\b", re.IGNORECASE)) for noun, pattern in _NOUNS]
_CONDITION = re.compile(
    r"(?<!\w)(but (?:do |does |did |are |is )?(?:not|no|never)|(?:and|or|that|which|who) "
    r"(?:do|does|did|are|is|was|were|has|have) not|and (?:not|no|never)|without|except(?: for)?|other than|apart from"
    r"|besides|unless|excluding(?! (?:the )?(?:stop|common|very)))(?!\w)",
    re.IGNORECASE,
)
_WHOLE = re.compile(r"whole[- ]?words?|as an? (?:whole |separate )?word\b|\bwords? ⟦", re.IGNORECASE)
_PART = re.compile(
    r"part of (?:a )?(?:longer )?words?|inside (?:longer )?words|sub-?strings?"
    r"|\b(?:string|text|phrase|characters?|sequence) ⟦",
    re.IGNORECASE,
)
_ALIKE = re.compile(
    r"case[- ]?insensitiv|ignor\w+ (?:the )?(?:case|upper)|\bany case\b|case (?:letters )?alike|either case"
    r"|regardless of (?:upper )?case",
    re.IGNORECASE,
)
_APART = re.compile(
    r"case[- ]?sensitiv|\bexact|told apart|match(?:ing)? (?:the )?case|verbatim|as written", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Masked:
    """A question whose quoted terms are holes ``⟦n⟧``, so that nothing in them is taken for grammar."""

    text: str
    quoted: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Masked:
        """Take the quoted terms out of ``text``."""
        quoted: list[str] = []

        def hole(match: re.Match[str]) -> str:
            quoted.append(next(group for group in match.groups() if group))
            return f"⟦{len(quoted) - 1}⟧"

        return cls(" ".join(_QUOTED.sub(hole, text.replace("⟦", "[").replace("⟧", "]")).split()), tuple(quoted))

    def fill(self, fragment: str) -> str:
        """Put the quoted terms back."""
        return _HOLE.sub(lambda match: self.quoted[int(match[1])], fragment)


def trim(fragment: str) -> str:
    """Return ``fragment`` without the words about where to look, and without punctuation at its ends."""
    previous = ""
    fragment = fragment.strip(_EDGES)
    while fragment != previous:
        previous = fragment
        fragment = _TAIL.sub("", fragment).strip(_EDGES)
    return fragment


def refused_condition(fragment: str) -> str:
    """Return the words of a condition that no form reads ("but not"), or an empty string."""
    found = _CONDITION.search(fragment)
    return found[1].lower() if found else ""


def terms(fragment: str, question: Masked) -> Terms | None:
    """Return the terms that ``fragment`` names, read as the whole question says they should be."""
    fragment = trim(fragment)
    character = _CHARACTERS.get(re.sub(r"^(?:an?|the) ", "", fragment.lower()))
    if character:
        return Terms((character,), whole_word=False, ignore_case=False)
    if refused_condition(fragment):
        return None  # taken for words, it would be answered wrongly
    labelled = _TERM_LABEL.search(fragment)
    bare = re.sub(
        r"^(?:both|either|neither|any of|all of|the|an?) ", "", _TERM_LABEL.sub("", fragment), flags=re.IGNORECASE
    )
    holes = _HOLE.findall(bare)
    if holes:
        words = tuple(question.quoted[int(number)] for number in holes)
        joined = _HOLE.sub("", bare)
    else:
        parts = re.split(r",? (?:and|or|nor) (?:the (?:word|term) )?|, ", bare)
        words = tuple(part.strip(_EDGES) for part in parts if part.strip(_EDGES))
        if any(part.count(" ") > 1 for part in words):
            words = (bare.strip(_EDGES),)
        joined = bare
    words = tuple(" ".join(word.split())[:200] if not holes else word for word in words)
    if not any(word.strip() for word in words):
        return None
    every = len(words) > 1 and bool(re.search(r"\b(?:and|both|all)\b", joined, re.IGNORECASE))
    label = labelled.group().lower() if labelled else ""
    whole = "word" in label or not (holes or re.search(r"string|text|phrase|letter|character|symbol", label))
    found = Terms(words, every, whole_word=whole, ignore_case=whole or not holes)
    return reading(found, question)


def reading(found: Terms, question: Masked) -> Terms:
    """Return ``found`` with whole words and case as the question asks for, where it does."""
    # The terms themselves must not be taken for such a wish.
    text = question.text
    if _PART.search(text):
        found = replace(found, whole_word=False)
    elif _WHOLE.search(text):
        found = replace(found, whole_word=True)
    if _ALIKE.search(text):
        found = replace(found, ignore_case=True)
    elif _APART.search(text):
        found = replace(found, ignore_case=False)
    return found


@dataclass(frozen=True, slots=True)
class Subject:
    """What a question looks at."""

    noun: str
    terms: Terms | None = None
    relation: Relation = "contains"


def item(fragment: str, question: Masked) -> Subject | None:
    """Read ``fragment`` as a kind of item, perhaps with a condition: ``functions whose name starts with "test"``."""
    fragment = _LEADING.sub("", trim(fragment))
    for noun, pattern in _COMPILED:
        match = pattern.match(fragment)
        if match is None:
            continue
        rest = trim(fragment[match.end() :])
        rest = _AFTER_NOUN.sub("", rest)
        return _conditioned(noun, rest, question) if rest else Subject(noun)
    return None


def _conditioned(noun: str, condition: str, question: Masked) -> Subject | None:
    """Read what an item must contain, start or end with, or be called."""
    match = _FILTER.match(condition)
    if match is None:
        # ``keys "port"``: but words and numbers in quotation marks are terms.
        bare = _HOLE.fullmatch(condition) and noun not in ("words", "characters", "names", "numbers")
        return Subject(noun, terms(condition, question), "is") if bare else None
    wanted = None if _SUPERLATIVE.match(match["what"]) else terms(match["what"], question)
    if wanted is None:
        return None
    if noun not in _RUNNING_TEXT:
        wanted = replace(wanted, whole_word=False)
    return Subject(noun, wanted, _relation(match["relation"]))


def subject(fragment: str, question: Masked) -> Subject | None:
    """Read ``fragment`` as a kind of item if it is one, and as terms to look for otherwise."""
    found = item(fragment, question)
    if found is not None:
        return found
    wanted = terms(fragment, question)
    return Subject("occurrences", wanted) if wanted else None


def number(word: str | None, default: int) -> int:
    """Return the number that a numeral or a number word stands for."""
    if not word:
        return default
    return int(word) if word.isdecimal() else _NUMBERS.get(word.lower(), default)


def _relation(verb: str) -> Relation:
    verb = verb.lower()
    if verb.startswith(("start", "begin")):
        return "starts"
    if verb.startswith("end"):
        return "ends"
    return "is" if verb in ("named", "called") else "contains"

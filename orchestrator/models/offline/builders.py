"""From a sentence form that fits to the question it asks: one small function a family of forms."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from orchestrator.models.offline import phrases
from orchestrator.models.offline.phrases import Masked, Subject
from orchestrator.models.offline.questions import Kind, Question

Build = Callable[[re.Match[str], Masked], Question | None]

_LEAST = re.compile(r"(?i)\b(?:fewest|least|lowest|smallest|rarest)\b")
_MOST_WORDS_OF_A_LABEL = 4
_MOST_WORDS_OF_A_TERM = 6
_MANY = 10
_LONGEST_UNIT = 3
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_PRONOUNS = ("it", "this", "that", "they", "these", "there")


def counted(kind: Kind) -> Build:
    """Build a question about how often something is in the documents (``what``, after ``verb``)."""

    def build(match: re.Match[str], question: Masked) -> Question | None:
        groups = match.groupdict()
        found = _of_verb((groups.get("verb") or "").lower(), groups["what"], question)
        if found is None:
            return None
        return Question(
            "",
            kind,
            found.noun,
            found.terms,
            found.relation,
            number=_number(groups, 1),
            least=bool(_LEAST.search(groups.get("most") or "")),
            negate=bool(groups.get("no")) or groups["what"].lower().startswith("neither "),
        )

    return build


def count_items(match: re.Match[str], question: Masked) -> Question | None:
    """``how many X are there``, whatever X is."""
    what = match["what"]
    counted_as_such = re.match(r"(?i)(?:(?:data|table|csv) )?(rows|columns|e-?mails?(?! address))\b(?P<rest>.*)", what)
    if counted_as_such and _bare(counted_as_such["rest"]):
        noun = counted_as_such[1].lower()
        # Addresses are called emails too; where how many there are is asked, messages are meant.
        return Question("", "count", "documents", what=noun) if "mail" in noun else Question("", "count", noun)
    found = phrases.item(what, question) or _item_with(what, question)
    if found is not None:
        distinct = re.match(r"(?i)(?:of )?(?:the )?(?:distinct|different|unique)\b", what)
        return Question("", "count_distinct" if distinct else "count", found.noun, found.terms, found.relation)
    return _unknown(what, question)


def _unknown(what: str, question: Masked) -> Question | None:
    """Count the word itself, in the singular and in the plural, where the noun is none of the kinds of item."""
    if not re.search(r"(?i)\b(?:are|is|were|was|get|occurs?|appears?|in total|altogether)\b", what):
        return None
    wanted = phrases.terms(what, question)
    if wanted is None or any(" " in word for word in wanted.words):
        return None
    if "⟦" in what:
        return Question("", "count", terms=wanted)
    forms = tuple(dict.fromkeys(form for word in wanted.words for form in _number_forms(word)))
    of_words = re.search(r"(?i)\b(?:mention|used|occur|appear|named|found)", what)
    guessed = "" if of_words else " and ".join(wanted.words)
    return Question("", "count", terms=replace(wanted, words=forms, every=False), guessed=guessed)


def count_lines(match: re.Match[str], question: Masked) -> Question | None:
    """``how many lines contain X``."""
    found = phrases.item("lines that " + match["what"], question)
    return Question("", "count", found.noun, found.terms, found.relation) if found and found.terms else None


def count_documents(match: re.Match[str], _question: Masked) -> Question:
    """``how many documents are there``."""
    return Question("", "count", "documents", what=match["called"].lower())


def nth(match: re.Match[str], _question: Masked) -> Question | None:
    """``the second line``, ``the last three words``, ``line 12``."""
    groups = match.groupdict()
    noun = groups["unit"].lower() + "s"
    most = _number(groups, 1)
    if groups.get("at"):
        return Question("", "nth", noun, skip=max(int(groups["at"]) - 1, 0))
    word = groups["nth"].lower()
    if word == "last":
        return Question("", "nth", noun, number=most, skip=-most)
    place = _ORDINALS.index(word) + 1 if word in _ORDINALS else int(word[:-2])
    return Question("", "nth", noun, number=most, skip=max(place - 1, 0))


def list_documents(_match: re.Match[str], _question: Masked) -> Question:
    """``list all files``."""
    return Question("", "list", "documents")


def largest_documents(match: re.Match[str], _question: Masked) -> Question:
    """``the 3 longest files``."""
    least = match["adjective"].lower() in ("shortest", "smallest")
    unit = re.search(r"(?i)\b(lines|words)\b", match.string)
    noun = unit[1].lower() if unit else "characters"
    return Question("", "top_documents", noun, number=_number(match.groupdict(), 1), least=least)


def common(match: re.Match[str], question: Masked) -> Question | None:
    """``the ten most common words``."""
    what, _, excluded = match["what"].partition(" excluding ")
    plural = re.match(r"(?i)\w+(?<!s)s\b", what)
    imports = re.search(r"(?i)\bimport", match.group())
    found = phrases.item("imports" if imports else what, question)
    if found is None:
        return None
    return Question(
        "",
        "common",
        found.noun,
        found.terms,
        found.relation,
        number=_number(match.groupdict(), _MANY if plural and not re.match(r"(?i)class\b", what) else 1),
        least=bool(re.search(r"(?i)\bleast\b", match.group())),
        plain_words=bool(excluded or re.search(r"(?i)stop[- ]?words", question.text)),
    )


def statistic(match: re.Match[str], question: Masked) -> Question | None:
    """``the total of all amounts``, ``the highest temperature``."""
    kinds: dict[str, Kind] = {"sum": "sum", "total": "sum", "average": "mean", "mean": "mean"}
    smallest = ("minimum", "smallest", "lowest", "least")
    word = match["stat"].lower()
    kind: Kind = kinds.get(word, "smallest" if word in smallest else "largest")
    label = re.sub(r"(?i)^(?:(?:of|all|the|every|each|any|these|those|up)\b ?)+", "", phrases.trim(match["what"]))
    column = re.fullmatch(
        r"(?i)(?:(?:numbers?|values?|figures?) )?(?:(?:in|of) )?(?:the )?column (?:named |called )?(?P<a>.+)"
        r"|(?P<b>.+) column",
        re.sub(r"(?i)^(?:of )?(?:all )?(?:the )?", "", match["what"].strip(" ?.")),
    )
    if column:
        return Question("", kind, "labelled numbers", what=question.fill(column["a"] or column["b"]))
    after = re.search(
        r"(?i)(?:numbers?|values?|figures?|amounts?) (?:that (?:come|follow|stand) )?"
        r"(?:after|following|labell?ed(?: as)?|for|under) (?:the )?(?:label )?(.+)$",
        label,
    )
    found = phrases.item(label, question)
    if found and found.noun in ("numbers", "percentages") and found.terms is None and not after:
        return Question("", kind, found.noun)
    named = phrases.terms(after[1] if after else re.sub(r"(?i) (?:values?|numbers?|figures?)$", "", label), question)
    if named is None or len(named.words) != 1 or len(named.words[0].split()) > _MOST_WORDS_OF_A_LABEL:
        return None
    what = named.words[0] if "⟦" in label else _singular(named.words[0])
    return Question("", kind, "labelled numbers", what=what)


def extreme(match: re.Match[str], question: Masked) -> Question | None:
    """``the longest word``, ``the earliest date``."""
    word = match["extreme"].lower()
    found = phrases.item(match["what"], question)
    if found is None:
        return None
    number = _number(match.groupdict(), 1)
    if word in ("longest", "shortest"):
        kind: Kind = "longest" if word == "longest" else "shortest"
        return Question("", kind, found.noun, found.terms, found.relation, number=number)
    noun = "dates as YYYY-MM-DD" if found.noun == "dates" else found.noun
    if noun not in ("dates as YYYY-MM-DD", "years"):
        return None
    return Question("", "earliest" if word in ("earliest", "oldest", "first") else "latest", noun, number=number)


def listed(match: re.Match[str], question: Masked) -> Question | None:
    """``list all X``."""
    what = match["what"]
    if re.match(r"(?i)columns?(?: names| headers)?(?: (?:are|is|does|do)\b.*)?[?. ]*$", what):
        return Question("", "list", "columns")
    after = re.match(r"(?i)numbers after the label (⟦\d+⟧)", what)
    if after:
        return Question("", "list", "labelled numbers", what=question.fill(after[1]))
    found = phrases.item(what, question) or _item_with(what, question)
    return Question("", "list", found.noun, found.terms, found.relation) if found else None


def definition(match: re.Match[str], question: Masked) -> Question | None:
    """``where is X defined``."""
    what = phrases.trim(match["what"])
    kind = re.match(r"(?i)(?:an? |the )?(class|function|method|constant|variable)\b (?=\S)", what)
    nouns = {"class": "classes", "constant": "constants", "variable": "constants"}
    noun = nouns.get(kind[1].lower(), "functions") if kind else "occurrences"
    if kind is None and phrases.item(what, question):
        return None
    wanted = phrases.terms(what[kind.end() :] if kind else what, question)
    return Question("", "definition", noun, what=wanted.words[0]) if wanted else None


def value(match: re.Match[str], question: Masked) -> Question | None:
    """``what is the value of X``."""
    what = re.sub(
        r"(?i)^(?:the )?(?:constant|variable|setting|option|key|parameter|attribute|field)s? (?=\S)",
        "",
        phrases.trim(match["what"]),
    )
    what = re.sub(r"(?i)^(?:the|an?) ", "", question.fill(what))
    return Question("", "value", what=what) if what and what.lower() not in _PRONOUNS else None


def yes_no(match: re.Match[str], question: Masked) -> Question | None:
    """``does the text mention X``."""
    built = counted("yes_no")(match, question)
    if built and re.match(r"(?i)(?:is|are|was|were) there (?:no|not)\b", match.string):
        built = replace(built, negate=True)
    if built is None or built.terms is None:
        return built
    return built if all(len(word.split()) <= _MOST_WORDS_OF_A_TERM for word in built.terms.words) else None


def summary(_match: re.Match[str], _question: Masked) -> Question:
    """``summarise``."""
    return Question("", "summary", number=5)


def lines_found(match: re.Match[str], question: Masked) -> Question | None:
    """``find the line that contains "X"``: a list of lines when the term is quoted, a search otherwise."""
    if "⟦" not in match["what"]:
        return Question("", "passages")
    found = phrases.item("lines that " + match["what"], question)
    return Question("", "list", found.noun, found.terms, found.relation) if found else None


def _bare(rest: str) -> bool:
    """Whether nothing but "are there" and the like follows a noun."""
    filling = r"(?i)\b(?:are|is|were|does|do|there|exist|have|has|we|it|i|the|this|table|csv|file|text|data)\b"
    return not re.sub(filling, "", phrases.trim(rest)).strip(" ?.")


def _item_with(what: str, question: Masked) -> Subject | None:
    """Read ``TODO comments``: items that contain the word before them."""
    before = re.match(r"(⟦\d+⟧|[A-Z][A-Z0-9_-]+) (comments?|lines?|headings?)$", phrases.trim(what))
    return phrases.item(f"{before[2]} that contain {before[1]}", question) if before else None


def _of_verb(verb: str, what: str, question: Masked) -> Subject | None:
    """Read what a document is said to contain, import or define."""
    if verb.startswith("import"):
        return phrases.item(what, question) or _named("imports", what, question)
    kinds = re.match(r"(?i)(?:an? |the )?(class|function|method|constant) (?:named |called )?(?=\S)", what)
    if kinds and verb.startswith(("defin", "declar", "implement")):
        noun = {"class": "classes", "constant": "constants"}.get(kinds[1].lower(), "functions")
        return _named(noun, what[kinds.end() :], question)
    return phrases.subject(what, question)


def _named(noun: str, what: str, question: Masked) -> Subject | None:
    wanted = phrases.terms(what, question)
    return Subject(noun, replace(wanted, ignore_case=False), "is") if wanted else None


def _number(groups: dict[str, str | None], default: int) -> int:
    return phrases.number(groups.get("n") or groups.get("m"), default)


def _number_forms(word: str) -> tuple[str, ...]:
    if word.lower().endswith("ies"):
        return word[:-3] + "y", word
    if word.lower().endswith("y"):
        return word, word[:-1] + "ies"
    return (_singular(word), word) if word.lower().endswith("s") else (word, word + "s")


def _singular(label: str) -> str:
    # Short words that end in s are units and names (ms, fps, bus), seldom plurals.
    plural = len(label) > _LONGEST_UNIT and re.search(r"(?i)[^aeisu']s$|[aei]s$", label)
    return label[:-1] if plural and not re.search(r"(?i)(?:ss|us|is)$", label) else label

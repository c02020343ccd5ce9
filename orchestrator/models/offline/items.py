"""Finding items of a kind (addresses, dates, imports, headings, …) in a text.

The text comes from strangers and may be megabytes long. Every pattern here is linear on any input: a match can begin
only where a look-behind allows it, and what it may try again is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from orchestrator.models.offline.lexicon import STOP_WORDS
from orchestrator.models.offline.questions import Relation, Terms

Finder = Callable[[str, str], Iterator[str]]

_DIGITS = (
    r"(?:\d{1,3}(?:\.\d{3}){1,8},\d{1,2}(?!\d|[.,]\d)"
    r"|(?:\d{1,3}(?:,\d{3}){1,8}|\d{1,30})(?:\.\d{1,30})?(?!\d|\.\d|,\d{3}))"
)
_NUMBER = _DIGITS + r"(?!\w)"
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?"
    r"|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DATE = re.compile(
    r"(?<![\w/.-])(?:"
    r"(?P<iso>\d{4}-\d{2}-\d{2}|\d{4}/\d{2}/\d{2})"
    r"|\d{1,2}[/.]\d{1,2}[/.]\d{4}"
    rf"|(?P<day>\d{{1,2}})(?:st|nd|rd|th)? (?P<month>{_MONTH}),? (?P<year>\d{{4}})"
    rf"|(?P<month2>{_MONTH}) (?P<day2>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<year2>\d{{4}})"
    rf"|(?P<day3>\d{{1,2}})[/-](?P<month3>{_MONTH})[/-](?P<year3>\d{{4}})"
    # In a log the time of day may follow at once: 2024-05-01T10:00:00Z, 2024-05-01_10-00, 01/May/2024:10:00:00.
    r")(?![\w/-](?<!T)(?<!_)|[T_](?!\d{2}))"
)
_NUMBER_ALONE = re.compile(rf"(?<![\w.])[-+]?{_NUMBER}")
# What may stand directly before and behind a number without making it part of a date, a time, an id or a path.
_JOINED = re.compile(r"[\w/:.@#-]{1,40}")
_KEY = re.compile(r"(?:[\w/.@#-]{0,40}[A-Za-z_])?:|-{1,3}")
_UNIT = re.compile(r"-[a-z]\w*|/[a-z]\w{0,10}|:[A-Za-z_]\w*")
_RANGE = re.compile(r"\d{1,15}[/-]")
_RANGE_END = re.compile(r"[/-]\d{1,15}(?:\.\d{1,15})?")
_VERSION_OF = re.compile(r"(?i)\b(?:version|release|python|v)[ =:]{1,3}\Z")
_LABEL_REACH = 40
_SENTENCE_END = re.compile(r"[.!?][\"')\]’”]{0,3}(?=\s|\Z)|\n[ \t]*\n|\Z")
_CODE_SUFFIXES = (".py", ".pyi", ".sh", ".bash", ".rb", ".pl", ".r", ".toml", ".ini", ".cfg", ".yml", ".yaml", ".conf")
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<from>[\w.]{1,200})[ \t]+import[ \t]"
    r"|import[ \t]+(?P<list>[\w.]{1,200}(?:[ \t]+as[ \t]+\w{1,100})?"
    r"(?:[ \t]*,[ \t]*[\w.]{1,200}(?:[ \t]+as[ \t]+\w{1,100})?){0,50})[ \t]*(?:[#;].*)?$"
    r"|import[ \t][^\n'\"]{0,300}['\"](?P<script>[^'\"\n]{1,200})['\"]"
    r"|#[ \t]*include[ \t]*[<\"](?P<include>[^>\"\n]{1,200})[>\"])",
    re.MULTILINE,
)
_NAMES = re.compile(
    r"(?<![\w'’])(?:(?:Mr|Mrs|Ms|Dr|Prof|Sir|Lady|Lord|Captain)\.? [A-Z][a-z’'-]{1,30}"
    r"|[A-Z][a-z’'-]{1,30}(?: (?:[A-Z]\.|of|de|van|von|la|du))?(?: [A-Z][a-z’'-]{1,30}){1,3})(?!\w)"
)
_UNDERLINED = re.compile(r"^(\S[^\n]{0,199})\n([=\-~^\"'`*+#])\2{2,}[ \t]*$", re.MULTILINE)

# One pattern a noun; the item is the first group that took part, or the whole match.
_PATTERNS = {
    "emails": r"(?<![\w.+%-])(?<!\w['’])\w[\w.+%'’-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])",
    "urls": r"(?<!\w)(?:https?|ftps?|wss?)://[^\s<>\"'`{}|\\^\[\]]{1,2000}(?<![.,;:!?)*])",
    "ip addresses": r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w]|\.\d)",
    "phone numbers": r"(?<![\w+.-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]\d{2,4}){2,4}(?![\w.-])",
    "times of day": r"(?:(?<![\w:.])|(?<=\d[T_:]))(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?"
    r"(?: ?[AaPp]\.?[Mm]\b\.?)?(?:(?![\w:])|(?=Z\b))",
    "years": r"(?<![\w.,/:$-])(?:1\d{3}|20\d{2})(?![\w]|[.,:/]\d)",
    "percentages": r"(?<![\w.])[-+]?\d{1,15}(?:[.,]\d{1,15})? ?(?:%|percent\b|per cent\b)",
    "amounts of money": rf"(?<![\w.])[-+]?(?:[$€£¥]|USD|EUR|GBP) ?{_NUMBER}"
    rf"|(?<![\w.,]){_NUMBER} ?(?:[$€£¥]|(?:dollars|euros|pounds|USD|EUR|GBP)\b)",
    "version numbers": r"(?<![\w.])v?\d{1,5}\.\d{1,5}(?:\.\d{1,6}){0,3}"
    r"(?:-?(?:a|b|rc|alpha|beta|dev|post)\.?\d{0,4})?(?![\w]|\.\d)",
    "classes": r"(?m)^[ \t]*(?:(?:export|default|public|private|protected|abstract|final|static|sealed)[ \t]+){0,4}"
    r"class[ \t]+(\w{1,200})[ \t]*(?:[(:{<]|$|extends\b|implements\b)",
    "functions": r"(?m)^[ \t]*(?:(?:export|default|public|private|static|async|pub|inline)[ \t]+){0,4}"
    r"(?:def|function\*?|func|fn)[ \t]+(\w{1,200})[ \t]*[(<\[]",
    "decorators": r"(?m)^[ \t]*@([\w.]{1,200})",
    "constants": r"(?m)^[ \t]*(?:(?:export|const|final|static|#define)[ \t]+){0,3}([A-Z][A-Z0-9_]{1,100})"
    r"(?:[ \t]*:[^=\n]{1,80})?[ \t]*=(?!=)",
    "hashtags": r"(?<![\w#&/])#[A-Za-z_]\w{0,99}",
    "keys": r"(?m)^[ \t]*(?:-[ \t]+)?[\"']?([A-Za-z_][\w.-]{0,99})[\"']?[ \t]*(?::(?![:=/])|=(?!=))",
    "UUIDs": r"(?<![\w-])[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?![\w-])",
    "quoted strings": r"\"([^\"\n]{1,300})\"|“([^”\n]{1,300})”|(?<!\w)'([^'\n]{1,300})'(?!\w)",
    "file names": r"(?<![\w./~-])(?:~|\.{1,2})?/?(?:[\w.-]{1,64}/){0,12}[\w-]{1,64}\.[A-Za-z][A-Za-z0-9]{0,7}"
    r"(?![\w/(-])",
    "acronyms": r"(?<![\w])[A-Z][A-Z0-9]{1,9}(?!\w)",
    "comments": r"(?m)(?:^|(?<=[ \t]))(?:#(?!!)|//)[ \t]?([^\n]{1,400})",
}
# Written in either case they are the same.
_CASELESS = frozenset({"emails", "UUIDs"})
_COMPILED = {noun: re.compile(pattern) for noun, pattern in _PATTERNS.items()}


def find(noun: str, text: str, name: str = "") -> Iterator[str]:
    """Yield every item of the kind ``noun`` in ``text``, in order; ``name`` is that of the document."""
    finder = FINDERS.get(noun)
    if finder is not None:
        yield from finder(text, name)
        return
    for match in _COMPILED[noun].finditer(text):
        item = next((group for group in match.groups() if group), None) or match.group()
        yield item.strip().lower() if noun in _CASELESS else item.strip()


def fits(item: str, terms: Terms | None, relation: Relation, noun: str) -> bool:
    """Whether an item is, contains, starts or ends with what is asked for."""
    if terms is None:
        return True
    alike = terms.ignore_case or noun in _CASELESS
    subject = item.lower() if alike else item
    wanted = [word.lower() if alike else word for word in terms.words]
    results = (_relates(subject, word, relation, noun, whole_word=terms.whole_word) for word in wanted)
    return all(results) if terms.every else any(results)


def occurrences(text: str, word: str, terms: Terms) -> int:
    """How often ``word`` occurs in ``text`` without overlapping, in the reading that ``terms`` fixes."""
    if terms.ignore_case:
        text, word = text.lower(), word.lower()
    return _count(text, word, whole_word=terms.whole_word)


def fold(text: str) -> str:
    """Return ``text`` in lower case, character for character, so that positions stay valid."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def numbers_after(label: str, text: str) -> Iterator[str]:
    """Yield the numbers that follow ``label`` on its line: ``label: 12``, ``label = 12``, ``the label was $12.50``."""
    named = re.compile(rf"(?<!\w){re.escape(label)}(?:s|es)?(?!\w)", re.IGNORECASE)
    number = re.compile(rf"(?<![\w.])([-+]?)[$€£¥]?[ ]?({_DIGITS})")
    done = 0
    for match in named.finditer(text):
        if match.start() < done:
            continue
        newline = text.find("\n", match.end(), match.end() + 4 * _LABEL_REACH)
        line = text[match.end() : newline if newline >= 0 else match.end() + 4 * _LABEL_REACH]
        last = 0
        for found in number.finditer(line):
            if found.start() - last > _LABEL_REACH or re.search(r"\d", line[last : found.start()]):
                break
            if _stands_alone(line, *found.span(2)) and not _in_date(line, found.start(2)):
                yield found[1].replace("+", "") + found[2]
                done = match.end() + found.end()
                break
            joined = _JOINED.match(line, found.end())
            last = joined.end() if joined else found.end()


def iso_dates(text: str) -> Iterator[str]:
    """Yield the dates whose order of day and month is certain, as ``YYYY-MM-DD``."""
    for match in _DATE.finditer(text):
        if match["iso"]:
            yield match["iso"].replace("/", "-")
            continue
        year, month, day = (match[part] or match[part + "2"] or match[part + "3"] for part in ("year", "month", "day"))
        if year and month and day:
            number = _MONTHS.index(month[:3].lower()) + 1
            yield f"{year}-{number:02}-{int(day):02}"


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences; an empty line ends one, a plain line break does not."""
    start = 0
    for match in _SENTENCE_END.finditer(text):
        sentence = " ".join(text[start : match.end()].split())
        start = match.end()
        if sentence:
            yield sentence


def lines(text: str) -> list[str]:
    """Return the lines; only a newline ends one, as in ``wc -l``."""
    parts = text.split("\n")
    if parts[-1] == "":
        parts.pop()
    return [part.removesuffix("\r") for part in parts]


def _count(text: str, word: str, *, whole_word: bool) -> int:
    if not word:
        return 0
    if not whole_word:
        return text.count(word)
    total, at, size = 0, text.find(word), len(word)
    while at >= 0:
        end = at + size
        before_ok = at == 0 or not (_is_word(text[at - 1]) and _is_word(word[0]))
        after_ok = end == len(text) or not (_is_word(text[end]) and _is_word(word[-1]))
        total += before_ok and after_ok
        at = text.find(word, end if before_ok and after_ok else at + 1)
    return total


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _relates(item: str, word: str, relation: Relation, noun: str, *, whole_word: bool) -> bool:
    match relation:
        case "is":
            return item == word or (noun == "imports" and item.startswith(word + "."))
        case "starts":
            return item.startswith(word)
        case "ends":
            return item.endswith(word)
        case _:
            return _count(item, word, whole_word=whole_word) > 0


def _numbers(text: str, _name: str) -> Iterator[str]:
    dates = [match.span() for match in _DATE.finditer(text)]
    at = 0
    for match in _NUMBER_ALONE.finditer(text):
        while at < len(dates) and dates[at][1] <= match.start():
            at += 1
        dated = at < len(dates) and dates[at][0] < match.end()
        if not dated and _stands_alone(text, match.start(), match.end()):
            yield match.group()


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether the digits from ``start`` to ``end`` are a number, not part of a time, an address, an id or a version."""
    before = ""
    for position in range(start - 1, max(start - _LABEL_REACH, 0) - 1, -1):
        if not _JOINED.match(text[position]):
            break
        before = text[position] + before
    joined = _JOINED.match(text, end)
    after = joined.group().rstrip(".:-/") if joined else ""
    if _VERSION_OF.search(text[max(start - 12, 0) : start]):
        return False
    if not after and _RANGE.fullmatch(before):
        return True
    if not before and _RANGE_END.fullmatch(after):
        return True
    return (not before or _KEY.fullmatch(before) is not None) and (not after or _UNIT.match(after) is not None)


def _in_date(line: str, position: int) -> bool:
    return any(match.start() <= position < match.end() for match in _DATE.finditer(line))


def _dates(text: str, _name: str) -> Iterator[str]:
    return (match.group() for match in _DATE.finditer(text))


def _imports(text: str, _name: str) -> Iterator[str]:
    for match in _IMPORT.finditer(text):
        if match["list"]:
            yield from (part.split()[0] for part in match["list"].split(","))
        else:
            yield match["from"] or match["script"] or match["include"]


def _headings(text: str, name: str) -> Iterator[str]:
    # In a program a line that begins with "#" is a comment.
    if not name.lower().endswith(_CODE_SUFFIXES):
        yield from (match[1] for match in re.finditer(r"(?m)^#{1,6}[ \t]+(\S[^\n]{0,200}?)[ \t#]{0,20}$", text))
        yield from (
            match[1]
            for match in re.finditer(r"(?im)^((?:chapter|part|book|act|scene) [\divxlc]{1,8}\b[^\n]{0,100})$", text)
        )
    yield from (match[1].strip() for match in _UNDERLINED.finditer(text) if re.search(r"\w", match[1]))


def _names(text: str, _name: str) -> Iterator[str]:
    for match in _NAMES.finditer(text):
        parts = match.group().split()
        # A sentence begins with a capital too: "Then Alice Smith" names Alice Smith.
        while parts and parts[0].lower() in STOP_WORDS:
            parts.pop(0)
        if len(parts) > 1:
            yield " ".join(parts)


def _words(text: str, _name: str) -> Iterator[str]:
    return (match.group() for match in re.finditer(r"[^\W\d_]+(?:['’][^\W\d_]+)?", text.lower()))


def _questions(text: str, _name: str) -> Iterator[str]:
    return (sentence for sentence in sentences(text) if sentence.rstrip("\"')]’”").endswith("?"))


FINDERS: dict[str, Finder] = {
    "dates": _dates,
    "dates as YYYY-MM-DD": lambda text, _name: iso_dates(text),
    "imports": _imports,
    "headings": _headings,
    "names": _names,
    "words": _words,
    "numbers": _numbers,
    "lines": lambda text, _name: iter(lines(text)),
    "sentences": lambda text, _name: sentences(text),
    "paragraphs": lambda text, _name: (part.strip() for part in re.split(r"\n[ \t]*\n", text) if part.strip()),
    "questions": _questions,
}

#: Every kind of item there is.
NOUNS = (*_COMPILED, *FINDERS)

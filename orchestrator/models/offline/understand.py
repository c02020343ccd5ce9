"""Understanding a question asked in plain English, by an ordered table of sentence forms.

The first form that fits wins; what fits none is a search for the passages that answer it. There is no grammar here and
no guessing: a form names what it needs, and a question outside the forms is still answered, by extraction.
"""

from __future__ import annotations

import re
from dataclasses import replace

from orchestrator.models.offline import builders, phrases
from orchestrator.models.offline.phrases import Masked
from orchestrator.models.offline.questions import Question

_LONGEST = 4_000
_N = r"(?P<n>\d{1,4}|one|two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty)"
_M = r"(?P<m>\d{1,4}|two|three|four|five|ten)"
_DOC = (
    r"(?:(?!(?:how|which|what|the|of|does|do|lines?|different)\b)[\w./-]{1,20} ){0,2}?"
    r"(?:documents?|files?|articles?|pages?|papers?|books?|chapters?|reports?|transcripts?|posts?|scripts?|stories|story"
    r"|poems?|records|entries|sections?|(?<!imported )modules?(?! (?:is|are) imported)|messages|contracts?|notes|texts"
    r"|licen[cs]es?|tickets?|interviews?|reviews?|recipes?|speech(?:es)?|logs?|essays?|novels?|plays?|memos?|manuals?"
    r"|letters?(?= (?:that |which )?(?:mention|contain|talk|refer|discuss|has|have|is|are|does)))"
)
_NOT = r"(?P<no>(?:do|does|did) not |don't |doesn't |never |not )?"
_VERB = (
    r"(?P<verb>(?:contain|mention|include|ha(?:ve|s|ving)\b|use|using|hold|discuss|referenc|refer(?:s|ring)? to"
    r"|talk(?:s|ing)? about|say|feature|cite|quote|import|defin|declar|implement|with\b|consist(?:s|ing)? of)"
    r"(?:ing|es|s|e)?)"
)
_OCCUR = (
    r"(?:occurs?|appears?|shows? up|comes? up|crops? up|exists?|(?:be )?(?:mentioned|used|found|present|contained"
    r"|repeated|written|named|cited|imported|defined|seen|said|listed|referenced|discussed|called|invoked))"
)
_OF_THEM = r"(?:of )?(?:the |these |those |all |all of |our |my )*"
_MANY = (
    r"(?:how many|(?:the )?(?:total )?(?<!largest )(?<!smallest )(?<!highest )(?<!lowest )(?:number|count) of"
    r"|count(?: up)?(?: all)?(?: the)?(?: number of)?(?! of)"
    r"|total number of)"
)
_ASK = (
    r"(?:list|extract|find|show|give|collect|name|enumerate|identify|get|print|return|report|tell|which"
    r"|what(?: are| is|'s)?)(?: me)?"
)
_ALL = r"(?: all| every| each| the| of| any)*"
_MOST = r"(?P<most>most|fewest|least|(?:highest|largest|greatest|biggest|lowest|smallest) (?:number|count|amount) of)"
_HOW_OFTEN = r"(?:most|least)(?: often| frequently| commonly| widely| times)?"
_BE = r"(?:does|do|did|is|are|was|were|has|have|can)"
_SIZE = r"(?P<adjective>longest|largest|biggest|shortest|smallest)"
_REPLY_FORM = re.compile(
    r"(?i)^(?:please |then |just )?(?:reply|respond|return (?:only|just|one|a json|json|the json|the result|your)"
    r"|output|format|use |write |answer (?:with|in|only|briefly|as|using|concisely)|give (?:only|your|the answer)"
    r"|do not|don't"
    r"|only |if |leave out|quote |at most|be |json|as json|in json|no other|you are|you're|here (?:is|are)"
    r"|no explanation|whole words|upper and lower)"
)

BEYOND = "I am a small program that extracts from texts; I cannot write, translate or judge."
_BEYOND = re.compile(
    r"(?i)^(?:please |now |(?:can|could|would|will) you (?:please )?)*(?:translate|rewrite|rephrase|paraphrase"
    r"|write(?! (?:down|out))|compose|generate|invent|imagine|classify|refactor|fix|correct|proofread|improve|simplify"
    r"|convert|draw|draft|predict|recommend|criti(?:que|ci[sz]e))\b"
)
_UNREAD = "I do not read questions with “{}”: I would answer another question. Please ask for one thing at a time."
# What asks for a number, a list or yes and no, where a condition that is not read makes the answer wrong.
_COUNTING = re.compile(
    r"(?i)\b(?:how many|how often|number of|count|which|what (?:files|documents|lines|words)|list|extract|find|show"
    r"|name)\b|^(?:is|are|was|were|does|do|did|has|have)\b"
)
_NEGATION = re.compile(r"(?i)(?<!word )(?<!term )\b(?:not|never|nor)\b|\bno (?=\w)|n['’]t\b")
_PLACE = re.compile(
    r"(?i)\b(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last|\d{1,6}(?:st|nd|rd|th)) "
    r"(?:line|word|sentence|paragraph|page|chapter|section|half|column|row)s?\b"
)
_SEARCHES = ("passages", "value", "definition", "summary", "unable")

_AS_FORM = re.compile(
    r"(?i)[, ]+(?:as|in|into|using) (?:an? |one |valid |plain )*"
    r"(?:json|python|comma|bullet|numbered|markdown|list|array|line)\b[^?.⟦]*(?=[?.]|$)"
)
# A full stop after a short word ("Mr.") need not end a sentence.
_SENTENCES = re.compile(r"(?<=\?)\s+|(?<=[\w)⟧]{3}[.!])\s+(?=[A-Z⟦])")

_Form = tuple[re.Pattern[str], builders.Build]


def _form(build: builders.Build, *parts: str) -> _Form:
    return re.compile("".join(parts), re.IGNORECASE), build


# Order matters: a form stands before those that would also fit its sentences and ask something broader.
_FORMS: tuple[_Form, ...] = (
    _form(builders.summary, r"\b(?:summari[sz]e|summary|tl;?dr|main points?|key points?|overview of|gist of)\b"),
    # Documents counted.
    _form(
        builders.counted("count_documents"),
        rf"\b{_MANY} {_OF_THEM}{_DOC} (?:that |which |do |does |is |are |there are that )*{_NOT}{_VERB} (?P<what>.+)",
    ),
    _form(builders.counted("count_documents"), rf"\bin how many {_OF_THEM}{_DOC} {_BE} (?P<what>.+?) {_NOT}{_OCCUR}\b"),
    _form(
        builders.count_documents,
        rf"\b{_MANY} {_OF_THEM}(?P<called>{_DOC})",
        r"(?: (?:are|is|does|do|exist|were) ?(?:there|in total|here|it|given|present|contained)?)?",
        r"(?: (?:in|altogether|overall)\b[^⟦]*)?[?. ]*$",
    ),
    # Documents ranked.
    _form(
        builders.counted("top_documents"),
        rf"\b{_ASK}{_ALL}(?: top)?(?: {_N})? {_DOC} (?:that |which |with |by )*",
        r"(?P<verb>ha(?:ve|s)|contains?|mentions?|uses?|defines?|declares?|imports?|includes?)?(?: the)? ?",
        rf"{_MOST} (?P<what>.+)",
    ),
    _form(
        builders.counted("top_documents"),
        rf"\b(?:in |of )?(?:which|what)(?: {_N})? {_DOC} {_BE} (?P<what>.+?) {_OCCUR} (?:the )?",
        rf"(?P<most>{_HOW_OFTEN})\b",
    ),
    _form(
        builders.counted("top_documents"),
        rf"\b(?:which|what)(?: {_N})? {_DOC} (?P<verb>mentions?|uses?|contains?|imports?|refers? to|talks? about) ",
        rf"(?P<what>.+?) (?:the )?(?P<most>{_HOW_OFTEN})\b[?. ]*$",
    ),
    _form(
        builders.counted("top_documents"),
        rf"\b(?:top )(?:{_N} )?{_DOC} by (?:the )?(?P<most>number of|count of)? ?(?P<what>.+)",
    ),
    _form(
        builders.largest_documents,
        rf"\b(?:which|what|list|name|find|show|give)(?: me)?(?: is| are)?(?: the)?(?: top)?(?: {_N})? ",
        rf"{_SIZE}(?: {_M})?",
        rf" {_DOC}\b",
    ),
    _form(builders.largest_documents, rf"\b(?:which|what)(?: {_N})? {_DOC} (?:is|are) (?:the )?{_SIZE}\b"),
    # Occurrences and lines counted.
    _form(
        builders.counted("count"),
        rf"\b(?:how many times|how often) (?:{_BE} |(?=⟦|the (?:word|text|phrase|string)\b))",
        rf"(?P<what>.+?) (?:been )?{_OCCUR}\b",
    ),
    _form(
        builders.counted("count"),
        r"\b(?:how many|the number of|number of|count(?: all)?(?: the)?(?: number of)?) (?:the )?",
        r"(?:times |occurrences?|mentions?|instances?|appearances|uses) (?:of )?(?P<what>.+)",
    ),
    _form(
        builders.count_lines,
        rf"\b{_MANY} (?:of the )?(?:lines|rows) (?:of \w+ )?(?:that |which |do |does )*",
        r"(?P<what>(?:contain|mention|includ|start|begin|end|hav|with)\w* ?.+)",
    ),
    # Definitions and values.
    _form(
        builders.definition,
        r"\bwhere (?:is|are|was|were) (?P<what>.+?) (?:first )?(?:defined|declared|implemented|introduced)\b",
    ),
    _form(
        builders.definition,
        rf"\b(?:in )?(?:which|what) {_DOC} (?:is|are|was) (?P<what>.+?) (?:defined|declared|implemented)\b",
    ),
    _form(
        builders.definition,
        rf"\b(?:which|what|name the|find the) {_DOC} (?:that |which )?(?:defines?|declares?|implements?|introduces?) ",
        r"(?P<what>.+)",
    ),
    _form(builders.definition, r"\bdefinition of (?P<what>.+)"),
    _form(
        builders.value,
        r"(?<!maximum )(?<!minimum )(?<!largest )(?<!smallest )(?<!highest )(?<!lowest )(?<!average )(?<!mean )",
        r"(?<!total )",
        r"\b(?:value|setting|default) (?:of|for|assigned to|given to) (?P<what>.+)",
    ),
    _form(builders.value, r"\bwhat (?:is|was) (?P<what>.+?) (?:set|equal) to\b"),
    # Documents listed.
    _form(
        builders.list_documents,
        rf"^{_ASK}{_ALL} (?:names of |list of )*(?:the |all )*",
        r"(?:documents?|files?|modules?|chapters?)(?: names)?[?. ]*$",
    ),
    _form(
        builders.counted("which_documents"),
        rf"\b{_ASK}{_ALL} (?:names of |list of )*(?:the )?{_DOC} (?:that |which |do |does |are )*{_NOT}{_VERB} ",
        r"(?P<what>.+)",
    ),
    _form(
        builders.counted("which_documents"),
        rf"\b(?:in )?(?:which|what) {_OF_THEM}{_DOC} {_BE} (?P<what>.+?) {_NOT}{_OCCUR}\b",
    ),
    # Rankings and extremes of items.
    _form(
        builders.common,
        rf"\b(?:top |the )?(?:{_N} )?(?:most|least) ",
        r"(?:common|frequent|often|popular|used|widely|cited|mentioned|occurring|imported)(?:ly)?",
        rf"(?: used| imported| occurring| mentioned| found)? (?:{_M} )?(?P<what>.+)",
    ),
    _form(
        builders.common,
        rf"\b(?:which|what)(?: {_N})? (?P<what>[\w ]+?) (?:(?:is|are|gets?) )?(?:{_OCCUR} )?(?:the )?{_HOW_OFTEN}",
        rf"(?: {_OCCUR})?[?. ]*$",
    ),
    _form(builders.common, rf"\btop {_N} (?P<what>.+)"),
    _form(
        builders.nth,
        r"\b(?P<nth>first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last|\d{1,6}(?:st|nd|rd|th)) ",
        rf"(?:{_M} )?(?P<unit>line|word|sentence|paragraph)s?(?: (?:of|in|from)\b[^⟦]{{0,60}})?[?. ]*$",
    ),
    _form(builders.nth, r"\b(?P<unit>line|word|sentence|paragraph) (?:number |no\. )?(?P<at>\d{1,9})\b[^⟦]{0,60}$"),
    _form(
        builders.extreme,
        rf"\b(?:{_N} )?(?P<extreme>longest|shortest|earliest|oldest|latest|newest|most recent|first|last) ",
        rf"(?:{_M} )?(?P<what>.+)",
    ),
    # Arithmetic on numbers.
    _form(
        builders.statistic,
        r"\b(?P<stat>sum|total|average|mean|minimum|maximum|smallest|lowest|largest|highest|biggest|greatest)",
        r"(?! number of)",
        r"(?: value)?(?: of)? (?P<what>.+)",
    ),
    # Items listed or counted; presence.
    _form(
        builders.lines_found,
        r"\bfind the lines? (?:that |which )?(?P<what>(?:contain|mention|includ|start|begin|end|sa)\w* .+)",
    ),
    _form(builders.count_items, rf"\b{_MANY} (?P<what>.+)"),
    _form(
        builders.yes_no,
        r"^(?:does|do|is|are) (?:the |this |these |any(?: of)?|it\b|they\b|there\b|an? )* ?",
        rf"(?:{_DOC}|texts?|contexts?|passage)? ?{_NOT}{_VERB} (?P<what>.+)",
    ),
    _form(
        builders.yes_no,
        r"^(?:is|are|was|were) there (?:any |an? |no |not (?:any |an? )?)?(?:mentions? of )?(?P<what>.+)",
    ),
    _form(builders.yes_no, rf"^(?:is|are|was|were|does|do) (?:any )?(?P<what>.+?) {_OCCUR}\b"),
    _form(builders.listed, rf"\b{_ASK}{_ALL}(?: distinct| different| unique)? (?P<what>.+)"),
    _form(builders.value, r"^(?:what|which)(?:'s| is| are| was| were) (?P<what>.+)"),
    _form(builders.value, r"^(?:find|tell me|give me|get|return|show me|look up) (?P<what>.+)"),
)


def understand(text: str) -> Question:
    """Return what ``text`` asks."""
    asked = _without_reply_forms(text[:_LONGEST])
    masked = Masked.of(asked)
    scope, rest = _scope(masked)
    question = Masked(_AS_FORM.sub("", rest), masked.quoted)
    # Wishes about case and whole words may stand in a sentence of their own, outside the one that asks.
    whole = Masked.of(text[:_LONGEST])
    sentences = _SENTENCES.split(question.text)
    unable = _unable(asked, sentences)
    if unable:
        return Question(asked, "unable", what=unable, scope=scope)
    for form, build in _FORMS:
        matches = filter(None, map(form.search, sentences))
        found = next(filter(None, (build(match, question) for match in matches)), None)
        if found is not None:
            if found.kind not in _SEARCHES and (word := _negation(sentences, found) or _place(sentences, found)):
                return Question(asked, "unable", what=_UNREAD.format(word), scope=scope)
            wanted = phrases.reading(found.terms, whole) if found.terms else None
            return replace(found, text=asked, scope=scope, terms=wanted)
    if word := next((_negation([part]) for part in sentences if _COUNTING.search(part)), ""):
        return Question(asked, "unable", what=_UNREAD.format(word), scope=scope)
    return Question(asked, "passages", scope=scope)


def _unable(asked: str, sentences: list[str]) -> str:
    """Return why the question cannot be answered here at all, or an empty string."""
    if _BEYOND.search(asked):
        return BEYOND
    counting = filter(_COUNTING.search, sentences)
    condition = next(filter(None, map(phrases.refused_condition, counting)), "")
    return _UNREAD.format(condition) if condition else ""


def _place(sentences: list[str], question: Question) -> str:
    found = next(filter(None, map(_PLACE.search, sentences)), None)
    return found.group().lower() if found and question.kind != "nth" else ""


def _negation(sentences: list[str], question: Question | None = None) -> str:
    if question and question.negate:
        return ""
    found = next(filter(None, map(_NEGATION.search, sentences)), None)
    return found.group().strip().lower() if found else ""


def _without_reply_forms(text: str) -> str:
    """Leave out the sentences that only say what the reply should look like."""
    parts = re.split(r"(?<=[.?!:])\s+(?=[A-Z\"'`(\[{])|\n+", text.strip())
    kept = [part for part in parts if part.strip() and not _REPLY_FORM.match(part.strip())]
    return " ".join((" ".join(kept) or text).split())


def _scope(question: Masked) -> tuple[str, str]:
    """Take out the one document the question is restricted to, if there is one; return its name and the rest."""
    match = re.search(
        r"(?i)[ ,]*\b(?:in|from|within|inside|of|does|do) (?:the )?"
        r"(?:(?:file|document|module|page|chapter|article) (?:named |called )?)"
        r"(?P<named>⟦\d+⟧|[\w./-]{1,200}\.[a-z]\w{0,5}|\d{1,6})(?=[\s?.,;:]|$)"
        r"|[ ,]*\b(?:in|from|within|inside|does|do) (?P<bare>[\w./-]{1,200}\.[a-z]\w{0,5})(?=[\s?.,;:]|$)",
        question.text,
    )
    if match is None:
        return "", question.text
    name = question.fill(match["named"] or match["bare"])
    verb = re.search(r"(?i)\b(does|do) ", match.group())
    rest = question.text[: match.start()] + (f" {verb[1]} it" if verb else "") + question.text[match.end() :]
    return (f"document {name}" if name.isdecimal() else name), rest.strip()

"""Words that carry little of a text's or a question's meaning."""

from __future__ import annotations

# The words of grammar, as they stand in most texts; what a ranking without "stop words" leaves out.
STOP_WORDS = frozenset(
    """
    a about above after again against all also am an and any are as at be because been before being below between
    both but by can cannot could did do does doing down during each else ever every few for from further get give
    had has have having he her here hers him his how i if in into is it its itself just made make many me might
    more most much must my no nor not now of off on once one only or other our out over own same she should so
    some such than that the their them then there these they this those through to too under until up upon very
    was we were what when where which while who whom whose why will with would you your
    """.split()  # noqa: SIM905 - as words in quotation marks they could not be read
)
# What questions are made of, besides those.
ASKING_WORDS = frozenset(
    """
    like may please say says said tell us text document documents file files according find line lines passage
    mention mentions mentioned exactly word words called named name
    """.split()  # noqa: SIM905 - as words in quotation marks they could not be read
)

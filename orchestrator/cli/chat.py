"""``rlm-sandbox chat``: several questions over the same files, in one box."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.cli import run, usage
from orchestrator.cli.common import (
    EXIT_INTERRUPTED,
    EXIT_NO_ANSWER,
    EXIT_OK,
    PROG,
    add_journal,
    add_json,
    add_policy,
    add_unpack,
    given,
    journal_directory,
    load_policy,
    note,
    out,
    out_json_line,
    say,
)
from orchestrator.errors import ConfigurationError, ContextError, RlmSandboxError

if TYPE_CHECKING:
    import anyio
    from anyio.from_thread import BlockingPortal

    from orchestrator.cli.interrupt import Interrupt
    from orchestrator.cli.lines import Lines
    from orchestrator.cli.progress import Progress
    from orchestrator.cli.sessions import Past
    from orchestrator.cli.viewing import View
    from orchestrator.context import Context
    from orchestrator.rlm.dialogue import AsyncDialogue
    from orchestrator.rlm.result import Result

_HELP = """\
/add FILE…   load a further context: the next question has it beside those there are
/help        this
/quit        end the session, as the end of input does
Any other line is a question. Ctrl-C stops the question that is being answered; variables stay."""
_COMMANDS = "/add FILE…, /help and /quit"


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "chat",
        help="ask several questions over the same files, in one box",
        description="Ask several questions in a row, a line of stdin each. They share a box, so variables stay, and "
        "the root model knows what was asked and answered before. Each has the whole budget, and a journal. /add FILE… "
        "brings a further context, /quit or the end of input ends the session.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="files or folders; with --resume, those that were moved since"
    )
    parser.add_argument(
        "--resume", metavar="ID|FILE", type=given, help="go on with a session: its id, one of its journals, or last"
    )
    parser.add_argument(
        "--on-divergence",
        choices=("stop", "fresh"),
        help="with --resume, when a cell that is run again does something else than it did: stop (the default), or go "
        "on with a fresh box, without variables",
    )
    run.add_models(parser, "Anthropic when a key is set, else offline")
    add_unpack(parser)
    add_policy(parser)
    parser.set_defaults(policy=None)
    add_journal(parser)
    run.add_redact(parser)
    run.add_quiet(parser)
    add_json(parser, "each result, a line each,")
    parser.more_help = run.offline_help
    parser.set_defaults(handler=handle)


class _Added(NamedTuple):
    """A context that waits for the next question, and where it came from."""

    context: Context
    origin: dict[str, Any]


def handle(args: argparse.Namespace) -> int:
    """Run the subcommand; return the exit code of the last question.

    Raises:
        ConfigurationError: something asked for cannot be.
        RlmSandboxError: a part failed that the session cannot do without.
    """
    from orchestrator.cli.lines import questions

    _check(args)
    lines = questions()
    if args.resume is None:
        policy = load_policy(args.policy or "default", args.assignments)
        journal = run.writable(args.journal or journal_directory())
        added = _load(args.files, policy.limits.context_mb, unpack=args.unpack, quiet=args.quiet)
        settings = {"policy": policy, "journal": journal, "redact": args.redact}
        return _converse(args, lines, settings, lambda rlm: rlm.asession(), added)
    from orchestrator.cli import sessions

    past = sessions.Past.of(sessions.find(args.resume, args.journal or journal_directory()), args.assignments)
    contexts = list(_past_contexts(past, args))
    args.model, args.sub_model = args.model or past.model or None, args.sub_model or past.sub_model or None
    choice = {"settings": args.assignments, "on_divergence": args.on_divergence or "stop"}
    if not args.quiet:
        note(f"going on with the session {past.id}")
    return _converse(args, lines, {}, lambda rlm: rlm.aresume_session(past.path, contexts, **choice))


def _check(args: argparse.Namespace) -> None:
    if "-" in args.files:
        raise ConfigurationError("- (stdin) cannot be a FILE here: the questions come from there, one a line")
    if args.resume is None:
        if not args.files:
            raise ConfigurationError("nothing to ask about: name a FILE or a folder, or a session with --resume")
        if args.on_divergence is not None:
            raise ConfigurationError("--on-divergence is about --resume, and no session is named with that")
        return
    if args.policy is not None:
        raise ConfigurationError("a session that goes on keeps its policy: leave out --policy; --set changes a key")
    if args.redact:
        raise ConfigurationError("--redact is chosen when a session begins: a redacted one cannot be resumed")


def _load(files: list[str], limit_mb: int, *, unpack: bool, quiet: bool) -> _Added:
    from orchestrator.cli.inputs import load_context

    loaded = load_context(files, limit_mb, unpack=unpack)
    for line in () if quiet else loaded.notes():
        note(line)
    return _Added(loaded.context, run.origin_of(files, unpack=unpack))


def _past_contexts(past: Past, args: argparse.Namespace) -> Iterator[Context]:
    """Yield the contexts of a session that goes on, from where its questions had them or from the files that are given.

    Which is which is told by their hashes.
    """
    from orchestrator.context import check, describe

    load = partial(_load, limit_mb=past.policy.limits.context_mb, quiet=args.quiet)
    for number, files, unpack in past.origins:
        missing = [file for file in files if not Path(file).exists()]
        if not missing:
            yield load(list(files), unpack=unpack).context
        elif not args.files:
            raise ConfigurationError(
                f"what question {number} was about is no longer at {missing[0]}: name its FILE again"
            )
    if args.files:
        moved = load(args.files, unpack=args.unpack).context
        info = describe(check(moved))
        if (info.kind, info.sha256) not in past.contexts:
            raise ConfigurationError(
                f"the FILEs hold none of the session's contexts, but a {info.kind} of {info.characters:,} characters: "
                "/add brings a further one"
            )
        yield moved


def _converse(
    args: argparse.Namespace,
    lines: Lines,
    settings: dict[str, Any],
    begin: Callable[[Any], AbstractAsyncContextManager[AsyncDialogue]],
    added: _Added | None = None,
) -> int:
    """Ask one line after another; return the exit code.

    Args:
        args: with ``model``, ``sub_model``, ``unpack``, ``quiet``, ``json`` and ``journal``.
        lines: of questions and commands.
        settings: of the :class:`~orchestrator.rlm.api.RLM`, beside its models.
        begin: makes the session of it.
        added: the context of the first question.
    """
    from anyio.from_thread import start_blocking_portal

    from orchestrator.cli.interrupt import Interrupt
    from orchestrator.cli.viewing import View
    from orchestrator.rlm.api import RLM

    view = View(quiet=args.quiet)
    rlm = RLM(model=args.model, sub_model=args.sub_model, on_event=run.heard_by(view.sink, run.traced()), **settings)
    with Interrupt(view.message) as interrupt, ExitStack() as stack:
        with interrupt.undivided():
            portal = stack.enter_context(start_blocking_portal())
        its = portal.wrap_async_context_manager(begin(rlm))
        # What a signal cuts short here is destroyed with the portal's tasks.
        with interrupt.waiting():
            dialogue = its.__enter__()
        chat = _Chat(args, lines, portal, dialogue, interrupt, view, added)
        try:
            return chat.run()
        finally:
            # Of what goes wrong nothing is for the session to hear: each question has told its own part of it.
            its.__exit__(None, None, None)
            chat.farewell()


class _Chat:
    """A session and the person, or the pipe, that asks.

    The main thread waits for lines and for answers, so that a signal finds it; the session lives on the portal's.
    """

    def __init__(  # noqa: PLR0917 - the parts that `_converse` has made, once each
        self,
        args: argparse.Namespace,
        lines: Lines,
        portal: BlockingPortal,
        dialogue: AsyncDialogue,
        interrupt: Interrupt,
        view: View,
        added: _Added | None,
    ) -> None:
        self._args = args
        self._lines = lines
        self._portal = portal
        self._dialogue = dialogue
        self._interrupt = interrupt
        self._view = view
        self._added = added
        self._before = len(dialogue.results)
        self._printed = False
        self._code: int | None = None

    def run(self) -> int:
        """Answer what is asked until nothing more is; return the exit code.

        Raises:
            RlmSandboxError: the session cannot go on.
        """
        if self._dialogue.unfinished:
            if not self._args.quiet:
                note("the last question was cut off: going on with it first")
            self._answer(self._dialogue.finish)
        if self._lines.typed and not self._args.quiet:
            note("ask, a line each; /help tells what else there is")
        while not self._interrupt.leaving and (line := self._line()) is not None:
            if not self._take(line):
                break
        if self._interrupt.leaving:
            return EXIT_INTERRUPTED
        if self._code is None and not self._lines.typed:
            raise ConfigurationError("there was no question on stdin: give one a line")
        return EXIT_OK if self._code is None else self._code

    def farewell(self) -> None:
        """Say where the session is recorded, and how it can go on."""
        results = self._dialogue.results[self._before :]
        journal = results[-1].journal if results else None
        if journal is None:
            return
        last = results[-1]
        if not self._args.quiet:
            note(f"journals: {journal.parent}/{self._dialogue.id}-*{journal.suffix}")
            if last.journal_head:
                note(f"head of the last, which stands for all: {last.journal_head}")
        if not self._args.redact and (not self._args.quiet or self._code == EXIT_INTERRUPTED):
            note(f"to go on: {self._again(journal)}")

    def _again(self, journal: Path | None) -> str:
        folder = None if journal is None else journal.parent.absolute()
        usual = self._args.journal is None and folder == journal_directory()
        where = "" if folder is None or usual else f" --journal {shlex.quote(str(folder))}"
        return f"{PROG} chat --resume {self._dialogue.id}{where}"

    def _line(self) -> str | None:
        """Return the next line; None at the end of input, or where somebody wants to leave."""
        while True:
            try:
                with self._interrupt.waiting():
                    return self._lines.next()
            except KeyboardInterrupt:
                self._interrupt.rearm()
                note("")  # what was typed so far stays where it is
                if self._interrupt.leaving or not self._lines.begun:
                    return None
            except ConfigurationError as error:
                say(str(error))
                self._code = error.exit_code

    def _take(self, line: str) -> bool:
        """Do what a line says; return whether the session goes on."""
        if not line.startswith("/"):
            return self._ask(line.strip()) if line.strip() else True
        word, _, rest = line.rstrip().partition(" ")
        match word:
            case "/quit":
                return False
            case "/help":
                note(_HELP)
            case "/add":
                self._add(rest)
            case _:
                say(f"there is no command {word}: there are {_COMMANDS}; a question may begin with a space")
        return True

    def _add(self, rest: str) -> None:
        try:
            files = shlex.split(rest)
            if not files or "-" in files:
                raise ConfigurationError("/add takes files or folders, as the command line does")
            with self._interrupt.waiting():
                limit_mb = self._dialogue.policy.limits.context_mb
                added = _load(files, limit_mb, unpack=self._args.unpack, quiet=self._args.quiet)
        except ValueError as error:
            say(f"/add {rest}: {error}")
        except RlmSandboxError as error:
            say(str(error))
        except KeyboardInterrupt:
            self._interrupt.rearm()
            note("nothing was added")
        else:
            if self._added is not None:
                note(f"in the place of {', '.join(self._added.origin['files'])}, which no question was asked about")
            self._added = added
            if not self._args.quiet:
                note("the next question has it")

    def _ask(self, query: str) -> bool:
        context, origin = (None, None) if self._added is None else self._added
        try:
            going_on = self._answer(partial(self._dialogue.ask, query, context, origin=origin))
        except (ConfigurationError, ContextError) as error:
            say(str(error))
            self._code = error.exit_code
            if isinstance(error, ContextError):
                self._added = None  # else it still waits: the question was not one
            return True
        self._added = None
        return going_on

    def _answer(self, ask: Callable[..., Awaitable[Result]]) -> bool:
        """Have a question answered, and print that; return whether there is somewhere to print the next."""
        try:
            with self._view.question() as progress:
                result = self._portal.call(self._watched, ask, progress)
            interrupted = self._interrupt.requested
        finally:
            self._interrupt.rearm()
        self._code = run.exit_code(result, interrupted=interrupted)
        if not self._given_out(result):
            self._code = EXIT_NO_ANSWER
            return False
        if end := run.end_of(result, interrupted=interrupted):
            more = run.more_for(result, self._dialogue.policy)
            say(end + (f"; for more: {self._again(result.journal)} {more}" if more else ""))
        if not self._args.quiet:
            note(usage.line(result.usage))
        return True

    def _given_out(self, result: Result) -> bool:
        if self._args.json:
            return run.given_out(result, lambda: out_json_line(result.to_dict()))
        if self._printed and result.answer is not None:
            out("")
        self._printed |= result.answer is not None
        return run.given_out(result, None)

    async def _watched(self, ask: Callable[..., Awaitable[Result]], progress: Progress | None) -> Result:
        from orchestrator.errors import ungrouped

        async def carry_out(stop: anyio.Event) -> Result:
            return await ask(stop=stop)

        with ungrouped(), self._interrupt.armed() as stop:
            return await run.watched(progress, partial(carry_out, stop))

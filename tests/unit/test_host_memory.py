"""What an attacker at the stream can make the host hold: under 64 MiB, whatever it sends, with the default policy.

The host is a process of its own that drives a whole run, and is measured from the moment its box is ready. Where a
bound is taken away the same attack makes it hold more.
"""

from __future__ import annotations

import os
import struct
import sys

import pytest

from sandbox_image import wire
from sandbox_image.wire import Channel, Kind
from tests.support.measured_host import Cost, Job
from tests.support.raw_guest import Attack, RawGuest, kernel_message, suffer

MIB = 1 << 20
MOST = 64 * MIB
# One character of four bytes makes a str take four for each of its characters.
WIDE = "\U0001f600"
PIECE = b"x" * (MIB - 100)
BOX_FRAME = 13 * 256 * 1024
# MiB of what has no end: where a bound is missing, this is enough to see it, and little enough for the machine.
ENOUGH = 120
TYPED = {"answered", "limit", "no_answer", "failed"}


def garbage(guest: RawGuest) -> None:
    while True:
        guest.raw(os.urandom(MIB))


def lying_length(guest: RawGuest) -> None:
    guest.request()
    guest.raw(struct.pack(">IB", 2**32 - 1, Kind.KERNEL))
    for _ in range(ENOUGH):
        guest.raw(PIECE)


def lengths_that_are_just_allowed(guest: RawGuest) -> None:
    for request in guest.each_cell():
        while True:
            padding = b"x" * (BOX_FRAME - 300)
            guest.message("stream", b'{"name":"stdout","text":"' + padding + b'"}', request)


def wide_output(guest: RawGuest) -> None:
    for request in guest.each_cell():
        for _ in range(100):
            guest.print(WIDE + "x" * (BOX_FRAME - 400), request)


def output_in_large_pieces(guest: RawGuest) -> None:
    for request in guest.each_cell():
        for _ in range(ENOUGH):
            guest.print("x" * MIB, request)
        guest.reply(request)


def output_in_tiny_pieces(guest: RawGuest) -> None:
    for request in guest.each_cell():
        for _ in range(200_000):
            guest.print("x", request)
        guest.reply(request)


def results_and_errors(guest: RawGuest) -> None:
    for request in guest.each_cell():
        text = "x" * MIB
        for _ in range(500):
            guest.message("execute_result", {"data": {"text/plain": text}}, request)
            guest.message("error", {"ename": text, "evalue": text, "traceback": [text]}, request)


def cuts(guest: RawGuest) -> None:
    for request in guest.each_cell():
        while True:
            guest.send(Kind.CUT, {"id": request, "stdout": {"tail": "x" * MIB, "lost": 1}})


def messages_of_no_cell(guest: RawGuest) -> None:
    guest.request()
    payload = kernel_message("stream", {"name": "stdout", "text": "x" * MIB}, "0" * 32)
    while True:
        guest.send(Kind.KERNEL, payload)


def many_values(guest: RawGuest) -> None:
    for request in guest.each_cell():
        content = b'{"data":[' + b'{"":0},' * (BOX_FRAME // 8) + b"0]}"
        guest.message("display_data", content, request)


def many_parts(guest: RawGuest) -> None:
    guest.request()
    guest.send(Kind.KERNEL, bytes((Channel.IOPUB, 255)) + struct.pack(">I", 0) * (BOX_FRAME // 5))


def deep_nesting(guest: RawGuest) -> None:
    guest.message("stream", b"[" * 1_000_000, guest.request())


def huge_number(guest: RawGuest) -> None:
    guest.message("stream", b"9" * 3_000_000, guest.request())


def facts_without_end(guest: RawGuest) -> None:
    while True:
        guest.send(Kind.HELLO, b'{"a":"' + b"x" * (MIB - 10) + b'"}')
        guest.send(Kind.READY, {"generation": 1})
        guest.send(Kind.DIED, {"generation": 1, "code": -9})


def message_without_end(guest: RawGuest) -> None:
    guest.request()
    guest.call("final", iter(lambda: PIECE, None))


def giant_final(guest: RawGuest) -> None:
    for request in guest.each_cell():
        guest.call("final", [PIECE] * ENOUGH)
        guest.reply(request)


def wide_final(guest: RawGuest) -> None:
    for request in guest.each_cell():
        guest.call("final", [WIDE.encode(), *[PIECE] * 7])
        guest.reply(request)


def final_that_is_all_escapes(guest: RawGuest) -> None:
    for request in guest.each_cell():
        guest.call("final", [b"\x7f" * MIB] * 8)
        guest.reply(request)


def wide_prompts(guest: RawGuest) -> None:
    for request in guest.each_cell():
        for _ in range(8):
            guest.call("llm_query", [WIDE.encode(), *[PIECE] * 7])
        guest.reply(request)


def many_prompts_at_once(guest: RawGuest) -> None:
    for request in guest.each_cell():
        for _ in range(200):
            guest.call("llm_query", [WIDE.encode(), b"x" * (MIB // 2)])
        guest.reply(request)


def prompts_left_hanging_by_cell_after_cell(guest: RawGuest) -> None:
    for number, request in enumerate(guest.each_cell()):
        guest.call("llm_query", [f"hang {number}".encode(), WIDE.encode(), *[PIECE] * 7])
        guest.reply(request)


def calls_without_end(guest: RawGuest) -> None:
    for _ in guest.each_cell():
        while True:
            guest.call("budget", [])


def heads_full_of_values(guest: RawGuest) -> None:
    for _ in guest.each_cell():
        while True:
            guest.call("llm_query", [b"x"], a=[{"": 0}] * 3000)


def slow_call(guest: RawGuest) -> None:
    guest.request()
    guest.call("final", [PIECE] * 7, ends=False)


def unfinished_frame(guest: RawGuest) -> None:
    guest.request()
    guest.raw(wire.encode(Kind.KERNEL, b"x" * BOX_FRAME)[:-1])


ATTACKS = (
    garbage,
    lying_length,
    lengths_that_are_just_allowed,
    wide_output,
    output_in_large_pieces,
    output_in_tiny_pieces,
    results_and_errors,
    cuts,
    messages_of_no_cell,
    many_values,
    many_parts,
    deep_nesting,
    huge_number,
    facts_without_end,
    message_without_end,
    giant_final,
    wide_final,
    final_that_is_all_escapes,
    wide_prompts,
    many_prompts_at_once,
    prompts_left_hanging_by_cell_after_cell,
    calls_without_end,
    heads_full_of_values,
    slow_call,
    unfinished_frame,
)


def told(cost: Cost) -> str:
    """Show the figure with ``pytest -rP`` or ``-s``."""
    return f"{cost.memory / MIB:.1f} MiB, {cost.disk / MIB:.1f} MiB of journal, {cost.elapsed_s:.1f} s: {cost}"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_costs_the_host_less_than_64_mib_and_the_run_ends_typed(attack: Attack) -> None:
    cost = suffer(attack, Job(settings=("budget.turns=12",) if "cell_after_cell" in attack.__name__ else ()))
    sys.stdout.write(told(cost))
    assert cost.status in TYPED
    assert cost.memory < MOST
    # Not a byte but the journal's, which has its budget; one event may pass it.
    assert cost.disk < 256 * MIB + 50 * MIB
    assert cost.elapsed_s < 60


def test_a_host_that_nobody_attacks_grows_hardly_at_all() -> None:
    def honest(guest: RawGuest) -> None:
        for request in guest.each_cell():
            guest.print("out", request)
            guest.reply(request)

    cost = suffer(honest)
    assert set(cost.cells) == {"ok"}
    assert cost.memory < 8 * MIB


@pytest.mark.parametrize(
    ("attack", "without"),
    [
        (lying_length, "frame limit"),
        (output_in_large_pieces, "output limits"),
        (many_values, "value limit"),
        (giant_final, "call limits"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_without_the_bound_the_same_attack_costs_more(attack: Attack, without: str) -> None:
    cost = suffer(attack, Job(without=without))
    sys.stdout.write(told(cost))
    assert cost.memory > MOST

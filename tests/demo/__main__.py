"""The demo: collect the text, ask, compare, try what must be refused, and say where the journals lie.

``DEMO_MODEL`` names another model than ``offline``; ``DEMO_SEED`` repeats a planted line. The exit code is 0 only if
every answer agrees with the truth and every refusal holds.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.cli.common import EXIT_INTERRUPTED
from orchestrator.text import printable
from tests.demo.commands import rlm_sandbox
from tests.demo.library import collect, plant
from tests.demo.refusals import Refusal, refusals
from tests.demo.truth import Question, questions

JOURNALS = Path(__file__).resolve().parents[2] / "build" / "demo"
_RULE = "─" * 100


def main() -> int:
    """Run the demo; return its exit code."""
    began = time.monotonic()
    shutil.rmtree(JOURNALS, ignore_errors=True)
    agreed = _ask_all(os.environ.get("DEMO_MODEL") or "offline", os.environ.get("DEMO_SEED") or secrets.token_hex(4))
    held = [_try(refusal) for refusal in refusals(JOURNALS)]
    print(_RULE)
    print(f"{sum(agreed)} of {len(agreed)} answers agree with the truth; {sum(held)} of {len(held)} refusals hold.")
    size = sum(path.stat().st_size for path in JOURNALS.rglob("*") if path.is_file())
    print(f"{time.monotonic() - began:.0f} s in all. The journals lie in {JOURNALS}: {size / 1e6:.1f} MB.")
    print("The next demo replaces them.")
    return 0 if all(agreed) and all(held) else 1


def _ask_all(model: str, seed: str) -> list[bool]:
    with tempfile.TemporaryDirectory(prefix="rlm-sandbox-demo-") as folder:
        documents = collect(Path(folder))
        needle = plant(Path(folder), documents, random.Random(seed))  # noqa: S311 - a seed must repeat it
        size = sum(len(text.encode()) for text in documents.values())
        print(f"The text: the sources of Python's standard library, {len(documents):,} files, {size / 1e6:.1f} MB.")
        print(f"One line, with a random code, was planted in one of them (DEMO_SEED={seed}). Model: {model}.")
        return [_ask(question, folder, model) for question in questions(documents, needle)]


def _ask(question: Question, folder: str, model: str) -> bool:
    print(f"{_RULE}\nQuestion  {question.text}", flush=True)
    options = ["--model", model, "--journal", str(JOURNALS), "--json"]
    done = rlm_sandbox(["run", folder, "-q", question.text, *options])
    try:
        answer = json.loads(done.stdout)["answer"] or ""
    except (ValueError, KeyError, TypeError):
        answer = ""
    agrees = done.returncode == 0 and question.agrees(answer)
    shown = printable(answer).strip().replace("\n", "\n          ") or "none"
    print(f"Answer    {shown}\nTruth     {question.truth}\nVerdict   {'agrees' if agrees else 'DISAGREES'}", flush=True)
    return agrees


def _try(refusal: Refusal) -> bool:
    print(f"{_RULE}\nRefusal   {refusal.title}", flush=True)
    held = refusal.holds()
    print(f"Verdict   {'refused' if held else 'NOT REFUSED'}", flush=True)
    return held


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)

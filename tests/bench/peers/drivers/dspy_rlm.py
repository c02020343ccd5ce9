"""``dspy.RLM`` with its default interpreter, Pyodide in Deno.

The one module that the interpreter's runner loads from a web site, a reader of lines, is to be had from a file beside
this one's folder instead: so says an import map for Deno. All else of the command is what ``PythonInterpreter`` runs.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import dspy
from dspy.primitives.python_interpreter import PythonInterpreter

from tests.bench.peers.drivers import loop

CALLS = 1000  # its default is 50


_READ_LINES = Path(__file__).resolve().parents[1] / "read_lines.ts"


def _import_map(folder: str) -> Path:
    runner = next(word for word in PythonInterpreter().deno_command if word.endswith("runner.js"))
    imports = re.findall(r'from "(https://[^"]+)"', Path(runner).read_text(encoding="utf-8"))
    path = Path(folder, "import_map.json")
    path.write_text(json.dumps({"imports": dict.fromkeys(imports, _READ_LINES.as_uri())}), encoding="utf-8")
    return path


def _run(task: loop.Task, imports: Path) -> str:
    def interpreter() -> PythonInterpreter:
        command = PythonInterpreter().deno_command
        return PythonInterpreter(deno_command=[*command[:2], f"--import-map={imports}", *command[2:]])

    # Its cache would answer a question that was asked in an earlier run.
    root, sub = (
        dspy.LM(f"openai/{name}", api_base=f"{task.url}/v1", api_key="none", cache=False) for name in ("root", "sub")
    )
    rlm = dspy.RLM("context, query -> answer", max_llm_calls=CALLS, sub_lm=sub, interpreter_factory=interpreter)
    with dspy.context(lm=root):
        return str(rlm(context=task.context, query=loop.QUERY).answer)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        imports = _import_map(folder)
        loop.serve(lambda task: _run(task, imports))

"""What a person sees on the command line when a provider answers, and when it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from tests.support.model_server import Fault, ModelServer, Reply

KEY = "sk-very-secret-0123456789"
Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Ask:
    """Ask the provider, which always says the same, a question that needs no box."""
    text = tmp_path / "text.txt"
    text.write_text("some text")

    def call(decision: Reply | Fault, *options: str) -> tuple[int, str, str]:
        with ModelServer(lambda _body, _n: decision) as server:
            monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
            monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
            command = ["run", str(text), "-q", "What?", "--model", "anthropic:claude-haiku-5-5", *options]
            code = main([*command, "--journal", str(tmp_path), "--set", "models.direct_below_chars=1000"])
        out, err = capfd.readouterr()
        assert KEY not in out + err
        return code, out, err

    return call


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refused_key_is_exit_code_5_and_one_line_that_names_the_variable(ask: Ask, status: int) -> None:
    code, out, err = ask(Fault.status(status, message="no"), "--quiet")
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert err.startswith("rlm-sandbox: the run failed: Anthropic refuses ")
    assert "check ANTHROPIC_API_KEY" in err


def test_at_the_end_a_table_on_stderr_says_what_each_model_took(ask: Ask) -> None:
    code, out, err = ask(Reply("an answer", input_tokens=1500, output_tokens=20))
    assert (code, out) == (0, "an answer\n")
    head, row = err.splitlines()[-4:-2]
    assert head.split() == ["depth", "model", "calls", "input", "cached", "output", "cost"]
    assert row.split() == ["0", "claude-haiku-5-5", "1", "1.5k", "20", "$0.0002"]


def test_the_json_has_the_table_as_data_and_quiet_leaves_it_out_on_stderr(ask: Ask) -> None:
    _, out, err = ask(Reply("an answer", input_tokens=1500, output_tokens=20), "--json", "--quiet")
    assert err == ""
    (row,) = json.loads(out)["usage"]["by_depth_and_model"]
    assert (row["depth"], row["model"], row["input_tokens"], row["calls"]) == (0, "claude-haiku-5-5", 1500, 1)

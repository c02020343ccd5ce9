"""From a spec to a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import ConfigurationError
from orchestrator.models.anthropic import AnthropicModel
from orchestrator.models.openai import OpenAIModel
from orchestrator.models.scripted import ScriptedModel
from orchestrator.models.spec import FORMS, default_spec, open_model


def test_anthropic_opens_with_the_name_after_the_colon() -> None:
    model = open_model("anthropic:claude-opus-5-5", environ={"ANTHROPIC_API_KEY": "key"})
    assert isinstance(model, AnthropicModel)
    assert model.name == "claude-opus-5-5"


def test_openai_opens_with_a_name_that_holds_colons() -> None:
    model = open_model("openai:qwen3:8b", environ={"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})
    assert isinstance(model, OpenAIModel)
    assert model.name == "qwen3:8b"


def test_scripted_opens_the_file_after_the_colon(tmp_path: Path) -> None:
    file = tmp_path / "a script.toml"
    file.write_text('[[root]]\nreply = "hello"\n', encoding="utf-8")
    model = open_model(f"scripted:{file}")
    assert isinstance(model, ScriptedModel)
    assert model.name == "scripted"


@pytest.mark.parametrize("spec", ["offline", "offline:small"])
def test_offline_may_have_a_name_and_is_called_by_the_whole_spec(spec: str) -> None:
    assert open_model(spec, environ={}).name == spec


@pytest.mark.parametrize("spec", ["", "  ", "claude-opus-5-5", "gemini:pro", "Anthropic:x", ":x"])
def test_an_unknown_provider_is_told_with_the_forms(spec: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_model(spec, environ={})
    assert FORMS in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["anthropic", "anthropic:", "openai", "openai: ", "scripted", "scripted:", "offline:"])
def test_a_missing_name_is_told_with_the_forms(spec: str) -> None:
    with pytest.raises(ConfigurationError, match="lacks what comes after") as caught:
        open_model(spec, environ={"ANTHROPIC_API_KEY": "key", "OPENAI_API_KEY": "key"})
    assert FORMS in str(caught.value)


def test_a_name_that_cannot_be_printed_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot be printed"):
        open_model("openai:a\x1b[2Jb", environ={"OPENAI_API_KEY": "key"})


def test_a_missing_script_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read script /none/such\.toml: No such file"):
        open_model("scripted:/none/such.toml")


def test_a_missing_key_is_told_when_opening() -> None:
    with pytest.raises(ConfigurationError, match="set OPENAI_API_KEY"):
        open_model("openai:gpt", environ={})


@pytest.mark.parametrize(
    ("environ", "spec"),
    [
        ({}, "offline"),
        ({"ANTHROPIC_API_KEY": ""}, "offline"),
        ({"OPENAI_API_KEY": "key"}, "offline"),
        ({"ANTHROPIC_API_KEY": "key"}, "anthropic:claude-sonnet-5-5"),
        ({"ANTHROPIC_AUTH_TOKEN": "token"}, "anthropic:claude-sonnet-5-5"),
    ],
)
def test_the_default_is_anthropics_where_a_key_is_set(environ: dict[str, str], spec: str) -> None:
    assert default_spec(environ) == spec


def test_importing_the_models_loads_no_sdk() -> None:
    modules = "anthropic, openai, prices, provider, retry, scripted, spec"
    heavy = "{'anthropic', 'openai', 'httpx2', 'tenacity', 'docker'}"
    code = f"import sys; from orchestrator.models import {modules}; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

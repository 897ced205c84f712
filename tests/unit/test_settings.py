"""The environment as settings: what is accepted, and what keeps a process from starting."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from app.settings import Settings


@pytest.mark.parametrize("value", ["", ",", " ", " , ,", "\t"])
def test_keys_that_are_set_to_nothing_do_not_open_the_server(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("BITMILL_API_KEYS", value)
    with pytest.raises(ValidationError, match="holds no key; give one or more, or unset it to run without keys"):
        Settings()


def test_keys_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITMILL_API_KEYS", "one, two ,,three,")
    assert Settings().api_keys == ("one", "two", "three")


def test_without_the_variable_there_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITMILL_API_KEYS", raising=False)
    assert Settings().api_keys == ()
    assert Settings(api_keys=()).api_keys == ()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("BITMILL_API_KEYS", ",", "BITMILL_API_KEYS: it is set but holds no key"),
        ("BITMILL_PORT", "secret-value", "BITMILL_PORT: Input should be a valid integer"),
    ],
)
def test_a_process_with_a_wrong_setting_says_which_and_ends(name: str, value: str, said: str) -> None:
    code = "from app.settings import get_settings; get_settings()"
    environment = {"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), name: value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert "secret-value" not in done.stderr
    assert "Traceback" not in done.stderr

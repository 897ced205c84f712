"""Finding methods, and what is said where the library of one is missing."""

from __future__ import annotations

import sys

import pytest

from app.domain.errors import MethodUnavailable
from workers.quantization.registry import EXTRAS, REGISTRY, load_method

LIBRARIES = {"hqq": "hqq", "autoround": "auto_round", "gptq": "gptqmodel", "bitsandbytes": "bitsandbytes"}


@pytest.mark.parametrize(("name", "library"), LIBRARIES.items())
def test_without_its_library_a_method_says_what_to_install(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in [module for module in sys.modules if module.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, library, None)  # makes its import fail
    for module in (REGISTRY[name].partition(":")[0], "workers.quantization.packed"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(MethodUnavailable) as caught:
        load_method(name)
    assert library in caught.value.message
    assert f"pip install 'bitmill[{EXTRAS.get(name, 'worker')}]'" in caught.value.message
    assert "Traceback" not in caught.value.message


def test_every_extra_that_is_named_exists() -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert {*EXTRAS.values(), "worker"} <= set(project["optional-dependencies"])
    assert set(EXTRAS) <= set(REGISTRY)

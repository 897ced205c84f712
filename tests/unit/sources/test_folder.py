from pathlib import Path

import pytest

from app.domain.errors import PathOutsideRoots
from app.settings import Settings
from tests.fakes.checkpoints import bare_checkpoint
from workers.sources.resolve import resolve


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return Settings(data_dir=tmp_path / "data", source_roots=(tmp_path / "one", tmp_path / "two"))


def _name(asked: str, settings: Settings) -> str:
    return resolve(asked, settings, lambda fraction, stage: None).name


def test_a_folder_has_one_name_however_it_is_asked_for(tmp_path: Path, settings: Settings) -> None:
    folder = bare_checkpoint(tmp_path / "two" / "family" / "llama")
    (tmp_path / "two" / "alias").symlink_to(folder)
    for asked in ("family/llama", str(folder), "./family/../family/llama", "alias"):
        assert _name(asked, settings) == "family/llama"


def test_a_folder_hidden_by_another_root_keeps_its_whole_path(tmp_path: Path, settings: Settings) -> None:
    bare_checkpoint(tmp_path / "one" / "llama")
    second = bare_checkpoint(tmp_path / "two" / "llama")
    assert _name(str(second), settings) == str(second)
    assert _name("llama", settings) == "llama"


def test_a_root_and_a_namesake_of_a_demo_keep_their_paths(tmp_path: Path, settings: Settings) -> None:
    assert _name(str(bare_checkpoint(tmp_path / "one")), settings) == str(tmp_path / "one")
    demo = bare_checkpoint(tmp_path / "two" / "demo" / "smollm2-135m-instruct")
    assert _name(str(demo), settings) == str(demo)


def test_progress_ends_at_one_and_the_source_is_described(tmp_path: Path, settings: Settings) -> None:
    bare_checkpoint(tmp_path / "one" / "llama")
    fractions: list[float] = []
    source = resolve("llama", settings, lambda fraction, stage: fractions.append(fraction))
    assert fractions[-1] == 1.0
    assert len(source.fingerprint) == 64
    assert source.checkpoint.path == source.path == tmp_path / "one" / "llama"


def test_a_folder_outside_is_refused(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(PathOutsideRoots):
        resolve(str(tmp_path), settings, lambda fraction, stage: None)

from pathlib import Path

import pytest

from app.domain.errors import PathOutsideRoots, SourceNotFound
from app.domain.model_names import parse_model_name
from app.settings import Settings
from app.storage.sources import locate_local, resolve_folder, snapshot_folder
from tests.fakes.checkpoints import bare_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return tmp_path / "one", tmp_path / "two"


@pytest.fixture
def settings(tmp_path: Path, roots: tuple[Path, Path]) -> Settings:
    return Settings(data_dir=tmp_path / "data", source_roots=roots)


def test_relative_names_are_looked_for_in_each_root_in_turn(roots: tuple[Path, Path]) -> None:
    second = bare_checkpoint(roots[1] / "llama")
    assert resolve_folder("llama", roots) == second
    first = bare_checkpoint(roots[0] / "llama")
    assert resolve_folder("llama", roots) == first


def test_absolute_names_must_lie_in_a_root(tmp_path: Path, roots: tuple[Path, Path]) -> None:
    inside = bare_checkpoint(roots[1] / "a" / "llama")
    outside = bare_checkpoint(tmp_path / "outside")
    assert resolve_folder(str(inside), roots) == inside
    with pytest.raises(PathOutsideRoots, match="BITMILL_SOURCE_ROOTS"):
        resolve_folder(str(outside), roots)
    with pytest.raises(PathOutsideRoots):
        resolve_folder(f"{roots[0]}/../outside", roots)


@pytest.mark.parametrize("name", ["../outside", "..", "a/../../outside", "link", "link/deeper"])
def test_ways_out_of_a_root_are_refused(tmp_path: Path, roots: tuple[Path, Path], name: str) -> None:
    bare_checkpoint(tmp_path / "outside" / "deeper")
    (roots[0] / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(PathOutsideRoots):
        resolve_folder(name, roots)


def test_a_root_whose_name_begins_alike_is_another_folder(tmp_path: Path, roots: tuple[Path, Path]) -> None:
    alike = bare_checkpoint(tmp_path / "one-more")
    with pytest.raises(PathOutsideRoots):
        resolve_folder(str(alike), roots)


def test_links_inside_a_root_are_followed(roots: tuple[Path, Path]) -> None:
    folder = bare_checkpoint(roots[0] / "llama")
    (roots[0] / "alias").symlink_to(folder)
    assert resolve_folder("alias", roots) == folder


def test_what_is_no_folder_is_not_found(roots: tuple[Path, Path]) -> None:
    (roots[0] / "file").touch()
    (roots[0] / "loop").symlink_to(roots[0] / "loop")
    for name in ("nothing", "file", "loop", "x" * 1000):
        assert resolve_folder(name, roots) is None


def test_a_missing_folder_names_the_roots(settings: Settings, roots: tuple[Path, Path]) -> None:
    with pytest.raises(SourceNotFound, match=str(roots[1])):
        locate_local(parse_model_name("nothing"), settings)


def test_a_folder_wins_over_the_hub(settings: Settings, roots: tuple[Path, Path]) -> None:
    name = parse_model_name("org/llama")
    assert locate_local(name, settings) is None
    folder = bare_checkpoint(roots[1] / "org" / "llama")
    assert locate_local(name, settings) == folder
    assert locate_local(parse_model_name("org/llama@main"), settings) is None


def test_a_downloaded_commit_is_local_and_a_branch_is_not(settings: Settings) -> None:
    folder = bare_checkpoint(snapshot_folder("org/llama", COMMIT, settings))
    assert locate_local(parse_model_name(f"org/llama@{COMMIT}"), settings) == folder
    assert locate_local(parse_model_name("org/llama@main"), settings) is None
    assert locate_local(parse_model_name("org/llama"), settings) is None


def test_the_demo_model_is_local_once_unpacked(settings: Settings) -> None:
    name = parse_model_name("demo/smollm2-135m-instruct")
    assert locate_local(name, settings) is None
    folder = bare_checkpoint(settings.sources_folder / "demo" / "smollm2-135m-instruct")
    assert locate_local(name, settings) == folder

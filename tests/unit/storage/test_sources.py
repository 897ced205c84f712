from pathlib import Path

import pytest

from app.domain.errors import PathOutsideRoots, SourceNotFound
from app.domain.model_names import parse_model_name
from app.settings import Settings
from app.storage.sources import locate_local, resolve_path, snapshot_folder
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
    assert resolve_path("llama", roots) == second
    first = bare_checkpoint(roots[0] / "llama")
    assert resolve_path("llama", roots) == first


def test_absolute_names_must_lie_in_a_root(tmp_path: Path, roots: tuple[Path, Path]) -> None:
    inside = bare_checkpoint(roots[1] / "a" / "llama")
    outside = bare_checkpoint(tmp_path / "outside")
    assert resolve_path(str(inside), roots) == inside
    with pytest.raises(PathOutsideRoots, match="BITMILL_SOURCE_ROOTS"):
        resolve_path(str(outside), roots)
    with pytest.raises(PathOutsideRoots):
        resolve_path(f"{roots[0]}/../outside", roots)


@pytest.mark.parametrize("name", ["../outside", "..", "a/../../outside", "link", "link/deeper"])
def test_ways_out_of_a_root_are_refused(tmp_path: Path, roots: tuple[Path, Path], name: str) -> None:
    bare_checkpoint(tmp_path / "outside" / "deeper")
    (roots[0] / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(PathOutsideRoots):
        resolve_path(name, roots)


def test_a_root_whose_name_begins_alike_is_another_folder(tmp_path: Path, roots: tuple[Path, Path]) -> None:
    alike = bare_checkpoint(tmp_path / "one-more")
    with pytest.raises(PathOutsideRoots):
        resolve_path(str(alike), roots)


def test_links_inside_a_root_are_followed(roots: tuple[Path, Path]) -> None:
    folder = bare_checkpoint(roots[0] / "llama")
    (roots[0] / "alias").symlink_to(folder)
    assert resolve_path("alias", roots) == folder


def test_what_is_no_folder_is_not_found(roots: tuple[Path, Path]) -> None:
    (roots[0] / "file").touch()
    (roots[0] / "loop").symlink_to(roots[0] / "loop")
    for name in ("nothing", "file", "loop", "x" * 1000):
        assert resolve_path(name, roots) is None


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


def test_a_gguf_file_is_found_by_its_path_and_by_its_folders(roots: tuple[Path, Path]) -> None:
    folder = roots[1] / "org" / "model"
    folder.mkdir(parents=True)
    gguf = folder / "model-Q4_K_M.gguf"
    gguf.touch()
    (folder / "README.md").touch()
    for name in ("org/model", "org/model/model-Q4_K_M.gguf", str(gguf)):
        assert resolve_path(name, roots) == gguf


def test_a_folder_stands_for_a_gguf_file_only_where_that_is_clear(tmp_path: Path, roots: tuple[Path, Path]) -> None:
    checkpoint = bare_checkpoint(roots[0] / "both")
    (checkpoint / "model.gguf").touch()
    assert resolve_path("both", roots) == checkpoint
    two = roots[0] / "two"
    two.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (two / name).touch()
    assert resolve_path("two", roots) == two
    assert resolve_path("two/b.gguf", roots) == two / "b.gguf"


def test_a_gguf_link_leads_out_of_no_root(tmp_path: Path, roots: tuple[Path, Path]) -> None:
    (tmp_path / "secret.gguf").touch()
    folder = roots[0] / "linked"
    folder.mkdir()
    (folder / "model.gguf").symlink_to(tmp_path / "secret.gguf")
    assert resolve_path("linked", roots) == folder
    with pytest.raises(PathOutsideRoots):
        resolve_path("linked/model.gguf", roots)

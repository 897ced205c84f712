from pathlib import Path

import pytest

from workers.sources.importing import import_once


def test_a_failed_import_leaves_nothing_under_the_name_and_the_next_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "sources" / "model"

    def broken(folder: Path) -> None:
        (folder / "first").write_text("1")
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        import_once(target, broken)
    assert not target.exists()
    import_once(target, lambda folder: (folder / "second").write_text("2") and None)
    assert sorted(path.name for path in target.iterdir()) == ["first", "second"]


def test_what_is_there_is_not_imported_again(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert import_once(tmp_path / "model", lambda folder: pytest.fail("imported")) == tmp_path / "model"


def test_an_import_is_readable_by_other_users(tmp_path: Path) -> None:
    def private(folder: Path) -> None:
        (folder / "weights").touch(mode=0o600)

    path = import_once(tmp_path / "model", private)
    assert path.stat().st_mode & 0o777 == 0o755
    assert (path / "weights").stat().st_mode & 0o777 == 0o644

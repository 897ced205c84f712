import pytest

from app.domain.errors import InvalidModelName, SourceNotFound
from app.domain.model_names import DEMO_MODELS, ModelName, SourceKind, parse_model_name


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("org/name", "org/name", None),
        ("HuggingFaceTB/SmolLM2-1.7B_v0.1", "HuggingFaceTB/SmolLM2-1.7B_v0.1", None),
        ("org/name@main", "org/name", "main"),
        ("org/name@refs/pr/12", "org/name", "refs/pr/12"),
    ],
)
def test_hub_names_carry_their_repository_and_revision(text: str, repo: str, revision: str | None) -> None:
    assert parse_model_name(text) == ModelName(SourceKind.HUB, text, repo=repo, revision=revision)


@pytest.mark.parametrize(
    "text",
    ["/models/llama", "llama", "a/b/c", "../llama", "org/..", "../..", "my models/x", "org/a--b", "./org/x"],
)
def test_other_texts_are_folders(text: str) -> None:
    assert parse_model_name(text) == ModelName(SourceKind.FOLDER, text)


def test_only_a_full_commit_hash_is_a_commit() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert parse_model_name(f"org/name@{commit}").commit == commit
    assert parse_model_name(f"org/name@{commit[:7]}").commit is None
    assert parse_model_name("org/name").commit is None


def test_demo_models_are_known_by_name() -> None:
    name = next(iter(DEMO_MODELS))
    assert parse_model_name(name) == ModelName(SourceKind.DEMO, name)


def test_an_unknown_demo_model_lists_those_that_exist() -> None:
    with pytest.raises(SourceNotFound, match="demo/smollm2-135m-instruct"):
        parse_model_name("demo/gpt-9")


@pytest.mark.parametrize(
    "text",
    ["", " ", " org/name", "org/name\n", "a\0b", "x" * 1025, "org/name@", "org/name@a..b", "org/name@a b"],
)
def test_what_cannot_be_a_name_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(InvalidModelName) as caught:
        parse_model_name(text)
    assert caught.value.param == "model"


def test_an_uploads_id_is_a_model_name() -> None:
    name = "file-0123456789abcdef01234567"
    assert parse_model_name(name) == ModelName(SourceKind.FILE, name)


@pytest.mark.parametrize("text", ["file-0123", "file-0123456789ABCDEF01234567", "./file-0123456789abcdef01234567"])
def test_what_only_looks_like_an_uploads_id_is_a_folder(text: str) -> None:
    assert parse_model_name(text) == ModelName(SourceKind.FOLDER, text)

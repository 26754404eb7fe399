"""Which models and norms are found, and what is said of those that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import SmallWorld

from groundray.analysis.inputs.catalog import Models, Norms
from groundray.model import export


def exported(folder: Path, *streams: str) -> str:
    """Create a folder that looks like an exported model with these language streams."""
    for name in (*streams, "stages"):
        (folder / name).mkdir(parents=True)
    about = {"format": export.FORMAT, "settings": {}, "stages": [], "vocabulary": {}}
    (folder / export.ABOUT).write_text(json.dumps(about))
    return str(folder)


def test_the_controls_of_an_export_come_first_in_their_order(tmp_path: Path) -> None:
    model = exported(
        tmp_path, "language", "language-relational", "language-ungrounded", "language-grounded", "language-visual"
    )
    found = Models.of(f"{model}/", ["bert=models/bert", "text-only=runs/other/model/language-text-only"])
    assert found.sources == {
        "ungrounded": f"{model}/language-ungrounded",
        "text-only": "runs/other/model/language-text-only",
        "grounded": f"{model}/language-grounded",
        "relational": f"{model}/language-relational",
        "visual": f"{model}/language-visual",
        "bert": "models/bert",
    }
    assert list(found.sources)[:4] == ["ungrounded", "text-only", "grounded", "relational"]
    assert found.notes == ()


def test_a_missing_control_is_named_with_how_to_get_it(tmp_path: Path) -> None:
    found = Models.of(exported(tmp_path, "language-ungrounded", "language-grounded"), [])
    text_only, relational = found.notes
    assert text_only.startswith("no text-only control: train stage language on the same captions")
    assert "--model text-only=FOLDER" in text_only
    assert relational.startswith("no relational control: train stage relational")
    assert Models.of(None, ["minilm=minilm"]).notes == ()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ([], "expected --checkpoint DIR, a run's model/ folder, or --model NAME=FOLDER"),
        (["minilm"], "expected NAME=FOLDER such as bert=models/bert, got 'minilm'"),
        (["=x"], "expected NAME=FOLDER"),
        (["a/b=x"], r"expected a name of letters, digits, spaces and _ \. \+ -, .*, got 'a/b': give x another"),
        (["a b=x", "a+b=y"], r"a b is x already, whose pictures and metrics .* of a\+b: give y another name"),
        (["a=x", "a=y"], "a is x already: give y another name"),
    ],
)
def test_models_that_cannot_be_named(named: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Models.of(None, named)


def test_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give a finished run's model/ folder"):
        Models.of(str(tmp_path), [])


def test_norms_of_the_embedded_world(world: SmallWorld) -> None:
    folder = str(world.source / "norms")
    found = Norms.at(folder)
    assert found == Norms(
        f"{folder}/concreteness.csv",
        f"{folder}/categories.csv",
        f"{folder}/features.csv",
        f"{folder}/composition.csv",
        None,
        {name: f"{folder}/category_sets/{name}.csv" for name in ("kind", "outline", "warmth")},
        looked_for=f"in {folder}",
    )
    single = [f"{folder}/{name}.csv" for name in ("concreteness", "categories", "features", "composition")]
    assert found.paths == [*single, *(f"{folder}/category_sets/{name}.csv" for name in ("kind", "outline", "warmth"))]


def test_sets_of_categories_are_found_by_name(tmp_path: Path) -> None:
    for name in ("looks.tsv", "mine/use.csv", "README.txt", ".looks.csv", "notes.md"):
        (tmp_path / "category_sets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "category_sets" / name).write_text("x")
    found = Norms.at(str(tmp_path))
    folder = f"{tmp_path}/category_sets"
    assert found.category_sets == {"looks": f"{folder}/looks.tsv", "use": f"{folder}/mine/use.csv"}
    assert found.passed_over == (
        "category_sets/.looks.csv: not read, it is hidden",
        "category_sets/README.txt: not read, expected .csv, .tsv, .txt, .tab, .dat",
        "category_sets/notes.md: not read, expected .csv, .tsv, .txt, .tab, .dat",
    )


def test_norms_as_they_are_published(tmp_path: Path) -> None:
    for name in ("semcat/animal-2.txt", "semcat100.csv", "similarity/EN-RG-65.txt", "similarity/README", "other.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = Norms.at(f"{tmp_path}/")
    assert found.categories == f"{tmp_path}/semcat100.csv"
    assert found.pairs == {"EN-RG-65": f"{tmp_path}/similarity/EN-RG-65.txt"}
    semcat, other, readme = found.passed_over
    assert other.startswith("other.csv: not read, expected concreteness.csv, ")
    assert semcat == "semcat: not read, semcat100.csv is read instead"
    assert (
        readme == "similarity/README: not read, expected .csv, .tsv, .txt, .tab, .dat, .full, .dev, .test or no ending"
    )
    (tmp_path / "semcat100.csv").unlink()
    assert Norms.at(str(tmp_path)).categories == f"{tmp_path}/semcat"
    assert found.concreteness is None


def test_ratings_are_found_with_their_groups(tmp_path: Path) -> None:
    (tmp_path / "ratings").mkdir()
    for name in ("binder2016.tsv", "glasgow.csv", "groups.csv", "notes.pdf"):
        (tmp_path / "ratings" / name).write_text("x")
    found = Norms.at(str(tmp_path))
    folder = f"{tmp_path}/ratings"
    assert found.ratings == {"binder2016": f"{folder}/binder2016.tsv", "glasgow": f"{folder}/glasgow.csv"}
    assert found.rating_groups == f"{folder}/groups.csv"
    assert found.paths == [f"{folder}/groups.csv", f"{folder}/binder2016.tsv", f"{folder}/glasgow.csv"]
    assert found.passed_over[0].startswith("ratings/notes.pdf: not read")
    assert "ratings" in found.found
    given = found.with_files(ratings=["mine.csv"], rating_groups="other.csv")
    assert (given.ratings, given.rating_groups) == ({"mine": "mine.csv"}, "other.csv")
    assert "ratings" not in given.found
    assert "pairs" in given.found


def test_analogies_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "analogies").mkdir()
    (tmp_path / "analogies" / "questions-words.txt").write_text("x")
    found = Norms.at(str(tmp_path))
    assert found.analogies == {"questions-words": f"{tmp_path}/analogies/questions-words.txt"}
    assert found.paths == [f"{tmp_path}/analogies/questions-words.txt"]
    assert found.with_files(analogies=["visual.csv"]).analogies == {"visual": "visual.csv"}


def test_single_files_take_the_place_of_the_folders(tmp_path: Path) -> None:
    (tmp_path / "features.csv").write_text("x")
    found = Norms.at(str(tmp_path)).with_files(categories="mine.csv", pairs=["sets/men.csv", "rg"])
    assert found.features == f"{tmp_path}/features.csv"
    assert found.categories == "mine.csv"
    assert found.pairs == {"men": "sets/men.csv", "rg": "rg"}


@pytest.mark.parametrize("name", ["nothing", "other"])
def test_a_folder_without_norms(tmp_path: Path, name: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"expected norms in .*, one of concreteness.csv, categories.csv"):
        Norms.at(str(tmp_path / name))


def test_files_of_other_endings_and_of_folders_are_found(tmp_path: Path) -> None:
    names = (
        "concreteness.tsv",
        "similarity/MEN_dataset_natural_form_full",
        "similarity/MEN/MEN_dataset_lemma_form.dev",
        "similarity/MEN/MEN_dataset_lemma_form.test",
        "similarity/SimLex-999/SimLex-999.txt",
        "similarity/SimLex-999/README.txt",
        "similarity/ws353.csv",
        "similarity/._ws353.csv",
        "similarity/men.pdf",
        "similarity/old/rg.txt",
        "similarity/new/rg.txt",
        ".DS_Store",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = Norms.at(str(tmp_path))
    assert found.concreteness == f"{tmp_path}/concreteness.tsv"
    assert {name: file.removeprefix(f"{tmp_path}/similarity/") for name, file in (found.pairs or {}).items()} == {
        "MEN_dataset_natural_form_full": "MEN_dataset_natural_form_full",
        "MEN_dataset_lemma_form.dev": "MEN/MEN_dataset_lemma_form.dev",
        "MEN_dataset_lemma_form.test": "MEN/MEN_dataset_lemma_form.test",
        "SimLex-999": "SimLex-999/SimLex-999.txt",
        "ws353": "ws353.csv",
        "new/rg.txt": "new/rg.txt",
        "old/rg.txt": "old/rg.txt",
    }
    assert [line.partition(":")[0] for line in found.passed_over] == [
        ".DS_Store", "similarity/._ws353.csv", "similarity/SimLex-999/README.txt", "similarity/men.pdf",
    ]  # fmt: skip


def test_single_files_of_one_name_are_all_kept() -> None:
    found = Norms().with_files(pairs=["a/rg.txt", "b/rg.txt", "b/men.csv"])
    assert found.pairs == {"a/rg.txt": "a/rg.txt", "b/rg.txt": "b/rg.txt", "men": "b/men.csv"}

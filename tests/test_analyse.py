"""`python -m groundray.analyse` of words, and the analysis at the end of a run, from the command line."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import SmallWorld
from made_up import MODELS, analyses
from rich.console import Console

from groundray import analyse, config, train
from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.report import terminal
from groundray.analysis.report.document import Report
from groundray.analysis.request import AnalysisRequest
from groundray.cli import reports
from groundray.model import export
from groundray.storage.folder import Folder
from groundray.training import preflight, progression
from groundray.training.worker import InProcess


@pytest.fixture(scope="module")
def model(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("analysed")
    words = world.settings(f"--run.storage={storage}", "--grounding.epochs=1", stages="language,grounding")
    progression.run_stages(preflight.check(config.load("demo", words)), InProcess(lambda _: None))
    return storage / "demo" / "model"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def few(world: SmallWorld, tmp_path: Path) -> Path:
    """A folder with features only, which are quick to analyse."""
    (tmp_path / "few").mkdir()
    shutil.copy(world.source / "norms" / "features.csv", tmp_path / "few")
    return tmp_path / "few"


def read(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text(), parse_constant=pytest.fail)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print tables in full: pytest-xdist sets COLUMNS to 80."""
    monkeypatch.setenv("COLUMNS", "160")


@pytest.mark.thorough
def test_all_makes_every_analysis_that_has_data(
    world: SmallWorld, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "similarity").mkdir()
    shutil.copytree(world.source / "norms", tmp_path, dirs_exist_ok=True)
    (tmp_path / "similarity" / "pairs.txt").write_text("red\torange\t8\nred\tidea\t1\ncircle\tring\t7\nhope\tblue\t0\n")
    (tmp_path / "ratings").mkdir()
    concreteness = (tmp_path / "concreteness.csv").read_text().splitlines()
    (tmp_path / "ratings" / "own.csv").write_text("\n".join(",".join(row.split(",")[:2]) for row in concreteness[:40]))
    (tmp_path / "analogies").mkdir()
    (tmp_path / "analogies" / "own.txt").write_text(": colours\nred orange blue green\nred orange circle ring\n")
    words = ["all", "--checkpoint", str(model), "--norms", str(tmp_path), "--out", str(tmp_path / "report")]
    assert analyse.main([*words, "--model", f"again={model / 'language'}", "--json", str(tmp_path / "all.json")]) == 0
    found = read(tmp_path / "all.json")
    assert list(found["models"]) == ["ungrounded", "text-only", "grounded", "again"]
    assert list(found["analyses"]) == [
        "axes",
        "norms",
        "categories",
        "composition",
        "composition_through_images",
        "similarity",
        "ratings",
        "analogies",
        "retrieval",
    ]
    assert found["skipped"] == {"relations": "the model has no stage relational: it was trained in language, grounding"}
    # the world's own norms are all read
    assert found["notes"] == [
        "no relational control: train stage relational after grounding, or give one with --model relational=FOLDER"
    ]
    files = found["analyses"]["axes"]["tables"][-1]
    assert files["title"] == "Files read"
    assert [row[:4] for row in files["rows"]] == [
        ["categories.csv", 74, 74, "nothing"],
        ["concreteness.csv", 74, 74, "nothing"],
    ]
    files = found["analyses"]["categories"]["tables"][-1]
    assert [row[0] for row in files["rows"]] == ["categories.csv", "kind.csv", "outline.csv", "warmth.csv"]
    medians = ["kind/silhouette/rest/median", "outline/silhouette/rest/median", "warmth/silhouette/nearest/median"]
    assert set(medians) < set(found["analyses"]["categories"]["measures"])
    for analysis in ("axes", "norms", "categories", "composition", "similarity", "ratings", "analogies"):
        for measure in found["analyses"][analysis]["measures"].values():
            assert measure["values"]["again"] == measure["values"]["grounded"], measure["name"]
    measure = found["analyses"]["axes"]["measures"]["pc1/words/pearson"]
    assert measure["published"] == {"ungrounded": 0.104, "grounded": 0.6615, "relational": 0.6948}
    assert len(measure["differences"]) == 6
    ways = ("text_to_image", "image_to_text")
    assert list(found["analyses"]["retrieval"]["measures"]) == [
        *(f"grounding/{way}/recall_at_10" for way in ways),  # first captions
        *(f"published/{way}/recall_at_{k}" for way in ways for k in (1, 5, 10)),
        "published/rsum",
        *(f"published/{way}/median_rank" for way in ways),
    ]
    written = Folder.at(tmp_path / "report").read_sealed("report.json")
    own = set(written.pop("files")) | {"report.json", "report.html"}
    assert set(Folder.at(tmp_path / "report").files()) == own
    assert written == found
    assert (tmp_path / "report" / "report.html").stat().st_size > 100_000
    assert (tmp_path / "report" / "axes-measures.png").exists()
    shown = capsys.readouterr().out
    for text in (
        "axes  PC1 and concreteness, words: Pearson r",
        "relations  not made: ",
        "note  no relational control",
    ):
        assert text in shown


@pytest.mark.thorough
def test_results_are_equal_byte_for_byte_when_repeated(
    world: SmallWorld, model: Path, tmp_path: Path, few: Path
) -> None:
    for out in ("one", "other"):  # each with a cache of its own
        words = ["--checkpoint", str(model), "--cache", str(tmp_path / f"cache-{out}")]
        for name in ("axes", "categories"):
            norms = ["--norms", str(world.source / "norms")]
            assert analyse.main([name, *words, *norms, "--json", str(tmp_path / f"{name}-{out}.json")]) == 0
        assert analyse.main(["all", *words, "--norms", str(few), "--out", str(tmp_path / out)]) == 0
    for name in ("axes", "categories"):
        assert (tmp_path / f"{name}-one.json").read_bytes() == (tmp_path / f"{name}-other.json").read_bytes()
    found = (file for file in (tmp_path / "one").rglob("*") if file.is_file())
    names = sorted(str(file.relative_to(tmp_path / "one")) for file in found)
    assert {"report.html", "report.json", "norms-f1.png", "tables/norms-measures.csv"} <= set(names)
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


@pytest.mark.thorough
def test_unreadable_norms_are_named_and_other_analyses_made(
    world: SmallWorld, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "norms").mkdir()
    for name in ("features.csv", "categories.csv"):
        shutil.copy(world.source / "norms" / name, tmp_path / "norms")
    with (tmp_path / "norms" / "features.csv").open("a") as file:
        file.write("circle,is odd,many,visual\n")
    line = (tmp_path / "norms" / "features.csv").read_text().count("\n")
    words = ["--checkpoint", str(model), "--norms", str(tmp_path / "norms"), "--json", str(tmp_path / "all.json")]
    assert analyse.main(["all", *words, "--out", str(tmp_path / "report")]) == 1
    found = read(tmp_path / "all.json")
    assert f"features.csv line {line}: expected a number" in found["skipped"]["norms"]
    assert {"axes", "categories", "retrieval"} <= found["analyses"].keys()
    capsys.readouterr()
    assert analyse.main(["norms", *words]) == 2
    assert f"features.csv line {line}" in capsys.readouterr().err


def test_one_analysis_prints_tables_and_writes_no_report(
    world: SmallWorld, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(model), "--norms", str(world.source / "norms"), "--json", str(tmp_path / "found.json")]
    assert analyse.main(["composition", *words]) == 0
    shown = capsys.readouterr().out
    assert "Rank of each target" in shown
    assert "striped circle" in shown
    assert list(read(tmp_path / "found.json")["analyses"]) == ["composition", "composition_through_images"]
    assert not (model.parent / "analysis").exists()
    assert analyse.main(["axes", *words, "--components", "2", "--out", str(tmp_path / "axes")]) == 0
    assert (tmp_path / "axes" / "report.html").exists()
    assert "pc2/words/pearson" in read(tmp_path / "found.json")["analyses"]["axes"]["measures"]


@pytest.mark.thorough
def test_a_phrase_has_a_picture_with_the_images_that_are_given(world: SmallWorld, model: Path, tmp_path: Path) -> None:
    words = ["--checkpoint", str(model), "--norms", str(world.source / "norms"), "--out", str(tmp_path)]
    assert analyse.main(["composition", *words, "--images", str(world.shards / "captions" / "val")]) == 0
    drawn = sorted(file.name for file in tmp_path.glob("composition-0*.png"))
    assert drawn[0] == "composition-01-striped_circle.png"
    assert len(drawn) == 6
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64") == 6 * 5
    assert "composition_through_images" in read(tmp_path / "report.json")["analyses"]


def test_a_report_replaces_all_of_another_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("sun 1 0\nmoon 1 1\nice 0 1\nsea 1 2\nsnow 0 2\n")
    (tmp_path / "pairs.csv").write_text("word1,word2,score\nsun,moon,3\nsun,ice,1\nice,snow,6\nsea,snow,2\n")
    (tmp_path / "sets.csv").write_text("category,word\nhot,sun\nhot,moon\ncold,ice\ncold,snow\ncold,sea\n")
    out, model = tmp_path / "report", f"--model=v={tmp_path}/v.txt"
    assert analyse.main(["similarity", model, f"--pairs={tmp_path}/pairs.csv", f"--out={out}"]) == 0
    for name in ("notes.txt", "tables/mine.csv"):
        (out / name).write_text("mine")
    first = {str(file.relative_to(out)) for file in out.rglob("*.*")}
    assert analyse.main(["categories", model, f"--categories={tmp_path}/sets.csv", f"--out={out}"]) == 0
    second = {str(file.relative_to(out)) for file in out.rglob("*.*")}
    assert first & second == {"notes.txt", "tables/mine.csv", "report.html", "report.json"}
    assert any(name.startswith("tables/categories") for name in second)


@pytest.mark.thorough
def test_options_change_the_measures(world: SmallWorld, model: Path, tmp_path: Path) -> None:
    def found(*words: str) -> Any:
        name = words[0]
        norms = ["--checkpoint", str(model), "--norms", str(world.source / "norms")]
        assert analyse.main([name, *norms, *words[1:], "--json", str(tmp_path / "found.json")]) == 0
        return read(tmp_path / "found.json")["analyses"][name]["measures"]

    pool = tmp_path / "pool.txt"
    pool.write_text("circle\nsquare\nred\nidea\nhope\nblue\nstar\n")
    base = found("axes")
    for words in (["--special-tokens"], ["--layer", "0"], ["--template", "a {} thing"], ["--fit-on", str(pool)]):
        assert found("axes", *words)["pc1/words/pearson"]["values"] != base["pc1/words/pearson"]["values"], words
    assert found("norms", "--class-weight", "balanced") != found("norms")
    assert found("composition", "--vocabulary", str(pool)) != found("composition")

    def features(*words: str) -> int:
        found("norms", *words)
        return len(read(tmp_path / "found.json")["analyses"]["norms"]["tables"][0]["rows"])

    assert features("--folds", "2") > features() > features("--min-people", "11")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["axes"], "expected --checkpoint DIR, a run's model/ folder, or --model NAME=FOLDER"),
        (
            ["axes", "--model", "a=MODEL/language"],
            "semcat/ was given, nor a folder of norms (--norms DIR)",
        ),
        (["similarity", "--checkpoint", "MODEL"], "no similarity/ with word pairs in"),
        (["similarity", "--checkpoint", "MODEL"], "norms: give --pairs FILE"),
        (["ratings", "--checkpoint", "MODEL"], "norms: give --ratings FILE"),
        (["norms", "--checkpoint", "MODEL", "--norms", "NOWHERE"], "expected norms in NOWHERE"),
        (["axes", "--checkpoint", "MODEL", "--layer", "9"], "layer: expected 0 to 2"),
        (["axes", "--checkpoint", "MODEL", "--components", "0"], "expected 1 to 73 axes of vectors (74, 128), got 0"),
        (["all", "--model", "a=MODEL/language", "--track"], "--track: expected --checkpoint DIR"),
        (["composition", "--checkpoint", "MODEL", "--images", "NOWHERE"], "expected shards at"),
        (["composition", "--checkpoint", "MODEL", "--batch-size", "0"], "--batch-size: expected at least 1, got 0"),
        (["axes", "--model", "a=NOWHERE", "--checkpoint", "MODEL"], "cannot load a language model from NOWHERE"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(
    model: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyse.main([word.replace("MODEL", str(model)) for word in words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("width", "intervals", "published"), [(70, False, False), (130, False, True), (200, True, True)]
)
def test_a_table_shows_what_fits_the_width(width: int, intervals: bool, published: bool) -> None:
    made = Report("demo", dict.fromkeys(MODELS, ""), analyses())
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, highlight=False)
    console.print(terminal.comparison(made, console, short=False))
    shown = file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert ("[0.350, 0.440]" in shown) == intervals
    assert ("0.104 / 0.661 / 0.695" in shown) == published
    assert "…" not in shown


def test_at_80_columns_a_measure_takes_one_line() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, markup=False, highlight=False)
    console.print(terminal.comparison(Report("demo", dict.fromkeys(MODELS, ""), analyses()), console, short=False))
    assert re.search(r"PC1 and concreteness, words: Spearman rho +52 +0.200 +0.350 +0.500 +0.650", file.getvalue())


# the end of a run


def trained(world: SmallWorld, *words: str) -> list[str]:
    return [
        "--config",
        "demo",
        *world.settings("--scaling.num_workers=0", "--grounding.epochs=1", stages="language,grounding"),
        "--analysis.enabled=true",
        *words,
    ]


@pytest.mark.thorough
@pytest.mark.usefixtures("uri")
def test_a_finished_run_is_analysed_once(
    world: SmallWorld, tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = trained(world, "--tracking.enabled=true", f"--analysis.norms={few}")
    assert train.main(words) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "F1 of all features: median" in shown.out
    assert f"report  {tmp_path}/runs/demo/analysis/report.html" in shown.out
    report = tmp_path / "runs" / "demo" / "analysis" / "report.json"
    found = read(report)
    assert set(found["analyses"]) == {"norms", "retrieval"}
    assert set(found["models"]) == {"ungrounded", "text-only", "grounded"}
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("groundray")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    value = found["analyses"]["norms"]["measures"]["f1/all/median"]["values"]["grounded"]["value"]
    assert logged.data.metrics["analysis/norms/f1/all/median/grounded"] == pytest.approx(value)
    files = {file.path for file in client.list_artifacts(logged.info.run_id, "analysis")}
    assert {"analysis/report.html", "analysis/report.json", "analysis/norms-measures.png"} <= files

    before = report.stat().st_mtime_ns
    assert train.main(words) == 0
    assert "analysis  exists already" in capsys.readouterr().out
    assert report.stat().st_mtime_ns == before
    with (few / "features.csv").open("a") as file:
        file.write("circle,is new,5,visual\n")
    assert train.main(words) == 0  # with other norms it is another
    assert report.stat().st_mtime_ns > before

    report.unlink()
    assert analyse.main(["all", "--checkpoint", "runs/demo/model", "--track"]) == 0  # with the run's own norms
    assert set(read(report)["analyses"]) == {"norms", "retrieval"}
    assert len(client.search_runs([experiment.experiment_id])) == 1


@pytest.mark.thorough
def test_a_failed_analysis_leaves_the_run_complete(
    world: SmallWorld, tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no room")

    words = trained(world, f"--run.storage={tmp_path}", f"--analysis.norms={few}")
    monkeypatch.setattr(reports, "make_report", broken)
    assert train.main(words) == 0
    shown = capsys.readouterr().err
    assert "analysis failed, the run itself is complete: RuntimeError: no room" in shown
    assert f"by hand: python -m groundray.analyse all --checkpoint {tmp_path}/demo/model --norms {few}\n" in shown
    assert (tmp_path / "demo" / "result.json").exists()
    monkeypatch.undo()
    assert train.main(words) == 0  # the same command makes it
    assert (tmp_path / "demo" / "analysis" / "report.html").exists()


def test_missing_norms_fail_before_training_starts(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = trained(world, f"--run.storage={tmp_path}/runs", f"--analysis.norms={tmp_path}/nowhere")
    assert train.main(words) == 2
    assert f"analysis.norms: expected norms in {tmp_path}/nowhere" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert train.main([*words, "--dry-run"]) == 2
    assert f"problem   analysis.norms: expected norms in {tmp_path}/nowhere" in capsys.readouterr().out
    (tmp_path / "nowhere" / "similarity").mkdir(parents=True)
    for name in ("concreteness.csv", "similarity/simlex.xlsx"):
        (tmp_path / "nowhere" / name).write_text("x")
    assert train.main([*words, "--dry-run"]) == 0
    assert "\n  similarity/simlex.xlsx: not read, expected .csv, " in capsys.readouterr().out


def test_words_to_fit_axes_on_are_a_setting_of_the_run(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_text("circle\nsquare\n")
    settings = config.load("demo", [f"--analysis.norms={few}", f"--analysis.fit_on={pool}"])
    assert reports.norms_problem(settings) is None
    monkeypatch.setattr(export, "about", lambda _: export.About(settings.model_dump(mode="json"), ()))
    assert AnalysisRequest("model").resolved().fit_on == str(pool)
    assert AnalysisRequest("model", fit_on="other.txt").resolved().fit_on == "other.txt"
    assert AnalysisRequest("model", norms=Norms()).resolved().fit_on == str(pool)
    rows = config.load("demo", [f"--analysis.norms={few}", "--analysis.fit_on=rows"])
    assert reports.norms_problem(rows) is None  # a choice of the categories' words, not a file
    assert rows.absolute().analysis.fit_on == "rows"
    assert "rows" not in AnalysisRequest(fit_on="rows").made_of()
    request = AnalysisRequest(fit_on=str(pool))
    before = request.made_of()
    pool.write_text("circle\nsquare\nred\n")
    assert request.made_of() != before  # the report is made again
    pool.unlink()
    problem = reports.norms_problem(settings)
    assert problem is not None
    assert problem.startswith("analysis.fit_on: ")
    assert str(pool) in problem

"""Usual matches in a pool, against each match by itself; and which words are said to be in a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from groundray.image_search import calibration
from groundray.image_search.calibration import (
    Calibration,
    best_matches,
    explain,
    measure,
    sample_rows,
    sample_words,
    thresholds,
    valley,
)
from groundray.image_search.explain import GroundingMatcher, WordFeatures
from groundray.image_search.index import Index
from groundray.image_search.service import Service


def opened(service: Service) -> Calibration:
    assert service.calibration is not None
    return service.calibration


@pytest.mark.thorough
def test_the_scale_is_that_of_random_words_on_the_pool(service: Service) -> None:
    """The pool's 20 images are all in the sample."""
    assert service.matcher is not None
    index, matcher = service.search.index, service.matcher
    words = sample_words(service.search.towers.backend)
    matches = np.array(
        [
            [word.map for text in words for word in matcher.match(text, matcher.decode(picture)).words]
            for picture in picked(index)
        ]
    )
    found = opened(service)
    assert found.low == pytest.approx(np.quantile(matches, 0.95), abs=2e-3)  # features are kept in float16
    assert found.high == pytest.approx(np.quantile(matches.max(axis=(2, 3)), 0.99), abs=2e-3)


def picked(index: Index) -> list[bytes]:
    return [index.pictures[row] for row in range(20)]


def test_a_word_is_compared_with_its_own_matches_on_the_pool(service: Service) -> None:
    """Each image's best match by itself; repeated words, pieces, punctuation and letters have one each."""
    assert service.matcher is not None
    matcher, text = service.matcher, "a red ox, red x!"
    maps = [matcher.match(text, matcher.decode(picture)).words for picture in picked(service.search.index)]
    best = np.array([[word.score for word in words] for words in maps])
    for row, picture in enumerate(picked(service.search.index)[:4]):
        match, told = explain(matcher, opened(service), text, matcher.decode(picture))
        assert [word.text for word in match.words] == ["a", "red", "ox", ",", "red", "x", "!"]
        assert match.mean == pytest.approx(best[row].mean(), abs=1e-6)
        for column, one in enumerate(told):
            lower = np.count_nonzero(best[:, column] < best[row, column] - 2e-3)
            upper = np.count_nonzero(best[:, column] < best[row, column] + 2e-3)
            assert 5 * lower - 1e-6 <= one.percentile <= 5 * upper + 1e-6  # of 20 images
            if one.absent_below is None or one.present_from is None:
                assert one.presence == "unclear"
                continue
            assert match.words[column].text.isalnum()
            score = best[row, column]
            expected = "absent" if score < one.absent_below else "present" if score >= one.present_from else "unclear"
            assert one.presence == expected


def test_best_matches_are_those_of_each_position() -> None:
    random = np.random.default_rng(0)
    positions, words = (random.standard_normal(shape).astype(np.float32) for shape in ((5, 9, 4), (3, 4)))
    expected = [[max(float(position @ word) for position in image) for word in words] for image in positions]
    np.testing.assert_allclose(best_matches(positions, words), expected, rtol=1e-5)


def test_the_valley_leaves_the_least_variance_in_both_groups() -> None:
    values = np.random.default_rng(0).normal([0.0, 3.0], 0.5, (40, 2)).ravel()
    ordered = np.sort(values)
    within = [ordered[:cut].var() * cut + ordered[cut:].var() * (80 - cut) for cut in range(1, 80)]
    cut = int(np.argmin(within)) + 1
    assert valley(values) == pytest.approx(ordered[cut - 1 : cut + 1].mean())
    assert valley(np.array([2.0])) == 2


@pytest.mark.parametrize(("shown", "false_alarms", "false_absences"), [(0.0, 0.09, 1.0), (0.2, 0.09, 0.02)])
def test_few_images_are_misjudged_where_matches_are_normal(
    shown: float, false_alarms: float, false_absences: float
) -> None:
    """Best matches of 200 words on images without them, and four deviations higher on those that show them."""
    random = np.random.default_rng(0)
    has = random.random((1256, 200)) < shown
    best = random.standard_normal((1256, 200)) + 4 * has
    absent, present = thresholds(best[:256])
    fresh, has = best[256:], has[256:]
    assert (fresh >= present)[~has].mean() <= false_alarms
    assert (fresh < absent)[~has].mean() >= 0.4
    if shown:
        assert (fresh < absent)[has].mean() <= false_absences
        assert (fresh >= present)[has].mean() >= 0.8


def test_a_word_of_most_images_is_absent_where_it_is_missing() -> None:
    random = np.random.default_rng(0)
    has = random.random((1256, 50)) < 0.7
    best = random.standard_normal((1256, 50)) + 6 * has
    absent, _ = thresholds(best[:256])
    assert (best[256:] < absent)[~has[256:]].mean() >= 0.97
    assert (best[256:] < absent)[has[256:]].mean() <= 0.03


def test_a_word_that_matches_all_images_alike_is_unclear() -> None:
    positions = np.zeros((30, 1, 2), np.float32)
    positions[:, 0, 0], positions[:, 0, 1] = np.linspace(0, 1, 30), 0.5
    judged = Calibration(0.0, 1.0, positions).judge(np.eye(2, dtype=np.float32), np.array([0.1, 0.5]))
    assert [one.presence for one in judged] == ["absent", "unclear"]
    assert judged[0].percentile == pytest.approx(10)
    assert (judged[1].absent_below, judged[1].present_from) == (None, None)
    (one,) = Calibration(0.0, 1.0, positions[:19]).judge(np.eye(2, dtype=np.float32)[:1], np.array([0.1]))
    assert one.presence == "unclear"  # too few images


def test_nothing_is_said_of_a_word_that_by_itself_says_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, asked = {"of": [0.0, 1.0], "star": [1.0, 0.0], "!": [1.0, 0.0]}, list[str]()

    def read(_: object, text: str) -> WordFeatures:
        asked.append(text)
        return WordFeatures(((0, len(text)),), np.array([features[text]], np.float32))

    monkeypatch.setattr(GroundingMatcher, "word_features", read)
    assert service.matcher is not None
    positions = np.zeros((30, 1, 2), np.float32)
    positions[:, 0, 0], positions[:, 0, 1] = np.linspace(0, 1, 30), 0.5
    found = Calibration(0.0, 1.0, positions)
    for _ in range(2):
        assert [found.says_something(service.matcher, word) for word in features] == [False, True, False]
    assert asked == ["of", "star"]  # each once


def test_it_is_made_once_and_again_when_it_is_damaged(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    matcher, search = service.matcher, service.search
    assert matcher is not None
    made: list[int] = []
    read_rows = calibration.read_rows
    monkeypatch.setattr(calibration, "read_rows", lambda *inputs: (made.append(1), read_rows(*inputs))[1])
    told: list[str] = []
    first = Calibration.open(matcher, search.towers, search.index, told.append)
    assert not made
    (name,) = [name for name in search.index.folder.names() if name.startswith("matches-") and name.endswith(".bin")]
    file = Path(search.index.folder.locate(name))
    file.write_bytes(b"x" + file.read_bytes()[1:])
    again = Calibration.open(matcher, search.towers, search.index, told.append)
    assert (len(made), len(told)) == (1, 1)
    assert (again.low, again.high) == (first.low, first.high)
    np.testing.assert_array_equal(again.positions, first.positions)


def test_a_folder_that_cannot_be_written_to_is_no_hindrance(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Calibration:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(calibration, "made_once", refuse)
    told: list[str] = []
    assert service.matcher is not None
    found = Calibration.open(service.matcher, service.search.towers, service.search.index, told.append)
    assert found.low == pytest.approx(opened(service).low, abs=1e-6)
    assert len(told) == 1


def test_the_sample_is_bounded_and_fixed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    images = service.search.index.images
    assert sorted(sample_rows(images.group_sizes).tolist()) == list(range(20))
    monkeypatch.setattr(calibration, "IMAGES", 7)
    rows = sample_rows(images.group_sizes)
    assert len(set(rows.tolist())) == 7
    np.testing.assert_array_equal(rows, sample_rows(images.group_sizes))
    assert service.matcher is not None
    monkeypatch.setattr(calibration, "BATCH", 2)
    monkeypatch.setattr(calibration, "MAX_NUMBERS", 3 * opened(service).positions[0].size)
    assert len(measure(service.matcher, service.search.towers.backend, images).positions) == 3


def test_few_row_groups_are_read() -> None:
    """The pool has a thousand row groups of 5 images each."""
    rows = sample_rows(np.full(1000, 5))
    assert len(set(rows.tolist())) == 256
    assert len({row // 5 for row in rows.tolist()}) <= calibration.ROW_GROUPS

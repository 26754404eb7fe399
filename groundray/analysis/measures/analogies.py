"""Analogies, a : b :: c : ?, answered from the directions of word vectors.

3CosAdd (Mikolov et al. 2013) answers the word d with the highest cos(d, b) - cos(d, a) + cos(d, c); 3CosMul (Levy and
Goldberg 2014) the one with the highest cos(d, b) cos(d, c) / (cos(d, a) + EPSILON), cosines moved to 0 to 1 by
(cos + 1) / 2. As usual, a question's own words are no answers to it; beside that stands the accuracy with them, since
without that rule b or c is the answer most often (Linzen 2016).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from groundray.analysis.inputs.analogy_sets import Question
from groundray.analysis.measures.directions import Vectors, check_directions, directions, places_of, row_blocks
from groundray.analysis.measures.proportion import proportion_of, shares
from groundray.analysis.measures.statistics import measure, median, over_items, paired_tests, slug
from groundray.analysis.result import Analysis, Bars, Cell, Measure, Table, Value

METHODS = {"3cosadd": "3CosAdd", "3cosmul": "3CosMul"}
EPSILON = 0.001  # as Levy and Goldberg
ROUNDING = 1e-9  # closer scores count as equal
MOST_SHOWN = 100  # questions of a set whose answers are listed
TABLES = 3  # of scores at a time, as large as a block's


@dataclass(frozen=True)
class Answered:
    """How a model answers the questions of a set by one method.

    Attributes:
        rank: rank of each target among all answers but the question's words, from 1; answers as good stand before it.
        rank_with_own: its rank among all answers.
        answer: index of the best answer, without the question's words.
    """

    rank: Int[np.ndarray, " question"]
    rank_with_own: Int[np.ndarray, " question"]
    answer: Int[np.ndarray, " question"]


Answers = Mapping[str, Mapping[str, Answered]]  # by method and model


def analogies(
    vectors: Vectors,
    words: Sequence[str],
    sets: Mapping[str, Sequence[Question]],
    vocabulary: Sequence[str],
    left_out: Mapping[str, int] | None = None,
) -> Analysis:
    """Answer analogies, from their candidates or else from a vocabulary.

    Args:
        vectors: one row for each word.
        words: distinct words.
        sets: questions by name of the set. One with an unknown word, also among its candidates, is omitted and counted,
            as is one whose target is among its own words, or not in the vocabulary if it has no candidates.
        vocabulary: answers to questions without candidates; the unknown ones are omitted and counted.
        left_out: counts of what was omitted before; the result repeats them.

    Raises:
        ValueError: no question is left, or the vectors fail `check_directions`.
    """
    check_directions(vectors, words)
    place = places_of(words)
    answers = {place[word] for word in vocabulary if word in place}
    counts: Counter[str] = Counter()
    kept: dict[str, list[Question]] = {}
    for name, questions in sets.items():
        reasons = [_unusable(question, place, answers) for question in questions]
        counts.update(reason for reason in reasons if reason)
        if own := [question for question, reason in zip(questions, reasons, strict=True) if not reason]:
            kept[name] = own
    if not kept:
        raise ValueError(
            f"expected an analogy that can be answered, got none among {sum(map(len, sets.values()))}: "
            f"{', '.join(f'{count:,} {what}' for what, count in counts.items()) or 'no set'}"
        )
    counts["sets without a question that can be answered"] = len(sets) - len(kept)
    counts["words of the vocabulary that have no vector"] = len({*vocabulary} - place.keys())
    units = {model: directions(rows) for model, rows in vectors.items()}
    chosen = np.array(sorted(answers), dtype=np.int64)
    found = {name: _answers(units, questions, place, chosen) for name, questions in kept.items()}
    open_sets = [name for name, questions in kept.items() if not all(one.candidates for one in questions)]
    return Analysis(
        "analogies",
        "a : b :: c : ?, answered from the candidates, or else from "
        f"{len(answers):,} words of a vocabulary. 3CosAdd: cos(d, b) - cos(d, a) + cos(d, c). 3CosMul: cos(d, b) "
        f"cos(d, c) / (cos(d, a) + {EPSILON}), cosines moved to 0 to 1. A question's own words are no answers; "
        "answers as good as the target stand before it. Intervals: Wilson's for accuracy, bootstrap over questions for "
        "ranks and differences; questions that share words are not independent, so that they are too narrow. p: "
        "McNemar's exact test for accuracy, Wilcoxon's signed-rank test for ranks.",
        tuple(
            one
            for name, questions in kept.items()
            for one in _measures(name, questions, found[name], name in open_sets)
        ),
        tuple(_tables(kept, found, words)),
        tuple(_pictures(kept, found)),
        {**(left_out or {}), **{what: count for what, count in counts.items() if count}},
    )


def _unusable(question: Question, place: Mapping[str, int], answers: Set[int]) -> str:
    """Return why a question cannot be answered, as the name of a count; empty if it can."""
    if question.target in question.given:
        return "questions whose answer is one of their words"
    if any(word not in place for word in question.words):
        return "questions with a word that has no vector"
    if not question.candidates and place[question.target] not in answers:
        return "questions whose answer is not in the vocabulary"
    return ""


def _answers(
    units: Mapping[str, Float[np.ndarray, "word _dim"]],
    questions: Sequence[Question],
    place: Mapping[str, int],
    vocabulary: Int[np.ndarray, " answer"],
) -> Answers:
    given = np.array([[place[word] for word in one.given] for one in questions])
    targets = np.array([place[one.target] for one in questions])
    chosen = np.array([bool(one.candidates) for one in questions])
    found: dict[str, dict[str, Answered]] = {method: {} for method in METHODS}
    for model, rows in units.items():
        parts = {method: np.zeros((3, len(questions)), dtype=np.int64) for method in METHODS}
        groups = [([row], [place[one] for one in questions[row].candidates]) for row in np.flatnonzero(chosen).tolist()]
        for some, answers in (*groups, (np.flatnonzero(~chosen).tolist(), vocabulary)):
            if some:
                for method, own in answered(rows, given[some], targets[some], np.array(answers)).items():
                    parts[method][:, some] = own.rank, own.rank_with_own, own.answer
        for method, (rank, rank_with_own, answer) in parts.items():
            found[method][model] = Answered(rank, rank_with_own, answer)
    return found


def answered(
    units: Float[np.ndarray, "word dim"],
    given: Int[np.ndarray, "question 3"],
    targets: Int[np.ndarray, " question"],
    answers: Int[np.ndarray, " answer"],
) -> dict[str, Answered]:
    """Answer questions by each method, in blocks.

    Args:
        units: vectors of length 1.
        given: a, b and c of each question.
        targets: target of each question, one of the answers and none of its words.
        answers: words that are answers, each once.
    """
    of_answers = units[answers]
    column = np.full(len(units), -1)
    column[answers] = np.arange(len(answers))
    parts: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {method: [] for method in METHODS}
    for block in row_blocks(len(given), (3 + TABLES) * len(answers)):  # at most three words a question
        own, number = np.unique(given[block], return_inverse=True)
        cosines = units[own] @ of_answers.T
        a, b, c = (cosines[row] for row in number.reshape(-1, 3).T)
        excluded = np.zeros(a.shape, dtype=np.bool_)
        question, word = np.nonzero(column[given[block]] >= 0)
        excluded[question, column[given[block]][question, word]] = True
        for method in METHODS:
            scores = b - a + c if method == "3cosadd" else (b + 1) / 2 * ((c + 1) / 2) / ((a + 1) / 2 + EPSILON)
            parts[method].append(_ranked(scores, column[targets[block]], excluded, answers))
    return {method: Answered(*map(np.concatenate, zip(*of, strict=True))) for method, of in parts.items()}


def _ranked(
    scores: Float[np.ndarray, "question answer"],
    targets: Int[np.ndarray, " question"],
    excluded: Bool[np.ndarray, "question answer"],
    answers: Int[np.ndarray, " answer"],
) -> tuple[Int[np.ndarray, " question"], Int[np.ndarray, " question"], Int[np.ndarray, " question"]]:
    """Return the targets' ranks without and with the excluded answers, and the best of the others."""
    as_good = scores >= scores[np.arange(len(scores)), targets, None] - ROUNDING
    whole = as_good.sum(axis=1)
    return (
        whole - (as_good & excluded).sum(axis=1),
        whole,
        answers[np.where(excluded, -np.inf, scores).argmax(axis=1)],
    )


def _sections(questions: Sequence[Question]) -> dict[str, list[int]]:
    """Return the questions of each section; empty if there is but one."""
    names = dict.fromkeys(question.section for question in questions)
    if len(names) < 2:
        return {}
    return {name: [row for row, one in enumerate(questions) if one.section == name] for name in names}


def _accuracy(
    key: str, name: str, found: Mapping[str, Int[np.ndarray, " question"]], rows: Sequence[int] | slice = slice(None)
) -> Measure:
    """Return the share of some questions whose target has rank 1."""
    return shares(key, name, {model: (rank[rows] == 1).astype(np.float64) for model, rank in found.items()})


def _measures(name: str, questions: Sequence[Question], found: Answers, is_open: bool) -> Iterator[Measure]:
    sections = _sections(questions)
    for method, of_models in found.items():
        key, label = f"{slug(name)}/{method}", f"{name}, {METHODS[method]}"
        ranks = {model: one.rank for model, one in of_models.items()}
        yield _accuracy(f"{key}/accuracy", f"{label}: accuracy", ranks)
        for section, rows in sections.items():
            shown = section or "no section"
            yield _accuracy(f"{key}/section/{slug(shown)}/accuracy", f"{label}, {shown}: accuracy", ranks, rows)
        scores = {model: rank.astype(np.float64) for model, rank in ranks.items()}
        tests = paired_tests(scores)
        yield measure(f"{key}/rank/median", f"{label}, rank: median", len(questions), over_items(scores, median), tests)
        if is_open:
            with_own = {model: one.rank_with_own for model, one in of_models.items()}
            yield _accuracy(f"{key}/own_words/accuracy", f"{label}, own words are answers too: accuracy", with_own)


def _tables(
    sets: Mapping[str, Sequence[Question]], found: Mapping[str, Answers], words: Sequence[str]
) -> Iterator[Table]:
    """Return the accuracy of each section, and the answers of small sets."""
    models = list(next(iter(next(iter(found.values())).values())))
    columns = [f"{model}: {label}" for model in models for label in METHODS.values()]
    accuracy: list[tuple[Cell, ...]] = []
    shown: list[tuple[Cell, ...]] = []
    for name, questions in sets.items():
        for section, rows in {"all": [*range(len(questions))], **_sections(questions)}.items():
            chances = [1 / len(questions[row].candidates) if questions[row].candidates else None for row in rows]
            chance = None if None in chances else float(np.mean([one for one in chances if one]))
            accuracies = [
                float((found[name][method][model].rank[rows] == 1).mean()) for model in models for method in METHODS
            ]
            accuracy.append((name, section or "no section", len(rows), chance, *accuracies))
        if len(questions) <= MOST_SHOWN:
            for row, one in enumerate(questions):
                answers = [words[int(found[name][method][model].answer[row])] for model in models for method in METHODS]
                shown.append((name, f"{one.a} : {one.b} :: {one.c} : ?", one.target, *answers))
    yield Table("Accuracy of each section", ("set", "section", "questions", "chance", *columns), tuple(accuracy))
    if shown:
        yield Table("Answers", ("set", "question", "target", *columns), tuple(shown))


def _pictures(sets: Mapping[str, Sequence[Question]], found: Mapping[str, Answers]) -> Iterator[Bars]:
    """Return bars of the sets, and of the sections of each set that has some."""
    groups: dict[str, dict[str, Value]] = {}
    items: dict[str, int] = {}
    for name, questions in sets.items():
        for method, of_models in found[name].items():
            label = f"{name}, {METHODS[method]}"
            groups[label] = _shares(of_models, [*range(len(questions))])
            items[label] = len(questions)
    yield Bars("analogies/sets", "Analogies: share of right answers", "accuracy", groups, items)
    for name, questions in sets.items():
        if sections := _sections(questions):
            yield Bars(
                f"analogies/{slug(name)}",
                f"{name}: share of right answers by section, 3CosAdd",
                "accuracy",
                {section or "no section": _shares(found[name]["3cosadd"], rows) for section, rows in sections.items()},
                {section or "no section": len(rows) for section, rows in sections.items()},
            )


def _shares(found: Mapping[str, Answered], rows: Sequence[int]) -> dict[str, Value]:
    return {model: proportion_of(float((one.rank[rows] == 1).mean()), len(rows)) for model, one in found.items()}

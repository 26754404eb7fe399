"""What there is to analyse: the language streams of an export and other models, and the norms of a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from groundray.model import export
from groundray.storage.folder import Folder

# the controls that belong beside every figure, and how to get one that an export lacks
CONTROLS = {
    "ungrounded": "a run that begins with published weights or from scratch keeps it",
    "text-only": "train stage language on the same captions, before grounding (--stages language,grounding) or as a "
    "run of its own (--stages language)",
    "grounded": "train stage grounding",
    "relational": "train stage relational after grounding",
}
CONCRETENESS, FEATURES, PHRASES, PAIRS = "concreteness.csv", "features.csv", "composition.csv", "similarity"
CATEGORIES = ("categories.csv", "semcat100.csv", "semcat")
PAIR_FILES = (".txt", ".csv", ".tsv")
NAME = re.compile(r"\w[\w.+\- ]*")


@dataclass(frozen=True)
class Models:
    """Language models by name, the controls first, and what a reader must know of them.

    Attributes:
        places: a folder, a URL, or a name such as `minilm`.
        notes: a line for each control that is missing, with how to get it.
    """

    places: dict[str, str]
    notes: tuple[str, ...]

    @staticmethod
    def of(checkpoint: str | None, named: Sequence[str]) -> Models:
        """The controls that an export holds, and other models.

        Args:
            checkpoint: a run's model/ folder, on a path or a URL.
            named: others, as NAME=FOLDER.

        Raises:
            FileNotFoundError, ValueError: the checkpoint is no export, a name is none or is taken, or there is no
                model.
        """
        places = _controls(checkpoint) if checkpoint else {}
        for text in named:
            name, equals, place = text.partition("=")
            if not equals or not place or not NAME.fullmatch(name):
                raise ValueError(f"--model: expected NAME=FOLDER such as bert=models/bert, got {text!r}")
            if name in places:
                raise ValueError(f"--model: {name} is {places[name]} already: give {place} another name")
            places[name] = place
        if not places:
            raise ValueError("expected --checkpoint DIR, a run's model/ folder, or --model NAME=FOLDER, got neither")
        notes = tuple(
            f"no {name} control: {repair}, or give one with --model {name}=FOLDER"
            for name, repair in CONTROLS.items()
            if name not in places
        )
        first = [name for name in CONTROLS if name in places]
        return Models({name: places[name] for name in dict.fromkeys([*first, *places])}, notes)


def _controls(checkpoint: str) -> dict[str, str]:
    """The language streams of an export, by what they are controls of."""
    export.about(checkpoint)
    prefix = f"{export.LANGUAGE}-"
    found = [name for name in Folder.at(checkpoint).names() if name.startswith(prefix)]
    return {name.removeprefix(prefix): f"{checkpoint.rstrip('/')}/{name}" for name in found}


@dataclass(frozen=True)
class Norms:
    """Where human norms and word sets are, each a path or URL; None where there are none.

    Attributes:
        concreteness: ratings of words.
        categories: words by category, a table or a folder of text files.
        features: which concepts have which features.
        phrases: phrases, each with the word that it stands for.
        pairs: pairs of words with their similarity, by the name of their file.
        looked_for: where, for who is told that something is missing.
    """

    concreteness: str | None = None
    categories: str | None = None
    features: str | None = None
    phrases: str | None = None
    pairs: Mapping[str, str] | None = None
    looked_for: str = "was given, nor a folder of norms (--norms DIR)"

    @property
    def places(self) -> list[str]:
        """Every file and folder that is there."""
        single = (self.concreteness, self.categories, self.features, self.phrases)
        return [*(place for place in single if place), *(self.pairs or {}).values()]

    @staticmethod
    def at(url: str) -> Norms:
        """The norms of a folder: concreteness.csv, the first of categories.csv, semcat100.csv and semcat/,
        features.csv, composition.csv, and the files of similarity/ (.txt, .csv, .tsv).

        Raises:
            FileNotFoundError: there is no such folder, or nothing of these in it.
        """
        folder = Folder.at(url)
        there = set(folder.names())
        place = url.rstrip("/")

        def first(*names: str) -> str | None:
            return next((f"{place}/{name}" for name in names if name in there), None)

        files = [name for name in (folder / PAIRS).names() if name.lower().endswith(PAIR_FILES)]
        norms = Norms(
            first(CONCRETENESS),
            first(*CATEGORIES),
            first(FEATURES),
            first(PHRASES),
            {name.rpartition(".")[0]: f"{place}/{PAIRS}/{name}" for name in files} or None,
            looked_for=f"in {url}",
        )
        if norms == Norms(looked_for=norms.looked_for):
            wanted = ", ".join((CONCRETENESS, *CATEGORIES, FEATURES, PHRASES, f"{PAIRS}/*.txt"))
            raise FileNotFoundError(f"expected norms in {url}, one of {wanted}; found {'none' if there else 'nothing'}")
        return norms

    def with_files(
        self,
        concreteness: str | None = None,
        categories: str | None = None,
        features: str | None = None,
        phrases: str | None = None,
        pairs: Sequence[str] = (),
    ) -> Norms:
        """The same with single files in the place of the folder's."""
        return replace(
            self,
            concreteness=concreteness or self.concreteness,
            categories=categories or self.categories,
            features=features or self.features,
            phrases=phrases or self.phrases,
            pairs={Folder.at(file).name.rpartition(".")[0] or Folder.at(file).name: file for file in pairs}
            or self.pairs,
        )

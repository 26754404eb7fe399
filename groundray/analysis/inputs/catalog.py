"""Models and norms to analyse: the language streams of an exported model, other models, and the norms of a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from groundray.model import export
from groundray.storage.folder import Folder

# controls for every figure, and how to obtain one that an exported model lacks
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
    """Language models by name, controls first.

    Attributes:
        sources: folder, URL, or name such as `minilm` of each model.
        notes: a line for each missing control, with how to obtain it.
    """

    sources: dict[str, str]
    notes: tuple[str, ...]

    @staticmethod
    def of(checkpoint: str | None, named: Sequence[str]) -> Models:
        """Return the controls of an exported model, and other models.

        Args:
            checkpoint: path or URL of a run's model/ folder.
            named: other models, as NAME=FOLDER.

        Raises:
            FileNotFoundError, ValueError: the checkpoint is not an exported model, a name is invalid or taken, or there
                is no model.
        """
        sources = _controls(checkpoint) if checkpoint else {}
        for text in named:
            name, equals, source = text.partition("=")
            if not equals or not source or not NAME.fullmatch(name):
                raise ValueError(f"--model: expected NAME=FOLDER such as bert=models/bert, got {text!r}")
            if name in sources:
                raise ValueError(f"--model: {name} is {sources[name]} already: give {source} another name")
            sources[name] = source
        if not sources:
            raise ValueError("expected --checkpoint DIR, a run's model/ folder, or --model NAME=FOLDER, got neither")
        notes = tuple(
            f"no {name} control: {repair}, or give one with --model {name}=FOLDER"
            for name, repair in CONTROLS.items()
            if name not in sources
        )
        first = [name for name in CONTROLS if name in sources]
        return Models({name: sources[name] for name in dict.fromkeys([*first, *sources])}, notes)


def _controls(checkpoint: str) -> dict[str, str]:
    """Return the language streams of an exported model, by name."""
    export.about(checkpoint)
    prefix = f"{export.LANGUAGE}-"
    streams = [name for name in Folder.at(checkpoint).names() if name.startswith(prefix)]
    return {name.removeprefix(prefix): f"{checkpoint.rstrip('/')}/{name}" for name in streams}


@dataclass(frozen=True)
class Norms:
    """Paths or URLs of human norms and word sets; None if there are none.

    Attributes:
        concreteness: ratings of words.
        categories: words by category, a table or a folder of text files.
        features: which concepts have which features.
        phrases: phrases, each with the word that it describes.
        pairs: pairs of words with their similarity, by file name.
        looked_for: where they were searched for, for error messages.
    """

    concreteness: str | None = None
    categories: str | None = None
    features: str | None = None
    phrases: str | None = None
    pairs: Mapping[str, str] | None = None
    looked_for: str = "was given, nor a folder of norms (--norms DIR)"

    @property
    def paths(self) -> list[str]:
        """All files and folders."""
        single = (self.concreteness, self.categories, self.features, self.phrases)
        return [*(path for path in single if path), *(self.pairs or {}).values()]

    @staticmethod
    def at(url: str) -> Norms:
        """Find the norms in a folder: concreteness.csv, the first of categories.csv, semcat100.csv and semcat/,
        features.csv, composition.csv, and the files of similarity/ (.txt, .csv, .tsv).

        Raises:
            FileNotFoundError: the folder does not exist, or has none of these files.
        """
        folder = Folder.at(url)
        names_present = set(folder.names())
        base = url.rstrip("/")

        def first(*names: str) -> str | None:
            return next((f"{base}/{name}" for name in names if name in names_present), None)

        files = [name for name in (folder / PAIRS).names() if name.lower().endswith(PAIR_FILES)]
        norms = Norms(
            first(CONCRETENESS),
            first(*CATEGORIES),
            first(FEATURES),
            first(PHRASES),
            {name.rpartition(".")[0]: f"{base}/{PAIRS}/{name}" for name in files} or None,
            looked_for=f"in {url}",
        )
        if norms == Norms(looked_for=norms.looked_for):
            wanted = ", ".join((CONCRETENESS, *CATEGORIES, FEATURES, PHRASES, f"{PAIRS}/*.txt"))
            raise FileNotFoundError(
                f"expected norms in {url}, one of {wanted}; found {'none' if names_present else 'nothing'}"
            )
        return norms

    def with_files(
        self,
        concreteness: str | None = None,
        categories: str | None = None,
        features: str | None = None,
        phrases: str | None = None,
        pairs: Sequence[str] = (),
    ) -> Norms:
        """Replace some norms by single files."""
        return replace(
            self,
            concreteness=concreteness or self.concreteness,
            categories=categories or self.categories,
            features=features or self.features,
            phrases=phrases or self.phrases,
            pairs={Folder.at(file).name.rpartition(".")[0] or Folder.at(file).name: file for file in pairs}
            or self.pairs,
        )

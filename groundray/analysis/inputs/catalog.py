"""Models and norms to analyse: the language streams of an exported model, other models, and the norms of a folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from groundray.analysis.measures.statistics import slug
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
ENDINGS = (".csv", ".tsv", ".txt", ".tab", ".dat")  # in order of preference
CONCRETENESS, FEATURES, PHRASES = "concreteness", "features", "composition"
CATEGORIES, CATEGORY_FOLDER = ("categories", "semcat100"), "semcat"
PAIR_FILES = (*ENDINGS, ".full", ".dev", ".test", "")  # MEN_dataset_lemma_form.dev, MEN_dataset_natural_form_full
# kinds of which there are several sets: the folder of each, and the endings of its files
SETS = {
    "pairs": ("similarity", PAIR_FILES),
    "category_sets": ("category_sets", ENDINGS),
    "ratings": ("ratings", ENDINGS),
    "analogies": ("analogies", ENDINGS),
}
RATING_GROUPS = "groups"  # file of the folder of ratings
NO_TABLE = re.compile(r"read[_-]?me|licen[cs]e|changelog|citation", re.IGNORECASE)
NAME = re.compile(r"\w[\w.+\- ]*")


@dataclass(frozen=True)
class Models:
    """Language models by name, controls first.

    Attributes:
        sources: folder, URL, or name such as `minilm` of each model.
        notes: a line for each control that the checkpoint lacks, with how to obtain it.
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
            if not equals or not source or not name:
                raise ValueError(f"--model: expected NAME=FOLDER such as bert=models/bert, got {text!r}")
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"--model: expected a name of letters, digits, spaces and _ . + -, the first a letter, digit "
                    f"or _, got {name!r}: give {source} another name"
                )
            taken = {slug(other): other for other in sources}
            if other := taken.get(slug(name)):
                same = (
                    "" if other == name else f", whose pictures and metrics would have the same name as those of {name}"
                )
                raise ValueError(f"--model: {other} is {sources[other]} already{same}: give {source} another name")
            sources[name] = source
        if not sources:
            raise ValueError("expected --checkpoint DIR, a run's model/ folder, or --model NAME=FOLDER, got neither")
        notes = tuple(
            f"no {name} control: {repair}, or give one with --model {name}=FOLDER"
            for name, repair in CONTROLS.items()
            if checkpoint and name not in sources
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
        category_sets: further sets of words by category, each measured apart from the others, by file name.
        ratings: words rated on several dimensions, by file name.
        rating_groups: groups of these dimensions.
        analogies: questions a : b :: c : ?, by file name.
        looked_for: where they were searched for, for error messages.
        passed_over: a line for each file of the folder that is not read, with what was expected.
        found: kinds whose files were found in a folder, where a file that cannot be read spoils only itself.
    """

    concreteness: str | None = None
    categories: str | None = None
    features: str | None = None
    phrases: str | None = None
    pairs: Mapping[str, str] | None = None
    category_sets: Mapping[str, str] | None = None
    ratings: Mapping[str, str] | None = None
    rating_groups: str | None = None
    analogies: Mapping[str, str] | None = None
    looked_for: str = "was given, nor a folder of norms (--norms DIR)"
    passed_over: tuple[str, ...] = field(default=(), repr=False, compare=False)
    found: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    @property
    def paths(self) -> list[str]:
        """All files and folders."""
        single = (self.concreteness, self.categories, self.features, self.phrases, self.rating_groups)
        sets = [path for kind in SETS for path in (getattr(self, kind) or {}).values()]
        return [*(path for path in single if path), *sets]

    @staticmethod
    def at(url: str) -> Norms:
        """Find the norms in a folder: concreteness.csv, the first of categories.csv, semcat100.csv and semcat/,
        features.csv, composition.csv, and the files of the folders of SETS, with the folders inside them; ratings/
        may have groups.csv. Each may end in any of ENDINGS, those of similarity/ in any of PAIR_FILES.

        Raises:
            FileNotFoundError: the folder does not exist, or has none of these files.
        """
        folder, base = Folder.at(url), url.rstrip("/")
        present = folder.names()

        def first(*stems: str) -> str | None:
            names = [f"{stem}{ending}" for stem in stems for ending in ENDINGS]
            return next((name for name in names if name in present), None)

        single = {
            "concreteness": first(CONCRETENESS),
            "categories": first(*CATEGORIES) or (CATEGORY_FOLDER if CATEGORY_FOLDER in present else None),
            "features": first(FEATURES),
            "phrases": first(PHRASES),
        }
        sets: dict[str, dict[str, str]] = {}
        unread: list[str] = []
        for kind, (inside, endings) in SETS.items():
            files, lines = _find_tables(folder / inside, endings)
            sets[kind] = {name: f"{base}/{inside}/{file}" for name, file in files.items()}
            unread += [f"{inside}/{line}" for line in lines]
        groups = sets["ratings"].pop(RATING_GROUPS, None)
        folders = [inside for inside, _ in SETS.values()]
        expected = ", ".join(f"{stem}.csv" for stem in (CONCRETENESS, *CATEGORIES, FEATURES, PHRASES))
        expected += f" (or {', '.join(ENDINGS[1:])}), {CATEGORY_FOLDER}/, {'/, '.join(folders[:-1])}/ or {folders[-1]}/"
        others = [name for name in present if name not in (*single.values(), *folders)]
        instead = {name: kept for name in others if (kept := _read_instead(name, single))}
        unknown = [name for name in others if name not in instead]
        passed_over = [f"{name}: not read, {kept} is read instead" for name, kept in instead.items()]
        passed_over += [f"{', '.join(unknown)}: not read, expected {expected}"] if unknown else []
        at = {kind: f"{base}/{name}" if name else None for kind, name in single.items()}
        norms = Norms(
            at["concreteness"],
            at["categories"],
            at["features"],
            at["phrases"],
            rating_groups=groups,
            looked_for=f"in {url}",
            passed_over=(*passed_over, *unread),
            found=frozenset(SETS),
            **{kind: files or None for kind, files in sets.items()},
        )
        if norms == Norms(looked_for=norms.looked_for):
            raise FileNotFoundError(
                f"expected norms in {url}, one of {expected}; found {', '.join(present[:5]) if present else 'nothing'}"
            )
        return norms

    def with_files(
        self,
        concreteness: str | None = None,
        categories: str | None = None,
        features: str | None = None,
        phrases: str | None = None,
        pairs: Sequence[str] = (),
        ratings: Sequence[str] = (),
        rating_groups: str | None = None,
        analogies: Sequence[str] = (),
    ) -> Norms:
        """Replace some norms by single files."""
        sets = {
            kind: _named({file: Folder.at(file).name for file in files})
            for kind, files in (("pairs", pairs), ("ratings", ratings), ("analogies", analogies))
            if files
        }
        return replace(
            self,
            concreteness=concreteness or self.concreteness,
            categories=categories or self.categories,
            features=features or self.features,
            phrases=phrases or self.phrases,
            rating_groups=rating_groups or self.rating_groups,
            found=self.found - sets.keys(),
            **sets,
        )


def _read_instead(name: str, single: Mapping[str, str | None]) -> str | None:
    """Return the file that is read instead of another of the same kind; None if there is none."""
    stem = name.rpartition(".")[0] or name
    for kind, stems in (
        ("concreteness", (CONCRETENESS,)),
        ("categories", (*CATEGORIES, CATEGORY_FOLDER)),
        ("features", (FEATURES,)),
        ("phrases", (PHRASES,)),
    ):
        if stem in stems:
            return single[kind]
    return None


def _find_tables(folder: Folder, endings: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the tables in a folder and the folders inside it, by name; and a line for each other file.

    Args:
        endings: endings of a table's name, in lower case, with "" for none.
    """
    files: dict[str, str] = {}
    unread = []
    for file in folder.files():
        name = file.rpartition("/")[2]
        stem, dot, ending = name.rpartition(".")
        ending = f"{dot}{ending}".lower() if stem else ""
        if any(part.startswith((".", "__")) for part in file.split("/")):
            unread.append(f"{file}: not read, it is hidden")
        elif ending not in endings or NO_TABLE.match(name):
            bare = " or no ending" if "" in endings else ""
            unread.append(f"{file}: not read, expected {', '.join(filter(None, endings))}{bare}")
        else:
            files[file] = name
    return _named(files), unread


def _named(names: Mapping[str, str]) -> dict[str, str]:
    """Return files by their names without ending; by name, or by path, where that would be the name of several."""

    def stem(file: str) -> str:
        return names[file].rpartition(".")[0] or names[file]

    def times(key: Callable[[str], str]) -> Counter[str]:
        return Counter(slug(key(file)) for file in names)

    stems, whole = times(stem), times(names.__getitem__)
    named: dict[str, str] = {}
    for file, name in names.items():
        short = stem(file)
        named[short if stems[slug(short)] == 1 else name if whole[slug(name)] == 1 else file] = file
    return named

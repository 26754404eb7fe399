"""A request for analyses: models, data and options."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.dual_encoder import DualEncoders
from groundray.analysis.inputs.embedding import IN_ISOLATION, Options
from groundray.analysis.inputs.lexicon import MIN_COVERAGE
from groundray.analysis.measures import feature_norms
from groundray.config.settings import FIT_ON
from groundray.model import export
from groundray.storage.folder import Folder

BATCH_SIZE = 64


@dataclass(frozen=True)
class AnalysisRequest:
    """A request for analyses: models, data and options.

    Attributes:
        checkpoint: a run's model/ folder, on a path or a URL.
        models: other models, as NAME=FOLDER.
        norms: None for the norms that the run's settings name.
        images, graphs: shards of captioned images and of scene graphs; None for the run's validation shards.
        batch_size: images encoded at once.
        embedding: how a text's vector is computed.
        classifiers: options of the classifiers of features.
        min_people: number of people who must have named a feature of a concept.
        components: number of principal axes.
        fit_on: words that the axes are fitted on: a file, or a name of FIT_ON; None for those of the run's setting
            `analysis.fit_on`, or else `rated`.
        contrasts: file of the sets of categories that the axes are to tell apart; None for those that are built in.
        vocabulary: file of words among which a phrase's target is ranked (default: the words of the categories).
        strata: columns that sets of word pairs are divided by; empty for those that are recognised.
        labelled: shards of labelled images; None for those that the run's stage `visual` was validated on.
        sets: compositional sets, as NAME=FOLDER.
        set_images: folders of their images.
        min_coverage: fraction of an analysis' texts, of those that the model with the widest vocabulary knows, that a
            model must know to be compared in it, from 0 to 1.
        encoders: models of images and texts, each loaded once for all analyses.
    """

    checkpoint: str | None = None
    models: tuple[str, ...] = ()
    norms: Norms | None = None
    images: str | None = None
    graphs: str | None = None
    batch_size: int = BATCH_SIZE
    embedding: Options = IN_ISOLATION
    classifiers: feature_norms.ClassifierOptions = feature_norms.DEFAULT
    min_people: float = 1
    components: int = 3
    fit_on: str | None = None
    contrasts: str | None = None
    vocabulary: str | None = None
    strata: tuple[str, ...] = ()
    labelled: str | None = None
    sets: tuple[str, ...] = ()
    set_images: tuple[str, ...] = ()
    min_coverage: float = MIN_COVERAGE
    encoders: DualEncoders = field(default_factory=DualEncoders, repr=False, compare=False)

    def resolved(self) -> AnalysisRequest:
        """Return the request with norms and words to fit axes on: the given ones, or else those of the run.

        The run's norms are left out where they no longer exist.
        """
        if self.checkpoint is None:
            return replace(self, norms=self.norms or Norms())
        settings = export.about(self.checkpoint).settings.get("analysis", {})
        request = replace(self, fit_on=self.fit_on or settings.get("fit_on"))
        if self.norms is not None:
            return request
        own = settings.get("norms")
        try:
            return replace(request, norms=Norms.at(own) if own else Norms())
        except FileNotFoundError:
            return replace(request, norms=Norms(looked_for=f"in {own}, where the run had them (--norms DIR)"))

    def made_of(self) -> dict[str, str]:
        """Return checksums of all that the report depends on: the exported model's description, norms and words."""
        checksums = {"settings": _digest(repr(replace(self, checkpoint=None)).encode())}
        if self.checkpoint:
            checksums["checkpoint"] = _digest(Folder.at(self.checkpoint).read_bytes(export.ABOUT))
        files = [path for path in (self.fit_on, self.contrasts, self.vocabulary) if path and path not in FIT_ON]
        return checksums | {path: _digest_of(path) for path in ((self.norms or Norms()).paths + files)}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(path: str) -> str:
    """Return the checksum of a file, or of a folder's files with their names."""
    folder = Folder.at(path)
    if folder.filesystem.get_file_info(folder.path).is_file:
        return _digest(folder.parent.read_bytes(folder.name))
    return _digest(b"".join(name.encode() + folder.read_bytes(name) for name in folder.files()))

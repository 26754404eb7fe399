"""Vectors of words and phrases: the mean of a language model's hidden state over a text's word pieces, or the vector
that a text has in the space that CLIP, SigLIP or ALIGN shares with images.

A text is embedded in isolation, between the tokenizer's special tokens ([CLS] and [SEP]), or in template sentences such
as "a photo of a zebra": its vector is then the mean over the text's own pieces, averaged over the sentences.

Any language model that `transformers` loads is accepted: the language streams of an exported model, a
sentence-transformers folder (its pooling, dense layers and normalisation are ignored), a decoder, or the encoder or
text tower of a larger model. A model with a projection to a space shared with images (`model/projected_text.py`) gives
the projected vector of the whole sentence, unless the mean is asked for.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundray.analysis.inputs.text_model import (
    SHOWN,
    Encode,
    Progress,
    Vectors,
    encode_here,
    no_progress,
    refuse,
)
from groundray.model import export, projected_text
from groundray.model.encoder_layout import max_tokens
from groundray.model.pretrained import local_copy, locate, quiet, read_text_model, read_tokenizer
from groundray.model.projected_text import Projection, read_projected_text, text_tower
from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged

SLOT = "{}"
MODULES = "modules.json"  # file of sentence-transformers
# On two cores, MiniLM takes 4,200 word pieces a CPU second in batches of 16,384, 3,500 in 4,096 and 1,800 in 1,024
PIECES_A_BATCH = 4_096
TEXTS_A_BLOCK = 4_096  # that are cut into word pieces at once: the library's encodings take some kB each
POOLER = "pooler"  # output for the first token, which is not used here

# where a file is missing, damaged or another model's, transformers raises all kinds of errors, tokenizers a plain one
UNREADABLE = Exception


@dataclass(frozen=True)
class Options:
    """Options of embedding a text.

    Attributes:
        special_tokens: include the tokenizer's special tokens in the mean.
        layer: index of the hidden state: from 0 (input of the first layer), or from -1 (the last) backwards.
        templates: sentences with {} in place of the text; none embeds the text in isolation.
        projected: take the projected vectors of a model that has some.
    """

    special_tokens: bool = False
    layer: int = -1
    templates: tuple[str, ...] = ()
    projected: bool = True

    def __post_init__(self) -> None:
        for template in self.templates:
            if template.count(SLOT) != 1:
                raise ValueError(f"expected a template with one {SLOT}, such as 'a photo of a {{}}', got {template!r}")
        if self.templates and self.special_tokens:
            raise ValueError(
                "expected special tokens counted or templates, got both: in a template they stand outside the text"
            )

    @property
    def of_the_mean(self) -> tuple[str, ...]:
        """The command's options that were given and matter only for the mean over word pieces."""
        given = {"--special-tokens": self.special_tokens, "--layer": self.layer != -1}
        return tuple(name for name, one in given.items() if one)

    @property
    def of_sentences(self) -> tuple[str, ...]:
        """The command's options that were given and matter only for models that read sentences."""
        return (*self.of_the_mean, *(["--template"] if self.templates else []))


IN_ISOLATION = Options()


class Batch(NamedTuple):
    """Sentences of one length, so that there is no padding.

    Attributes:
        texts: index of each sentence's text.
        counted: mask of the pieces in the mean.
    """

    texts: Int[np.ndarray, " sentence"]
    tokens: Int[np.ndarray, "sentence piece"]
    counted: Bool[np.ndarray, "sentence piece"]


class Embedder:
    """A language model that embeds texts, in float32.

    Attributes:
        name: where it was loaded from.
        about: description of its options, for display.
        digest: hash of its weights, configuration, tokenizer and options; equal digests give equal vectors on equal
            libraries.
        notes: a line for options that are not used.
    """

    code: tuple[ModuleType, ...] = (sys.modules[__name__], projected_text)

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        options: Options = IN_ISOLATION,
        projection: Projection | None = None,
    ):
        self.name, self.options = name, options
        self._model: Any = model.eval()
        self._projection = projection
        self._tokenizer, self._pieces = tokenizer, tokenizer.backend_tokenizer
        self._pieces.no_padding()
        self._pieces.no_truncation()
        self._most = min(int(tokenizer.model_max_length), max_tokens(model) or int(tokenizer.model_max_length))
        self._check()
        self.about = _about(options, projection is not None)
        unused = options.of_the_mean if projection else ()
        self.notes = (f"{', '.join(unused)}: not used for projected vectors (--no-projection)",) if unused else ()
        self.digest = _digest(model, self._pieces.to_str(), options)

    @staticmethod
    def load(place: str | Path, options: Options = IN_ISOLATION) -> Embedder:
        """Load a model from a folder, a URL, `minilm`, or a name on a model hub.

        For a whole exported model, load its last language stream.

        Raises:
            ValueError: there is no model, it lacks weights or a tokenizer, or the options do not fit it.
        """
        with local_copy(_stream(locate(str(place)))) as local:
            return _load(str(place), local, options)

    def known(self, texts: Sequence[str]) -> Bool[np.ndarray, " text"]:
        """Return which texts the model knows: those with at least one piece, none of them the unknown token."""
        unknown = self._tokenizer.unk_token_id
        found = (one.ids for one in self._encodings(texts, add_special_tokens=False))
        return np.array([len(ids) > 0 and unknown not in ids for ids in found], dtype=np.bool_)

    def embed(self, texts: Sequence[str], progress: Progress = no_progress, encode: Encode = encode_here) -> Vectors:
        """Return the vector of each text.

        Args:
            progress: called after each batch with the number of processed word pieces, and their total.
            encode: yields the vectors of each batch of sentences (`runtime.data.embedding_tasks.encode` on a cluster).

        Raises:
            ValueError: there is no text, the model does not know all texts, a text is too long for it, or the result
                is not finite.
        """
        batches = self.batches(texts)
        total, done = sum(batch.tokens.size for batch in batches), 0

        def encoded() -> Iterator[Vectors]:
            nonlocal done
            for batch, vectors in zip(batches, encode(self, batches), strict=True):
                yield vectors
                done += batch.tokens.size
                progress(done, total)

        return self.gathered(texts, batches, encoded())

    def batches(self, texts: Sequence[str]) -> list[Batch]:
        """Return the sentences of all texts in batches, sorted by length, one template after the other.

        Raises:
            ValueError: as `embed`.
        """
        if not texts:
            raise ValueError("expected at least one text to embed, got none")
        refuse(self.name, texts, self.known(texts).tolist(), "texts that the model has word pieces for")
        return [batch for template in self.options.templates or (SLOT,) for batch in self._batches(texts, template)]

    def _batches(self, texts: Sequence[str], template: str) -> Iterator[Batch]:
        start = template.index(SLOT)
        sentences = self._encodings([template.replace(SLOT, text) for text in texts], add_special_tokens=True)
        ids, counted = [], []
        for sentence, text in zip(sentences, texts, strict=True):
            ids.append(np.array(sentence.ids, dtype=np.int32))
            counted.append(np.array(self._counted(sentence, start, start + len(text)), dtype=np.bool_))
        lengths = np.array([len(pieces) for pieces in ids])
        refuse(self.name, texts, (lengths <= self._most).tolist(), f"sentences of at most {self._most} word pieces")
        refuse(self.name, texts, [bool(pieces.any()) for pieces in counted], f"word pieces of the text in {template!r}")
        if self._projection and self._projection.padded:
            ids, counted = self._padded(ids, self._tokenizer.pad_token_id), self._padded(counted, False)
            lengths[:] = self._most
        for length in np.unique(lengths).tolist():
            places = np.flatnonzero(lengths == length)
            for some in np.array_split(places, -(-len(places) * length // PIECES_A_BATCH)):
                yield Batch(some, np.stack([ids[one] for one in some]), np.stack([counted[one] for one in some]))

    def _padded(self, rows: Sequence[np.ndarray], value: Any) -> list[np.ndarray]:
        return [np.pad(row, (0, self._most - len(row)), constant_values=value) for row in rows]

    def _encodings(self, texts: Sequence[str], add_special_tokens: bool) -> Iterator[Encoding]:
        for first in range(0, len(texts), TEXTS_A_BLOCK):
            block = list(texts[first : first + TEXTS_A_BLOCK])
            yield from self._pieces.encode_batch(block, add_special_tokens=add_special_tokens)

    def _counted(self, sentence: Encoding, start: int, stop: int) -> list[bool]:
        """Return which pieces of a sentence count, for a text from character `start` to before `stop`."""
        if self.options.special_tokens:
            return [True] * len(sentence)
        plain = [not special for special in sentence.special_tokens_mask]
        if not self.options.templates:
            return plain
        # a piece may begin with the space before the text (byte-level and sentence pieces)
        inside = [begin < stop and end > start for begin, end in sentence.offsets]
        return [one and other for one, other in zip(plain, inside, strict=True)]

    @torch.inference_mode()
    def encode(self, batch: Batch) -> Float[np.ndarray, "sentence dim"]:
        """Return the vector of each sentence: the mean over its counted pieces, or its projected vector."""
        tokens = torch.from_numpy(batch.tokens.astype(np.int64)).to(self._model.device)
        if self._projection:
            return self._projection.vectors(self._model, tokens).cpu().numpy()
        counted = torch.from_numpy(batch.counted.astype(np.float32)).to(self._model.device)
        hidden = self._hidden(tokens)
        return (torch.einsum("s p d, s p -> s d", hidden, counted) / counted.sum(dim=1, keepdim=True)).cpu().numpy()

    def to(self, device: str) -> Embedder:
        """Return the embedder with its model on a device."""
        self._model.to(device)
        return self

    def gathered(self, texts: Sequence[str], batches: Iterable[Batch], encoded: Iterable[Vectors]) -> Vectors:
        """Combine the results of `encode` for all batches to the vectors of texts, each the mean of its sentences'.

        Raises:
            ValueError: a vector is not finite.
        """
        vectors = None
        for batch, part in zip(batches, encoded, strict=True):
            vectors = np.zeros((len(texts), part.shape[1]), dtype=np.float32) if vectors is None else vectors
            vectors[batch.texts] += part
        assert vectors is not None
        vectors /= max(1, len(self.options.templates))
        finite = np.all(np.isfinite(vectors), axis=1).tolist()
        refuse(self.name, texts, finite, "finite vectors (has its training diverged, or are its weights damaged?)")
        return vectors

    @torch.inference_mode()
    def _hidden(self, tokens: Int[Tensor, "sentence piece"]) -> Float[Tensor, "sentence piece dim"]:
        """Return the hidden state of the layer. The last one is the model's output, after its final norm if any."""
        layer = self.options.layer
        output = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=layer != -1)
        if layer == -1:
            return output.last_hidden_state
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        if not -len(states) <= layer < len(states):
            raise ValueError(
                f"layer: expected 0 to {len(states) - 1} (or -1 to -{len(states)}) for {self.name}, got {layer}"
            )
        return states[layer]

    def _check(self) -> None:
        """Check that the options fit the model, and the model its tokenizer.

        Raises:
            ValueError: they do not.
        """
        there = text_tower(self._model).get_input_embeddings().weight.shape[0]
        if len(self._tokenizer) > there:
            raise ValueError(
                f"{self.name}: expected a tokenizer of at most the {there} word pieces of the model, "
                f"got one of {len(self._tokenizer)}: it is another model's"
            )
        if self._projection is None:
            self._hidden(torch.zeros(1, 1, dtype=torch.int64))
        elif self._projection.padded and self._tokenizer.pad_token_id is None:
            raise ValueError(
                f"{self.name}: expected a tokenizer with a padding token, got one without: set pad_token in its "
                "tokenizer_config.json"
            )
        for template in self.options.templates:
            frame = template.replace(SLOT, "")
            if frame.strip() and not self.known([frame])[0]:
                raise ValueError(f"{self.name}: expected templates of words that the model knows, got {template!r}")


def _stream(place: str | Path) -> str:
    """Return the folder of the language model: an export's last language stream, or a module of
    sentence-transformers."""
    folder = Folder.at(place)
    if folder.exists(export.ABOUT):
        return f"{place}/{export.last_stream(place)}"
    if folder.exists(MODULES):
        try:
            modules = folder.read_json(MODULES)
            first = next((one["path"] for one in modules if one["type"].endswith(".Transformer")), "")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Damaged(f"{folder}/{MODULES}", f"it lists no modules ({error})", "restore it from a copy") from None
        return f"{place}/{first}" if first else str(place)
    return str(place)


def _load(name: str, place: str, options: Options) -> Embedder:
    with quiet():
        projection = None
        try:
            if projected := read_projected_text(place):
                model, projection, missing = projected
            else:
                model, missing = read_text_model(place)
        except UNREADABLE as error:
            raise ValueError(
                f"cannot load a language model from {name} ({_reason(error)}): give a folder with config.json, weights "
                "and a tokenizer, as an export's language/, a file of word vectors, or `minilm`, which installs as a "
                "package"
            ) from None
        try:
            tokenizer = read_tokenizer(place)
        except UNREADABLE as error:
            raise ValueError(
                f"{name}: expected a tokenizer beside the model, found none to read ({_reason(error)})"
            ) from None
    if missing:
        raise ValueError(f"{name} lacks weights of its model: {', '.join(missing[:SHOWN])}")
    if tokenizer is None:
        raise ValueError(
            f"{name}: expected a fast tokenizer (tokenizer.json or vocab.txt) beside the model, found none: "
            "copy the one that the model was trained with there"
        )
    if projection and not options.projected:
        model, projection = text_tower(model), None
    return Embedder(name, model, tokenizer, options, projection)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _about(options: Options, projected: bool) -> str:
    if projected:
        sentences = f", averaged over {', '.join(repr(one) for one in options.templates)}" if options.templates else ""
        return f"projected vector of the text, in the space shared with images{sentences}"
    layer = "the last hidden state" if options.layer == -1 else f"hidden state {options.layer}"
    if options.templates:
        where = f"of the text alone, averaged over {', '.join(repr(one) for one in options.templates)}"
    else:
        where = f"of the text in isolation, special tokens {'counted' if options.special_tokens else 'left out'}"
    return f"mean of {layer} over the word pieces {where}"


def _digest(model: PreTrainedModel, tokenizer: str, options: Options) -> str:
    """Return a hash of a model and its options: of the weights, not of their files."""
    configuration = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    told = [
        type(model).__name__,
        configuration,
        tokenizer,
        asdict(options),
    ]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in sorted((name, tensor) for name, tensor in model.state_dict().items() if POOLER not in name):
        content = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {content.dtype} {tuple(content.shape)}".encode())
        digest.update(content.view(-1).numpy().data)
    return digest.hexdigest()

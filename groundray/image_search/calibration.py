"""What matches are usual in a pool of images: the colour scale of match maps, and whether a word is in a picture.

    FOLDER/KEY/matches-KEY.bin      features of all positions of a sample of the pool's images, float16
    FOLDER/KEY/matches-KEY.json     the scale, the shape, and the seal of the file; written last

They lie beside the index (`index.py`), and are made once for a model and a pool, with a fixed seed. KEY is a hash of
what they depend on, so that they are never stale. A match has no meaning by itself: one model's matches of words that
are in no picture are near 0, another's near .5. So that a colour means the same on every picture, the scale begins
where 95 % of random words' matches at random positions end, and ends at the 99th percentile of their best matches.

A word is compared with itself: its best match on a picture with those on the sampled images, on most of which it is
absent (Efron 2004, "Large-scale simultaneous hypothesis testing", estimates a null distribution from the data in the
same way). It is *absent* if its best match is below the median, and in a word that most images show below the valley
between the two groups (Otsu 1979). It is *present* if its best match is above what 95 % of images without it give,
where their distribution is taken to be normal, with the median as its mean, and its deviation read off its lower half,
where no image with the word is. Between the two it is *unclear*, and so are words whose best match is nearly the same
on all images, by itself or in its text: in a text, a model gives function words the meaning of their neighbours.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Integer
from tokenizers import Tokenizer

from groundray.data import image_decoder
from groundray.data.row_groups import read_rows
from groundray.data.schema import Dataset
from groundray.data.tokenization import whole_words
from groundray.image_search.explain import DecodedPicture, Match, Matcher
from groundray.image_search.index import Index, Tell
from groundray.image_search.towers import Towers
from groundray.storage.cache_key import cache_key
from groundray.storage.folder import Folder
from groundray.storage.made_once import made_once
from groundray.storage.seals import FileSeal

IMAGES, WORDS = 256, 256  # that are sampled at most
MAX_NUMBERS = 2**24  # of all sampled images: 32 MB in the file, 64 MB in memory
ROW_GROUPS = 64  # that the images are read from at most
VOCABULARY = 3_000  # words of the tokenizer, the most frequent first, of which the sample is drawn
BATCH = 16
FORMAT = 1  # of the file; increment it when its content changes
REPAIR = "delete it, and the next search makes it again"
SCALE = (0.95, 0.99)  # quantiles at its ends: of matches at all positions, and of best matches
FALSE_ALARMS = 0.05  # fraction of images without a word on which it is said to be present
DEVIATIONS = 1.645  # of a normal distribution, above which FALSE_ALARMS of it lie
BELOW = 0.16  # quantile that lies one deviation below a normal distribution's mean
MIN_IMAGES = 20  # fewer say nothing about a word
MAX_KNOWN = 10_000  # words that are remembered
MIN_SPREAD = 0.25  # smallest deviation of a word's best matches, as a fraction of the scale, that says something

Presence = Literal["present", "absent", "unclear"]


@dataclass(frozen=True)
class WordPresence:
    """Whether a word is in a picture, and by what.

    Attributes:
        percentile: percentage of the sampled images on which the word's best match is lower.
        absent_below, present_from: best matches at which the word counts as absent and as present; None where nothing
            can be said about it on any picture.
    """

    presence: Presence
    percentile: float
    absent_below: float | None
    present_from: float | None


@dataclass(frozen=True)
class Calibration:
    """The usual matches in a pool of images.

    Attributes:
        low, high: ends of the colour scale of match maps.
        positions: features of all positions of the sampled images.
    """

    low: float
    high: float
    positions: Float32[np.ndarray, "image position dim"]
    _known: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)  # which words say something

    @staticmethod
    def open(matcher: Matcher, towers: Towers, index: Index, tell: Tell) -> Calibration:
        """Open the calibration of a model and a pool. It is made if it is missing or damaged, in seconds; in memory
        alone where the folder of the index cannot be written to.

        Args:
            tell: receives lines for the user.
        """
        key = cache_key(
            {
                "images": index.images.fingerprint,
                "images_by": matcher.fingerprint(),
                "words_by": matcher.text_fingerprint(),
            },
            code=(image_decoder, *matcher.code, *matcher.text_code, measure, sample_rows, sample_words),
            device="cpu",
            stored="float16",
        )
        folder, name = index.folder, f"matches-{key[:16]}"

        def measured() -> Calibration:
            return measure(matcher, towers.backend, index.images)

        try:
            return made_once(
                folder,
                name,
                (f"{name}.bin", f"{name}.json"),
                lambda: _read(folder, name, key),
                lambda: _write(folder, name, key, measured()),
                tell,
            )
        except OSError as error:
            tell(f"usual matches are computed at each start, since they cannot be kept: {error}")
            return measured()

    def judge(
        self, words: Float32[np.ndarray, "word dim"], scores: Float[np.ndarray, " word"]
    ) -> tuple[WordPresence, ...]:
        """Return whether words are in a picture.

        Args:
            words: their features (`WordFeatures.features`).
            scores: their best matches on the picture.
        """
        best = best_matches(self.positions, words)
        absent, present = thresholds(best)
        percentiles = 100 * (best < scores).mean(axis=0)
        columns = (self._differ(best), scores, percentiles, absent, present)
        return tuple(_judge(*of_word) for of_word in zip(*(column.tolist() for column in columns), strict=True))

    def says_something(self, matcher: Matcher, word: str) -> bool:
        """Return whether a word by itself matches some images better than others; punctuation does not. Within a text
        a model may give any word the meaning of its neighbours."""
        if word not in self._known:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[word] = any(map(str.isalnum, word)) and bool(
                self._differ(best_matches(self.positions, matcher.word_features(word).features)).any()
            )
        return self._known[word]

    def _differ(self, best: Float32[np.ndarray, "image word"]) -> Bool[np.ndarray, " word"]:
        """Return which words' best matches differ enough between enough images to say something."""
        return (best.std(axis=0) >= MIN_SPREAD * (self.high - self.low)) & (len(best) >= MIN_IMAGES)


def explain(
    matcher: Matcher, calibration: Calibration, text: str, picture: DecodedPicture
) -> tuple[Match, tuple[WordPresence, ...]]:
    """Return the match maps of a text on a decoded picture, and whether each of its words is in it. Nothing is
    said of a word that by itself says nothing (`Calibration.says_something`).

    Raises:
        BadQuery: the text has no words.
    """
    match = matcher.match(text, picture)
    scores = np.array([word.score for word in match.words])
    judged = calibration.judge(np.stack([word.features for word in match.words]), scores)
    return match, tuple(
        found
        if calibration.says_something(matcher, word.text)
        else WordPresence("unclear", found.percentile, None, None)
        for word, found in zip(match.words, judged, strict=True)
    )


def measure(matcher: Matcher, tokenizer: Tokenizer, images: Dataset) -> Calibration:
    """Return the calibration of a model and a pool of images.

    Raises:
        ValueError: an image cannot be decoded or a row group is damaged.
    """
    encoded = read_rows(images, sample_rows(images.group_sizes), ["image"])["image"].to_pylist()
    positions: list[np.ndarray] = []
    while len(positions) * BATCH < len(encoded):
        start = len(positions) * BATCH
        pixels = [matcher.preprocess(picture) for picture in encoded[start : start + BATCH]]
        positions.append(matcher.position_features(np.stack(pixels)).astype(np.float16))
        _, count, width = positions[0].shape
        del encoded[MAX_NUMBERS // (count * width) :]
    features = np.concatenate(positions).astype(np.float32)
    words = np.concatenate([matcher.word_features(word).features for word in sample_words(tokenizer)])
    matches = features @ words.T
    low, high = np.quantile(matches, SCALE[0]), np.quantile(matches.max(axis=1), SCALE[1])
    return Calibration(float(low), float(high), features)


def best_matches(
    positions: Float32[np.ndarray, "image position dim"], words: Float32[np.ndarray, "word dim"]
) -> Float32[np.ndarray, "image word"]:
    """Return the match of each word at its best position of each image."""
    images, count, width = positions.shape
    return (positions.reshape(-1, width) @ words.T).reshape(images, count, -1).max(axis=1)


def thresholds(
    best: Float[np.ndarray, "image word"],
) -> tuple[Float[np.ndarray, " word"], Float[np.ndarray, " word"]]:
    """Return the best matches below which each word counts as absent, and from which on as present.

    Args:
        best: those on random images, some of which may show the word.
    """
    middle, lower = np.quantile(best, [0.5, BELOW], axis=0)
    absent = np.minimum(middle, [valley(column) for column in best.T])
    return absent, middle + DEVIATIONS * (middle - lower)


def valley(values: Float[np.ndarray, " value"]) -> float:
    """Return the value between two groups of values where the variance within the groups is smallest (Otsu 1979)."""
    ordered = np.sort(values).astype(np.float64)
    if len(ordered) < 2:
        return float(ordered[0])
    sums, counts = np.cumsum(ordered), np.arange(1, len(ordered))
    lower, upper = sums[:-1] / counts, (sums[-1] - sums[:-1]) / counts[::-1]
    cut = int(np.argmax(counts * counts[::-1] * (upper - lower) ** 2))
    return float(ordered[cut : cut + 2].mean())


def sample_rows(group_sizes: Integer[np.ndarray, " group"]) -> Integer[np.ndarray, " row"]:
    """Return the rows of the sampled images: IMAGES of them, of at most ROW_GROUPS row groups, with a fixed seed.

    Args:
        group_sizes: number of images in each row group of the pool.
    """
    random = np.random.default_rng(0)
    groups = [range(end - size, end) for end, size in zip(np.cumsum(group_sizes).tolist(), group_sizes, strict=True)]
    drawn = random.permutation(len(groups))[:ROW_GROUPS].tolist()
    return random.permutation(np.concatenate([np.array(groups[group]) for group in sorted(drawn)]))[:IMAGES]


def sample_words(tokenizer: Tokenizer) -> list[str]:
    """Return WORDS frequent words of a tokenizer, drawn with a fixed seed; fewer if it has fewer."""
    words = whole_words(tokenizer)[:VOCABULARY] or list(string.ascii_lowercase)
    return [words[index] for index in np.random.default_rng(0).permutation(len(words))[:WORDS]]


def _judge(tells: bool, score: float, percentile: float, absent_below: float, present_from: float) -> WordPresence:
    if not tells:
        return WordPresence("unclear", percentile, None, None)
    presence = "absent" if score < absent_below else "present" if score >= present_from else "unclear"
    return WordPresence(presence, percentile, absent_below, present_from)


def _read(folder: Folder, name: str, key: str) -> Calibration:
    about = folder.read_sealed(f"{name}.json", repair=REPAIR)
    if (about.get("format"), about.get("key")) != (FORMAT, key):
        raise FileNotFoundError(f"{folder}/{name}.json is not of this model and pool")
    folder.verify(f"{name}.bin", FileSeal.parse(about["file"]), REPAIR)
    positions = np.frombuffer(folder.read_bytes(f"{name}.bin"), "<f2").reshape(about["shape"])
    return Calibration(about["low"], about["high"], positions.astype(np.float32))


def _write(folder: Folder, name: str, key: str, found: Calibration) -> None:
    content = found.positions.astype("<f2").tobytes()
    folder.write_bytes(f"{name}.bin", content)
    about = {"format": FORMAT, "key": key, "low": found.low, "high": found.high, "shape": found.positions.shape}
    folder.write_sealed(f"{name}.json", {**about, "file": FileSeal.of(content).as_json()})

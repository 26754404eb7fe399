"""Object stores: how one is opened, for how long its answers are waited for, and what its errors mean to a person."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import pyarrow.fs as pafs


class RetryPolicy(NamedTuple):
    """For how long a store is waited for: attempts, and the seconds of each in which nothing comes.

    Between attempts of S3 the pause doubles, up to 20 s.
    """

    attempts: int
    timeout_s: float


PROBE_POLICY = RetryPolicy(2, 3.0)  # before anything has started, and somebody waits at the command line
RUN_POLICY = RetryPolicy(8, 20.0)  # a store that is restarted, or has too much to do, ends no run: about a minute
MISSING = re.compile(r"NO_SUCH_BUCKET|Bucket '.*' not found|google::cloud::Status\(NOT_FOUND")
REFUSED = re.compile(
    r"ACCESS_DENIED|ACCESS_KEY|SIGNATURE|TOKEN|CREDENTIAL|OAuth2|PERMISSION_DENIED|UNAUTHENTICATED|code: 40[13]"
)
# what pyarrow tells besides: which operation on which key, by which request
NOISE = re.compile(r"^.*(with a last message of|Details:) |^.*?(?=AWS Error )| \(Request ID.*| error_info=.*|[.: ]*$")


@dataclass(frozen=True)
class StoreKind:
    """A kind of object store.

    Attributes:
        open: pyarrow's filesystem for a bucket.
        cloud: who is asked, where no variable names another endpoint.
        endpoints: those variables; of several that are set, the first counts.
        credentials: how a person gives them.
    """

    open: Callable[[str, RetryPolicy], pafs.FileSystem]
    cloud: str
    endpoints: tuple[str, ...]
    credentials: str

    @property
    def variable(self) -> str | None:
        """The variable that names an endpoint."""
        return next((name for name in self.endpoints if os.environ.get(name)), None)

    @property
    def endpoint(self) -> str:
        """Who is asked."""
        return os.environ[self.variable] if self.variable else self.cloud


def _s3(bucket: str, retries: RetryPolicy) -> pafs.FileSystem:
    endpoint = KINDS["s3"].endpoint if KINDS["s3"].variable else None
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=None if endpoint else pafs.resolve_s3_region(bucket),
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=retries.attempts),
        connect_timeout=retries.timeout_s,
        request_timeout=retries.timeout_s,
        allow_delayed_open=True,  # a small file is one request, not three
    )


def _gcs(bucket: str, retries: RetryPolicy) -> pafs.FileSystem:
    return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=retries.attempts * retries.timeout_s))


KINDS = {
    "s3": StoreKind(
        _s3,
        "AWS (AWS_ENDPOINT_URL is not set)",
        ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or a role of the machine",
    ),
    "gs": StoreKind(
        _gcs,
        "Google Cloud Storage",
        ("CLOUD_STORAGE_EMULATOR_ENDPOINT",),
        "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`, or the machine's account",
    ),
}


def is_store(url: str) -> bool:
    """Whether a URL is one of an object store."""
    return url.partition("://")[0] in KINDS


def open_store(url: str, retries: RetryPolicy = RUN_POLICY) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a store's URL, and the path on it.

    Raises:
        ValueError: it is not `SCHEME://BUCKET/FOLDER`.
        OSError: its region cannot be found out.
    """
    scheme, _, path = url.partition("://")
    bucket, _, inside = path.partition("/")
    if not re.fullmatch(r"[\w.\-]+", bucket) or "?" in inside:  # what it is may be a key, and is not repeated
        raise ValueError(
            f"expected {scheme}://BUCKET/FOLDER and nothing besides, got a URL with more or less: endpoint, region and "
            f"keys are taken from the environment, for URLs are printed and logged ({KINDS[scheme].credentials})"
        )
    try:
        return KINDS[scheme].open(bucket, retries), path
    except OSError as error:
        raise readable_error(error, url) from None


def probe(url: str) -> None:
    """See whether a store answers, knows the bucket and lets us list it; within seconds.

    Raises:
        OSError: it does not; the message says what to do.
    """
    filesystem, path = open_store(url, PROBE_POLICY)
    try:
        filesystem.get_file_info(pafs.FileSelector(f"{path.rstrip('/')}/.groundray", allow_not_found=False))
    except OSError as error:
        nothing = isinstance(error, FileNotFoundError) or "No such file" in str(error)
        if not nothing or MISSING.search(str(error)):
            raise readable_error(error, url) from None


def readable_error(error: OSError, url: str) -> OSError:
    """A store's error in words for a person, in one line."""
    scheme, _, path = url.partition("://")
    kind, bucket, text = KINDS[scheme], path.partition("/")[0], " ".join(str(error).split())
    if MISSING.search(text):
        return OSError(f"{url}: {kind.endpoint} has no bucket {bucket}: create it, or mend the URL")
    reason = NOISE.sub("", text)
    if REFUSED.search(text):
        return OSError(
            f"{url}: expected credentials that may list, read and write it, got {reason}: give others "
            f"({kind.credentials})"
        )
    repair = f"see to the network, and to {kind.variable}" if kind.variable else "see to the network"
    return OSError(f"{url}: expected an answer of {kind.endpoint}, got {reason}: {repair}")

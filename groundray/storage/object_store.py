"""Object stores: how a store is opened, how often its requests are retried, and its errors in one readable line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import pyarrow.fs as pafs

from groundray.credentials import redacted


class RetryPolicy(NamedTuple):
    """Number of attempts, and the timeout of each in seconds.

    Between attempts S3's client waits twice as long each time, up to 20 s.
    """

    attempts: int
    timeout_s: float


PROBE_POLICY = RetryPolicy(2, 3.0)  # before a command starts, while its user waits
RUN_POLICY = RetryPolicy(8, 20.0)  # about a minute: a store that restarts or is overloaded does not end a run

# pyarrow raises a plain OSError for every failure, so errors are told apart by their text
MISSING_BUCKET = re.compile(r"NO_SUCH_BUCKET|Bucket '.*' not found|google::cloud::Status\(NOT_FOUND")
ACCESS_DENIED = re.compile(
    r"ACCESS_DENIED|ACCESS_KEY|SIGNATURE|TOKEN|CREDENTIAL|OAuth2|PERMISSION_DENIED|UNAUTHENTICATED|code: 40[13]"
)
DENIED = re.compile(r"ACCESS_DENIED|PERMISSION_DENIED")  # of one object, where credentials are valid
# the operation, key and request id that surround the cause
NOISE = re.compile(r"^.*(with a last message of|Details:) |^.*?(?=AWS Error )| \(Request ID.*| error_info=.*|[.: ]*$")


class Refused(OSError):
    """A store answers that it has no such bucket, or that something of it may not be read."""


@dataclass(frozen=True)
class StoreKind:
    """A kind of object store.

    Attributes:
        open: returns pyarrow's filesystem for a bucket.
        cloud: name of the provider, for messages where no variable sets an endpoint.
        endpoint_variables: environment variables that set an endpoint; the first that is set counts.
        credentials: how to give credentials, for messages.
    """

    open: Callable[[str, RetryPolicy], pafs.FileSystem]
    cloud: str
    endpoint_variables: tuple[str, ...]
    credentials: str

    @property
    def variable(self) -> str | None:
        """The environment variable that sets the endpoint, or None."""
        return next((name for name in self.endpoint_variables if os.environ.get(name)), None)

    @property
    def endpoint(self) -> str:
        """The endpoint if one is set, otherwise the name of the provider. It may have a secret."""
        return os.environ[self.variable] if self.variable else self.cloud


def _s3(bucket: str, retries: RetryPolicy) -> pafs.FileSystem:
    endpoint = KINDS["s3"].endpoint if KINDS["s3"].variable else None
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=None if endpoint else pafs.resolve_s3_region(bucket),
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=retries.attempts),
        connect_timeout=retries.timeout_s,
        request_timeout=retries.timeout_s,
        allow_delayed_open=True,  # a small file takes one request, not three
    )


def _gcs(bucket: str, retries: RetryPolicy) -> pafs.FileSystem:
    return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=retries.attempts * retries.timeout_s))


KINDS = {
    "s3": StoreKind(
        _s3,
        "AWS (AWS_ENDPOINT_URL is not set)",
        ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or the machine's role",
    ),
    "gs": StoreKind(
        _gcs,
        "Google Cloud Storage",
        ("CLOUD_STORAGE_EMULATOR_ENDPOINT",),
        "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`, or the machine's account",
    ),
}


def is_store(url: str) -> bool:
    """Return True if a URL names an object store."""
    return url.partition("://")[0] in KINDS


def open_store(url: str, retries: RetryPolicy = RUN_POLICY) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a store's URL, and the path on it.

    Raises:
        ValueError: the URL is not of the form `SCHEME://BUCKET/FOLDER`.
        OSError: the bucket's region cannot be resolved.
    """
    scheme, _, path = url.partition("://")
    bucket, _, key = path.partition("/")
    if not re.fullmatch(r"[\w.\-]+", bucket) or "?" in key:  # the rest may be a secret, so the URL is not shown
        raise ValueError(
            f"expected {scheme}://BUCKET/FOLDER and nothing else, got a URL with other parts: set endpoint, region and "
            f"keys in the environment, because URLs are printed and logged ({KINDS[scheme].credentials})"
        )
    try:
        return KINDS[scheme].open(bucket, retries), path
    except OSError as error:
        raise readable_error(error, url) from None


def probe(url: str) -> None:
    """Check within seconds that a store answers, that its bucket exists and that it may be listed.

    Raises:
        OSError: one of these does not hold; the message has the repair.
    """
    filesystem, path = open_store(url, PROBE_POLICY)
    try:
        filesystem.get_file_info(pafs.FileSelector(f"{path.rstrip('/')}/.groundray", allow_not_found=False))
    except OSError as error:
        no_such_folder = isinstance(error, FileNotFoundError) or "No such file" in str(error)
        if not no_such_folder or MISSING_BUCKET.search(str(error)):
            raise readable_error(error, url) from None


def readable_error(error: OSError, url: str) -> OSError:
    """Return a store's error with a message of one line: expected, got and the repair, without secrets."""
    kind = Refused if MISSING_BUCKET.search(str(error)) or DENIED.search(str(error)) else OSError
    return kind(redacted(_readable(error, url)))


def _readable(error: OSError, url: str) -> str:
    scheme, _, path = url.partition("://")
    kind, bucket, text = KINDS[scheme], path.partition("/")[0], " ".join(str(error).split())
    if MISSING_BUCKET.search(text):
        return f"{url}: {kind.endpoint} has no bucket {bucket}: create it, or correct the URL"
    cause = NOISE.sub("", text)
    if ACCESS_DENIED.search(text):
        return (
            f"{url}: expected credentials that may list, read and write it, got {cause}: give others "
            f"({kind.credentials})"
        )
    repair = f"check the network and {kind.variable}" if kind.variable else "check the network"
    return f"{url}: expected an answer from {kind.endpoint}, got {cause}: {repair}"

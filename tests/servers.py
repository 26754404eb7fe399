"""Object store servers on loopback for tests: S3's and Google's protocols, each in a process of its own.

The S3 server checks keys and signatures, and its one key has exactly the rights of the policy in cluster/README.md.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

BUCKET, NO_BUCKET = "groundray-tests", "no-such-bucket"
START_SECONDS = 120  # on a busy machine
PAGE = Path(__file__).parents[1] / "cluster" / "README.md"


@dataclass(frozen=True)
class Server:
    """A store with an empty bucket.

    Attributes:
        environment: environment variables of a process that may read and write it.
    """

    scheme: str
    environment: dict[str, str]
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def folder(self) -> str:
        """Return the URL of an unused folder."""
        return f"{self.scheme}://{BUCKET}/folder-{next(self._numbers)}"

    def use(self, monkeypatch: pytest.MonkeyPatch, **change: str) -> None:
        """Make this process use the store, with some variables changed."""
        for name, value in {**self.environment, **change}.items():
            monkeypatch.setenv(name, value)


@contextlib.contextmanager
def s3() -> Iterator[Server]:
    """Yield a server of S3's protocol."""
    setup_requests = 4  # without a key: create bucket, user, key and policy
    with _process(
        ["-m", "moto.server", "-H", "127.0.0.1"], INITIAL_NO_AUTH_ACTION_COUNT=str(setup_requests)
    ) as endpoint:
        nobody: dict[str, Any] = {
            "endpoint_url": endpoint,
            "region_name": "us-east-1",
            "aws_access_key_id": "nobody",
            "aws_secret_access_key": "nothing",
        }
        boto3.client("s3", **nobody).create_bucket(Bucket=BUCKET)
        iam = boto3.client("iam", **nobody)
        iam.create_user(UserName="groundray")
        key = iam.create_access_key(UserName="groundray")["AccessKey"]
        iam.put_user_policy(UserName="groundray", PolicyName="bucket", PolicyDocument=json.dumps(_policy()))
        yield Server(
            "s3",
            {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
                "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
                "AWS_EC2_METADATA_DISABLED": "true",  # otherwise a client without a key asks the machine for one
            },
        )


@contextlib.contextmanager
def gs(folder: Path) -> Iterator[Server]:
    """Yield a server of Google Cloud Storage's protocol, after writing a key file to a folder."""
    command = ["-m", "gcp_storage_emulator", "start", "--host=127.0.0.1", "--in-memory"]
    with _process([*command, f"--default-bucket={BUCKET}"]) as endpoint:
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        account = {
            "type": "service_account",
            "project_id": "groundray",
            "private_key_id": "1",
            "private_key": private.decode(),
            "client_email": "tests@groundray.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": "https://oauth2.googleapis.com/token",
        }
        key = folder / "account.json"
        key.write_text(json.dumps(account))
        yield Server("gs", {"CLOUD_STORAGE_EMULATOR_ENDPOINT": endpoint, "GOOGLE_APPLICATION_CREDENTIALS": str(key)})


def _policy() -> dict[str, Any]:
    """Return the bucket policy of the page, with the actions that moto needs."""
    (text,) = re.findall(r"^bucket='(\{.*?\})'$", PAGE.read_text().replace("BUCKET", BUCKET), re.DOTALL | re.MULTILINE)
    policy = json.loads(text)
    page, none = [f"arn:aws:s3:::{BUCKET}"], [f"arn:aws:s3:::{NO_BUCKET}", f"arn:aws:s3:::{NO_BUCKET}/*"]
    policy["Statement"] += [
        # moto checks these on the bucket; AWS checks s3:ListBucket, and s3:DeleteObject on its objects
        {"Effect": "Allow", "Action": ["s3:HeadBucket", "s3:DeleteObject*"], "Resource": page},
        # AWS reports a missing bucket to everyone, moto only to those with rights to it
        {"Effect": "Allow", "Action": "s3:*", "Resource": none},
    ]
    return policy


@contextlib.contextmanager
def _process(arguments: list[str], **environment: str) -> Iterator[str]:
    """Run a server and yield its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *arguments, f"--port={port}"]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output)
        try:
            until = time.monotonic() + START_SECONDS
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > until:
                    output.seek(0)
                    raise RuntimeError(f"{' '.join(command)} does not answer:\n{output.read().decode()}")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False

"""Object stores on loopback for tests: S3's and Google's protocols, each spoken by a process of its own.

S3's checks keys and signatures, and its one key may do what the policy in cluster/README.md allows and no more.
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
START_SECONDS = 120  # on a machine that has much to do
PAGE = Path(__file__).parents[1] / "cluster" / "README.md"


@dataclass(frozen=True)
class Server:
    """A store with an empty bucket.

    Attributes:
        environment: of a process that may read and write it.
    """

    scheme: str
    environment: dict[str, str]
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def folder(self) -> str:
        """The URL of a folder that nobody has used."""
        return f"{self.scheme}://{BUCKET}/folder-{next(self._numbers)}"

    def use(self, monkeypatch: pytest.MonkeyPatch, **change: str) -> None:
        """Have this process use it, with some variables changed."""
        for name, value in {**self.environment, **change}.items():
            monkeypatch.setenv(name, value)


@contextlib.contextmanager
def s3() -> Iterator[Server]:
    """A server of S3's protocol."""
    made = 4  # requests without a key: bucket, user, key and policy are made
    with _process(["-m", "moto.server", "-H", "127.0.0.1"], INITIAL_NO_AUTH_ACTION_COUNT=str(made)) as endpoint:
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
                "AWS_EC2_METADATA_DISABLED": "true",  # else whoever has no key asks the machine for one
            },
        )


@contextlib.contextmanager
def gs(folder: Path) -> Iterator[Server]:
    """A server of Google Cloud Storage's protocol; a key file is written to a folder."""
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
    """What the page lets machines do with the bucket."""
    (text,) = re.findall(r"^bucket='(\{.*?\})'$", PAGE.read_text().replace("BUCKET", BUCKET), re.DOTALL | re.MULTILINE)
    policy = json.loads(text)
    page, none = [f"arn:aws:s3:::{BUCKET}"], [f"arn:aws:s3:::{NO_BUCKET}", f"arn:aws:s3:::{NO_BUCKET}/*"]
    policy["Statement"] += [
        # moto asks for these of the bucket, AWS for s3:ListBucket and for s3:DeleteObject of what is in it
        {"Effect": "Allow", "Action": ["s3:HeadBucket", "s3:DeleteObject*"], "Resource": page},
        # AWS tells everybody that there is no such bucket, moto those who might use it
        {"Effect": "Allow", "Action": "s3:*", "Resource": none},
    ]
    return policy


@contextlib.contextmanager
def _process(words: list[str], **environment: str) -> Iterator[str]:
    """The address of a server, while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *words, f"--port={port}"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=said, stderr=said)
        try:
            until = time.monotonic() + START_SECONDS
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > until:
                    said.seek(0)
                    raise RuntimeError(f"{' '.join(command)} does not answer:\n{said.read().decode()}")
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

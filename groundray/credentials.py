"""Decides what a secret in a URL is: settings refuse it, and everything that is written or printed hides it.

Settings are written to `config.yaml`, to the model card, to MLflow and to the trials of a sweep, and URLs are printed.
Secrets therefore belong in the environment, which is never written.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"
TRACKING_URI, WANDB_KEY = "MLFLOW_TRACKING_URI", "WANDB_API_KEY"
# their values are hidden wherever they occur, as in an error of a library
SECRET_VARIABLES = (
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "RAY_AUTH_TOKEN", WANDB_KEY),
)
URL_VARIABLES = (
    *(TRACKING_URI, "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "CLOUD_STORAGE_EMULATOR_ENDPOINT"),
    "HF_ENDPOINT",
)
MIN_LENGTH = 6  # of a secret that is hidden outside URLs: a shorter one may be a part of any word
SCHEME = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*://)"
URL = re.compile(rf"{SCHEME}(?P<rest>[^\s'\"<>`]*)")
WHOLE_URL = re.compile(rf"\s*{SCHEME}(?P<rest>.*)", re.DOTALL)  # of a value, in which a password may have spaces
# USER:PASSWORD@HOST without a scheme; an address of mail, and an image's tag and digest, are none
BARE = re.compile(
    r"(?<![\w/:.@%+~-])(?!mailto:)[\w.+%~-]+:[^\s/'\"<>`]+@"
    r"(?P<place>(?:\[[0-9A-Fa-f:.]+\]|localhost|[A-Za-z\d-]+(?:\.[A-Za-z\d-]+)+|[A-Za-z][\w-]*(?=/|:\d+(?:[/\s]|$))))"
)
SECRET_WORDS = {"key", "sig", "signature", "auth", "authorization", "pwd", "sas", "credential", "credentials", "cred"}
SECRET_PARTS = ("pass", "secret", "token", "accesskey", "apikey", "signature", "credential")
NO_SECRETS = {"sslkey", "keyfile"}  # paths of files
REPAIR = (
    "give s3://BUCKET/FOLDER or https://HOST/PATH; secrets belong in the environment: MLFLOW_TRACKING_USERNAME and "
    f"MLFLOW_TRACKING_PASSWORD, or the whole {TRACKING_URI}, for MLflow; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "or GOOGLE_APPLICATION_CREDENTIALS, for a store"
)


def has_secret(text: str) -> bool:
    """Return True if a text has a URL with a password, a token or a signature."""
    return bool(BARE.search(text)) or any(_hide(match, "") != match[0].lstrip() for match in _urls(text))


def refusal(text: str) -> str | None:
    """Return why a setting or option cannot have this value, without the value; None if it has no secret."""
    if not has_secret(text):
        return None
    shown = _replaced(_pattern(text), text, HIDDEN)
    return f"expected a URL without a password, token or key, got {shown}: {REPAIR}"


def without_secrets(url: str) -> str:
    """Return a URL without its user, password and secret parameters, which a client takes from the environment."""
    return _replaced(_pattern(url), url, "")


def redacted(text: str) -> str:
    """Return a text to print or write: `***` instead of the secrets of its URLs and of the environment."""
    text = _replaced(URL, text, HIDDEN)
    for secret in _environment_secrets():
        text = text.replace(secret, HIDDEN)
    return text


def _pattern(value: str) -> re.Pattern[str]:
    """Return the pattern of the URLs of a value: of the only one that it is, or of several in a text."""
    return WHOLE_URL if WHOLE_URL.match(value) else URL


def _replaced(pattern: re.Pattern[str], text: str, hidden: str) -> str:
    """Return a text with `hidden` in place of the secrets of its URLs, with a scheme and without."""
    text = pattern.sub(lambda match: _hide(match, hidden), text)
    return BARE.sub(lambda match: f"{hidden}@{match['place']}" if hidden else match["place"], text)


def _urls(value: str) -> list[re.Match[str]]:
    return [*URL.finditer(value), *WHOLE_URL.finditer(value)]


def _environment_secrets() -> list[str]:
    """Return the secrets of the environment, longest first."""
    secrets = {os.environ.get(name, "") for name in SECRET_VARIABLES}
    for name in URL_VARIABLES:
        for match in _urls(os.environ.get(name, "")):
            user, password, _ = _split(match["rest"])
            secrets |= {secret for text in (password, user if not password else "") for secret in (text, unquote(text))}
            for parameter in re.split(r"[?&;#]", match["rest"])[1:]:
                key, _, value = parameter.partition("=")
                secrets |= {value, unquote_plus(value)} if _is_secret(unquote(key)) else set()
    return sorted((secret for secret in secrets if len(secret) >= MIN_LENGTH), key=len, reverse=True)


def _hide(match: re.Match[str], hidden: str) -> str:
    """Return a matched URL with `hidden` in place of what is secret, or without it if that is empty."""
    scheme, rest = match["scheme"], match["rest"]
    user, password, location = _split(rest)
    if password or (user and scheme.lower() in ("http://", "https://")):
        rest = f"{hidden}@{location}" if hidden else location
    rest, *fragment = rest.split("#", 1)
    rest, *query = rest.split("?", 1)
    path, *matrix = rest.split(";", 1)
    parts = ((";", matrix), ("?", query), ("#", fragment))
    return scheme + path + "".join(_parameters(mark, text, hidden) for mark, texts in parts for text in texts)


def _parameters(mark: str, text: str, hidden: str) -> str:
    """Return the parameters of a URL after a mark, with `hidden` in place of secret ones, or without these if it is
    empty; empty if none is left."""
    pieces = re.split(r"([&;])", text)
    kept: list[str] = []
    for before, parameter in zip(["", *pieces[1::2]], pieces[::2], strict=True):
        name, _, value = parameter.partition("=")
        if not (_is_secret(unquote(name)) and value):
            kept.append((before if kept else mark) + parameter)
        elif hidden:
            kept.append((before if kept else mark) + f"{name}={hidden}")
    return "".join(kept)


def _split(rest: str) -> tuple[str, str, str]:
    """Return user, password and location of what follows `://`; a password may have any characters."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in rest and "@" not in authority and re.search(r":(?!\d*$)", authority) and not authority.startswith("["):
        # what follows the colon is no port, but a password with a slash
        before, _, location = rest.rpartition("@")
        user, _, password = before.partition(":")
        return user, password, location
    user, at, _ = authority.rpartition("@")
    if not at:
        return "", "", rest
    user, _, password = user.partition(":")
    return user, password, rest[len(authority.rpartition("@")[0]) + 1 :]


def _is_secret(name: str) -> bool:
    words = re.split(r"[-_.\s]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    joined = "".join(words)
    if joined in NO_SECRETS:
        return False
    return bool(SECRET_WORDS & set(words)) or any(part in joined for part in SECRET_PARTS)

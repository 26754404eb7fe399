"""What a secret in a URL is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from groundray.credentials import has_secret, redacted, refusal, without_secrets

SECRET = "hush-hush-7"
WITH = [
    f"https://user:{SECRET}@mlflow.example/path",
    f"https://{SECRET}@mlflow.example",  # a token as the user
    f"postgresql://mlflow:{SECRET}@db.example:5432/mlflow",
    f"postgresql+psycopg2://mlflow:{SECRET}@db.example/mlflow?sslmode=require",
    f"s3://key:{SECRET}@bucket/folder",
    f"s3://bucket/folder?access_key=abc&secret_key={SECRET}",
    f"https://store.example/x?sig={SECRET}&se=2026",
    f"https://store.example/x?X-Amz-Signature={SECRET}",
    f"https://store.example/x?accessKeyId={SECRET}",
    f"http://host/x?token={SECRET}#part",
    f"https://user:pa/ss{SECRET}@host/x",
    f"https://user:{SECRET}@@host/x",
    f"https://user:two words {SECRET}@host/x",
    f"https://user:'quoted'{SECRET}@host/x",
    f"mysql://root:{SECRET}@[::1]:3306/x",
    f"https://host/x;token={SECRET}",
    f"https://host/x;v=1;token={SECRET}/deeper?y=1",
    f"https://host/x?y=1;token={SECRET}",
    f"https://host/x#access_token={SECRET}",
    f"https://host/x?y=1#part&token={SECRET}",
    f"user:{SECRET}@mlflow.example/path",  # without a scheme
    f"user:{SECRET}@host/path",
    f"user:{SECRET}@localhost:5000",
    f"user:{SECRET}@127.0.0.1",
]
WITHOUT = [
    "https://mlflow.example:5000/path?x=1",
    "http://[::1]:5000",
    "http://127.0.0.1:9",
    "sqlite:////data/mlflow.db",
    "postgresql://mlflow@db.example/mlflow?sslkey=/etc/key.pem",
    "s3://bucket/design=3/keys",
    "runs/o'brien",
    "https://host/x?design=3&monkey=2",
    "https://host/path@version",
    "https://host/x;v=1?&y=1&;z#part=2",
    "mailto:someone@example.org",
    "git@example.org:team/project",
    "ghcr.io/team/image:1.2@sha256:0123456789abcdef",
    "image:1.2@sha256:0123456789abcdef",
    "C:/Users/me@home/x",
    "grounding/text_to_image/recall@10: 0.5",
    "expected an answer from http://127.0.0.1:33151, got (http://localhost:80) or http://HOST:PORT.",
]


@pytest.mark.parametrize("url", WITH)
def test_a_secret_is_seen_hidden_and_removed(url: str) -> None:
    assert has_secret(url)
    for text in (without_secrets(url), refusal(url)):
        assert text is not None
        assert SECRET not in text
    if not {" ", "'"} & set(url):  # such a URL has no end in a text
        assert SECRET not in redacted(f"cannot reach {url}: refused")
        assert "***" in redacted(url)
        assert redacted(redacted(url)) == redacted(url)
    assert not has_secret(without_secrets(url))


@pytest.mark.parametrize("url", WITHOUT)
def test_a_url_without_a_secret_is_left_as_it_is(url: str) -> None:
    assert not has_secret(url)
    assert refusal(url) is None
    assert redacted(url) == url == without_secrets(url)


def test_the_place_of_a_url_is_still_named() -> None:
    assert redacted(f"postgresql://mlflow:{SECRET}@db.example:5432/mlflow") == "postgresql://***@db.example:5432/mlflow"
    assert without_secrets(f"https://a:{SECRET}@host/x?sig={SECRET}&y=1") == "https://host/x?y=1"
    assert without_secrets(f"https://host/x;token={SECRET};v=1?y=1#token={SECRET}") == "https://host/x;v=1?y=1"
    assert redacted(f"no answer of me:{SECRET}@host:5000/x.") == "no answer of ***@host:5000/x."


def test_secrets_of_the_environment_are_hidden_outside_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:other%2Fsecret@host")
    assert redacted(f"401 for me:{SECRET}, or other/secret, or other%2Fsecret") == "401 for me:***, or ***, or ***"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:two words@host")
    assert redacted("cannot reach https://me:two words@host") == "cannot reach https://me:***@host"


@given(some.text())
def test_no_text_raises(text: str) -> None:
    for part in (text, f"x://{text}", f"https://a:{text}@host", f"https://h/?key={text}"):
        redacted(part)
        without_secrets(part)
        has_secret(part)


@given(some.text("abcXYZ019:/@#?%&=!$ ".replace(" ", ""), min_size=8, max_size=20))
def test_a_password_of_any_characters_is_hidden(password: str) -> None:
    hidden = redacted(f"cannot reach https://user:{password}@mlflow.example/api")
    if password.lstrip("0123456789")[:1] not in ("", "/", "?", "#"):  # else it reads as a port, and a path
        assert f":{password}@" not in hidden

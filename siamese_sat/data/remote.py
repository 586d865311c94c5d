"""Object storage as scenes and results need it; credentials come from where the AWS tools find them, and go nowhere."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from siamese_sat.errors import InputError

S3 = "s3://"
WILD = re.compile(r"[*?\[]")
# Seconds in which a store must take a connection, and answer when it is first asked.
ANSWER = 10.0


def reach_s3() -> None:
    """Tells GDAL and LanceDB of the server that ``AWS_ENDPOINT_URL`` names; what the environment says already stays."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return
    plain = urlsplit(endpoint).scheme == "http"
    os.environ.setdefault("AWS_S3_ENDPOINT", endpoint.split("://", 1)[-1].rstrip("/"))
    os.environ.setdefault("AWS_HTTPS", "NO" if plain else "YES")
    os.environ.setdefault("AWS_VIRTUAL_HOSTING", "FALSE")  # servers of one's own have no name per bucket
    os.environ.setdefault("AWS_ENDPOINT", endpoint)
    if plain:
        os.environ.setdefault("AWS_ALLOW_HTTP", "true")


def boto3_module() -> ModuleType:
    """The AWS library, with which GDAL's requests are signed too.

    Raises:
        InputError: it is not installed.
    """
    try:
        import boto3
    except ImportError as error:
        raise InputError('s3:// needs boto3: pip install "siamese-sat[s3]".') from error
    module: ModuleType = boto3
    return module


def need_credentials(uri: str) -> None:
    """Looks for credentials before GDAL does, which would say less.

    Raises:
        InputError: there are none, boto3 is lacking, or ``uri`` holds some.
    """
    reach_s3()
    # No bucket's name holds a colon, and a secret may hold slashes.
    if re.match(r"s3://[^/]*[:@]", uri):
        raise InputError("An s3:// address takes no credentials; they belong in the environment or ~/.aws.")
    if not _unsigned() and _credentials() is None:
        raise InputError(
            f"{uri}: there are no credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            f"AWS_NO_SIGN_REQUEST=YES for public buckets."
        )


def _credentials() -> Any:  # noqa: ANN401 - botocore's
    boto3 = boto3_module()
    from botocore.exceptions import BotoCoreError

    try:
        return boto3.Session().get_credentials()
    except BotoCoreError as error:
        raise InputError(f"AWS credentials cannot be read ({error}); check AWS_PROFILE and ~/.aws.") from error


def matching(uri: str) -> list[str]:
    """Objects that a folder or a pattern names, sorted.

    Args:
        uri: ``s3://bucket/folder/`` (what lies right in it), or one with ``*``, ``?`` or ``[``; ``**`` goes through
            folders too.

    Raises:
        InputError: it cannot be listed.
    """
    bucket, key = split(uri)
    wild = WILD.search(key)
    start = key[: wild.start()] if wild else key
    deep = wild is not None and ("**" in key or "/" in key[wild.start() :])
    with _telling(uri):
        pages = _client().get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=start, **({} if deep else {"Delimiter": "/"})
        )  # fmt: skip
        keys = sorted(entry["Key"] for page in pages for entry in page.get("Contents", ()))
    if wild:
        depth = None if "**" in key else key.count("/")
        pattern = key.replace("**/", "*")
        keys = [k for k in keys if fnmatch.fnmatchcase(k, pattern) and depth in (None, k.count("/"))]
    return [f"{S3}{bucket}/{k}" for k in keys]


def check_bucket(uri: str) -> None:
    """Asks whether the bucket is there before hours are spent on what is to be written; not whether it may be written.

    Raises:
        InputError: it is not there, or not for us, or the store does not answer soon.
    """
    need_credentials(uri)
    with _telling(uri):
        client = _client(read_timeout=ANSWER, retries={"total_max_attempts": 2})
        client.head_bucket(Bucket=split(uri)[0])


def upload(file: Path, uri: str) -> None:
    """Writes a file as an object: S3 shows it when it is whole, and not before.

    Raises:
        InputError: it cannot be written.
    """
    bucket, key = split(uri)
    with _telling(uri):
        _client().upload_file(str(file), bucket, key)


@contextmanager
def fetched(path: str | Path) -> Iterator[Path]:
    """A local file as it is; an object as a copy that goes when the block ends.

    Raises:
        InputError: it cannot be read.
    """
    uri = str(path)
    if not uri.startswith(S3):
        yield Path(path)
        return
    need_credentials(uri)
    bucket, key = split(uri)
    with TemporaryDirectory() as folder:
        copy = Path(folder) / key.rsplit("/", 1)[-1]
        with _telling(uri):
            _client().download_file(bucket, key, str(copy))
        yield copy


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``.

    Raises:
        InputError: there is no bucket in it.
    """
    bucket, _, key = uri.removeprefix(S3).partition("/")
    if not bucket:
        raise InputError(f"{uri} names no bucket; write s3://bucket/path.")
    return bucket, key


def _unsigned() -> bool:
    return os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1")


def _client(**settings: Any) -> Any:  # noqa: ANN401 - boto3 has no types
    boto3 = boto3_module()
    from botocore import UNSIGNED
    from botocore.config import Config

    signature = {"signature_version": UNSIGNED} if _unsigned() else {}
    return boto3.client("s3", config=Config(connect_timeout=ANSWER, **signature, **settings))


@contextmanager
def _telling(uri: str) -> Iterator[None]:
    boto3_module()
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code, bucket = str(error.response.get("Error", {}).get("Code", "")), split(uri)[0]
        operation = error.operation_name
        if code == "NoSuchBucket" or (code == "404" and operation == "HeadBucket"):
            raise InputError(f"{uri}: there is no bucket {bucket}; check its name and AWS_ENDPOINT_URL.") from error
        if code in ("404", "NoSuchKey"):
            raise InputError(f"{uri}: there is no such object; check the path.") from error
        raise InputError(
            f"{uri}: the object store refused ({code or operation}); check the credentials' rights."
        ) from error
    except (BotoCoreError, Boto3Error) as error:
        reason = str(error).splitlines()[0].rstrip(".")[:200]
        raise InputError(f"{uri}: the object store cannot be reached ({reason}); check AWS_ENDPOINT_URL.") from error

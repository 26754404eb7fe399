"""Limits of an upload, apart from what decodes pictures: Ray Serve's proxy needs them alone."""

from __future__ import annotations

MAX_BYTES = 10_000_000  # of a picture
MAX_PIXELS = 50_000_000  # of a JPEG, which is decoded at a fraction of its size
MAX_FULL_PIXELS = 25_000_000  # of other formats; one with 16 bits or transparency takes 450 MB
MAX_SIDE = 20_000  # pixels
FORM_BYTES = 100_000  # of a form, beside its picture
BUFFER_BYTES = 256_000_000  # of all requests in one process that are not answered yet
STALL_SECONDS = 30.0
BYTES_PER_SECOND = 10_000  # at least, after STALL_SECONDS

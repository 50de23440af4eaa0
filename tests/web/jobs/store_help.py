"""Jobs to put into a store, and real pictures that tell how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dalle_server.generation import GeneratedImage
from dalle_server.pictures.codec import ImageFormat, encode_image
from dalle_server.pictures.metadata import PictureMetadata
from dalle_server.request import GenerationRequest, ImageKey, SamplingParams
from dalle_server.web.jobs.storage.files import DirectoryFiles
from dalle_server.web.jobs.storage.records import Job
from dalle_server.web.jobs.storage.rows import Query
from dalle_server.web.jobs.storage.store import Store

SAMPLING = SamplingParams.reference_defaults()


def job(number: int, *, owner: str = "", prompt: str = "a red apple", seed: int = 7, num_images: int = 2) -> Job:
    request = GenerationRequest.of(prompt, num_images, seed, sampling=SAMPLING, client=owner or "addr:10.0.0.1")
    return Job(
        id=f"job-{number}", owner=owner, request=request, model="scripted", digest="d" * 64, created_at=1000.0 + number
    )


def picture_bytes(of: Job, index: int) -> bytes:
    tokens = np.arange(16, dtype=np.int32)
    image = GeneratedImage(index, ImageKey(of.seed, index), np.full((8, 8, 3), index, np.uint8), tokens)
    recipe = PictureMetadata.of(of.request, SAMPLING, image, model=of.model, digest=of.digest)
    return encode_image(image.pixels, ImageFormat(of.format), metadata=recipe)


def finished(store: Store, number: int, *, num_pictures: int = 1, status: str = "done", **kw: Any) -> Job:
    made = job(number, **{"num_images": max(1, num_pictures), **kw})
    store.add(made)
    for index in range(num_pictures):
        store.add_picture(made, index, picture_bytes(made, index), (8, 8))
    store.rows.update(made.id, status=status, finished_at=made.created_at + 1)
    return made


def ids(store: Store, owner: str = "", **query: Any) -> list[str]:
    return [each.id for each in store.rows.find(owner, Query(**{"limit": 1000, **query}))]


def root_of(store: Store) -> Path:
    """Where the files of jobs are, one directory each."""
    assert isinstance(store.files, DirectoryFiles)
    return store.files.root

"""A corpus row before its media are looked up: what its text says and which files it names, by scheme.

`mmeb_train://MSCOCO/1.jpg` is the file `MSCOCO/1.jpg` below the root of the scheme `mmeb_train`, which is
`<media_root>/mmeb_train` or what `data.media_roots` says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from twn_lightning.backbone.media import sample_frames
from twn_lightning.data.corpus import target_digest
from twn_lightning.data.record_files import StoredImage
from twn_lightning.data.roots import FRAME_SUFFIXES, MediaRoot
from twn_lightning.errors import DataError, unknown_name
from twn_lightning.settings import DataSettings
from twn_lightning.source_rules import MEDIA_SCHEMES
from twn_lightning.types import Item, Media

PLACEHOLDERS = re.compile(r"<\|image_\d+\|>|<\|(?:image|video)_pad\|>|<\|vision_(?:start|end)\|>|<image>|<video>")
"""Where corpora say that an image or a video stands; our prompt has media first, so they are taken out."""

_PREFIXES: dict[str, tuple[str, ...]] = {
    "mmeb_train": ("", "images/"),
    "sharegpt_video": ("", "train_300k/"),
}
"""Folders that a scheme's paths may leave out, or bring along: each is tried, and names come without."""


@dataclass(frozen=True)
class MediaRef:
    """One image or video by name, or an image stored inside the annotations."""

    kind: Literal["image", "video"]
    scheme: str
    paths: tuple[str, ...]
    """Below the scheme's root. A video is a folder of frames or a file; several paths are its frames, in order."""
    stored: StoredImage | None = None
    same_as: str | None = None
    """The scheme whose files these are, where another corpus names them so: for hashes only."""

    @property
    def name(self) -> str:
        """What hashes know it by; of a stored image the digest of its bytes: its file name may not be unique."""
        if self.stored is not None:
            return f"image:{hashlib.sha256(self.stored.read()).hexdigest()}"
        if self.same_as is None:
            return f"{self.kind}:{self.scheme}://{'|'.join(_bare(self.scheme, path) for path in self.paths)}"
        below = [str(PurePosixPath(*PurePosixPath(path).parts[1:])) for path in self.paths]
        return f"{self.kind}:{self.same_as}://{'|'.join(_bare(self.same_as, path) for path in below)}"


@dataclass(frozen=True)
class ItemDraft:
    """One side of a row."""

    instruction: str = ""
    text: str = ""
    media: tuple[MediaRef, ...] = ()
    cot: str | None = None

    @property
    def empty(self) -> bool:
        return not self.text and not self.media

    def target_hash(self) -> str:
        """See `corpus.target_digest`."""
        return target_digest(self.text, [ref.name for ref in self.media])


@dataclass(frozen=True)
class PairDraft:
    """A row as a pair of the task (the `Pair.source`) it belongs to."""

    task: str
    query: ItemDraft
    positive: ItemDraft
    negatives: tuple[ItemDraft, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether a side has neither text nor media: such rows are left out."""
        return self.query.empty or self.positive.empty


class MediaFinder:
    """Drafts to items: media are looked up below the roots of their schemes.

    Args:
        settings: `media_root`, `media_roots`, `num_frames`.
    """

    def __init__(self, settings: DataSettings) -> None:
        self.num_frames = settings.num_frames
        self._roots: dict[str, MediaRoot] = {}
        if settings.media_root is not None:
            for scheme in MEDIA_SCHEMES:
                self._roots[scheme] = MediaRoot(Path(settings.media_root) / scheme, f"data.media_root for {scheme}://")
        for text in settings.media_roots:
            scheme, _, folder = text.partition("=")
            self._roots[scheme] = MediaRoot(folder, f"data.media_roots for {scheme}://")

    def item(self, draft: ItemDraft, key: str, where: str) -> Item:
        """The draft as an item.

        Raises:
            DataError: a file that is missing or leaves its root, an unknown scheme, a root that is not configured.
        """
        media = tuple(self._media(ref, where) for ref in draft.media)
        return Item(key, draft.instruction, draft.text, media, draft.cot)

    def _media(self, ref: MediaRef, where: str) -> Media:
        if ref.stored is not None:
            return Media("image", ref.stored)
        root = self._roots.get(ref.scheme)
        if root is None:
            raise DataError(
                f"{where}: no root for {ref.scheme}://{ref.paths[0]}. Set data.media_root to the folder that holds "
                f"{ref.scheme}/, or add {ref.scheme}=FOLDER to data.media_roots"
            )
        if len(ref.paths) > 1:
            chosen = [ref.paths[i] for i in sample_frames(len(ref.paths), self.num_frames)]
            frames = [root.image(self._existing(root, ref.scheme, path, where), where).content for path in chosen]
            return Media("video", tuple(frame for frame in frames if isinstance(frame, Path)))
        path = self._existing(root, ref.scheme, ref.paths[0], where)
        if ref.kind == "image":
            return root.image(path, where)
        return root.video(path, [path], where, self.num_frames)

    def _existing(self, root: MediaRoot, scheme: str, path: str, where: str) -> str:
        """The path as given, or with or without the scheme's usual folder, whichever exists first."""
        bare = _bare(scheme, path)
        tried = [path, *(prefix + bare for prefix in _PREFIXES.get(scheme, ()))]
        return next((name for name in tried if root.path(name, where).exists()), path)


def without_placeholders(text: str) -> str:
    """A text without the marks that stand for its media, outer white space trimmed."""
    return PLACEHOLDERS.sub("", text).strip()


def media_of_uri(uri: str, kind: Literal["image", "video"], where: str) -> MediaRef:
    """A `scheme://path`.

    Raises:
        DataError: no such URI, or an unknown scheme.
    """
    scheme, separator, path = uri.partition("://")
    if not separator or not path:
        raise DataError(f"{where}: {uri!r} is not a media URI such as mmeb_train://MSCOCO/1.jpg")
    if scheme not in MEDIA_SCHEMES:
        raise DataError(f"{where}: {unknown_name('media scheme', scheme, MEDIA_SCHEMES)}")
    return MediaRef(kind, scheme, (path,))


def videos_of(refs: Sequence[MediaRef]) -> tuple[MediaRef, ...]:
    """Videos as a row lists them: several image files of one scheme are the frames of one video."""
    paths = [path for ref in refs for path in ref.paths]
    are_frames = len(paths) > 1 and all(path.lower().endswith(FRAME_SUFFIXES) for path in paths)
    if are_frames and len({ref.scheme for ref in refs}) == 1:
        return (MediaRef("video", refs[0].scheme, tuple(paths), same_as=refs[0].same_as),)
    return tuple(refs)


def text_of(value: object, what: str, where: str) -> str:
    """A text field; None is no text.

    Raises:
        DataError: it is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: {what} must be text, this is {type(value).__name__}")
    return value


def _bare(scheme: str, path: str) -> str:
    clean = PurePosixPath(path).as_posix()
    for prefix in filter(None, _PREFIXES.get(scheme, ())):
        clean = clean.removeprefix(prefix)
    return clean

"""Media files below a root: what an annotation names is looked up there, never outside it, and never decoded here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath

from twn_lightning.backbone.media import sample_frames
from twn_lightning.errors import DataError
from twn_lightning.types import Media

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
"""What counts as a frame in a folder of frames; other files there are ignored."""

_LONGEST_PATH, _LONGEST_NAME = 4096, 255
"""Of file systems, the second one in bytes."""
_NUMBERS = re.compile(r"(\d+)", re.ASCII)


class MediaRoot:
    """Images, folders of frames and video files below one folder.

    The root itself may be a symbolic link; links inside it must stay inside it.

    Args:
        root: the folder.
        setting: the setting that names it, for messages.
    """

    def __init__(self, root: str | Path, setting: str = "media_root") -> None:
        self.root = Path(root)
        self.setting = setting
        self._real = os.path.realpath(self.root)
        self._real_folder = lru_cache(maxsize=65_536)(os.path.realpath)

    def __reduce__(self) -> tuple[type[MediaRoot], tuple[Path, str]]:
        """Worker processes get a root with a fresh cache, which cannot be pickled."""
        return type(self), (self.root, self.setting)

    def path(self, relative: str, where: str) -> Path:
        """A path below the root, whether or not it exists.

        Args:
            relative: what the annotation says.
            where: task or source, file and row, for messages.

        Raises:
            DataError: an empty, overlong or absolute path, one with `..`, or one whose symbolic links lead out of the
                root.
        """
        if not isinstance(relative, str) or not relative.strip() or "\x00" in relative:
            raise DataError(f"{where}: {relative!r} is not the path of a media file")
        parts = PurePosixPath(relative)
        if len(relative) > _LONGEST_PATH or any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts.parts):
            raise DataError(f"{where}: {relative!r:.80}... is too long for a path: is it the text of another column?")
        if parts.is_absolute() or Path(relative).is_absolute() or ".." in parts.parts:
            raise DataError(
                f"{where}: the path {relative!r} leaves its root: paths must be relative to {self.setting} and may "
                "not contain '..'"
            )
        path = self.root / parts
        folder, name = os.path.split(path)
        real = os.path.join(self._real_folder(folder), name)
        if os.path.islink(path) or not parts.name:
            real = os.path.realpath(path)
        if real != self._real and not real.startswith(self._real.rstrip(os.sep) + os.sep):
            raise DataError(
                f"{where}: the path {relative!r} leaves its root {self.root} through a symbolic link. Copy the files "
                f"into it, or set {self.setting} to the folder that the link leads to"
            )
        return path

    def image(self, relative: str, where: str) -> Media:
        """An image file.

        Raises:
            DataError: as `path`, or there is no such file.
        """
        path = self.path(relative, where)
        if not os.path.isfile(path):
            raise DataError(f"{where}: image {path} does not exist. Check {self.setting}, or fetch the file")
        return Media("image", path)

    def folder(self, relative: str, where: str) -> Path:
        """A folder.

        Raises:
            DataError: as `path`, or there is no such folder.
        """
        path = self.path(relative, where)
        if not os.path.isdir(path):
            raise DataError(f"{where}: folder {path} does not exist. Check {self.setting}, or fetch its files")
        return path

    def subfolders(self, relative: str, where: str) -> list[str]:
        """Names of the folders in a folder, in natural order, which unlike the file system's is the same everywhere.

        Raises:
            DataError: as `folder`.
        """
        with os.scandir(self.folder(relative, where)) as entries:
            return sorted((e.name for e in entries if e.is_dir() and not e.name.startswith(".")), key=natural_key)

    def frames(self, relative: str, where: str, num_frames: int | None) -> Media:
        """A video as the frames of a folder, in natural order (`frame2` before `frame10`).

        Args:
            relative: the folder.
            where: task or source, file and row, for messages.
            num_frames: evenly spaced frames to take, all where there are no more; None takes all.

        Raises:
            DataError: as `folder`, or the folder holds no frame.
        """
        folder = self.folder(relative, where)
        with os.scandir(folder) as entries:
            found = {e.name: e for e in entries if e.name.lower().endswith(FRAME_SUFFIXES) and e.name[0] != "."}
        names = sorted(found, key=natural_key)
        if not names:
            raise DataError(
                f"{where}: folder {folder} holds no frame ({', '.join(FRAME_SUFFIXES)}). Fetch the frames again, or "
                "drop the row"
            )
        chosen = names if num_frames is None else [names[i] for i in sample_frames(len(names), num_frames)]
        for entry in (found[name] for name in chosen):
            if entry.is_symlink():
                self.path(str(PurePosixPath(relative) / entry.name), where)
            if not entry.is_file():
                frame = folder / entry.name
                raise DataError(f"{where}: frame {frame} is no file. Fetch the frames again, or drop the row")
        return Media("video", tuple(folder / name for name in chosen))

    def video(self, relative: str, files: Iterable[str], where: str, num_frames: int | None) -> Media:
        """A video as a folder of frames where there is one, else as the first of several files that exists.

        Args:
            relative: the folder of frames.
            files: video files to try, in order.
            where: task or source, file and row, for messages.
            num_frames: as in `frames`; a video file is sampled when it is decoded.

        Raises:
            DataError: as `frames`, or neither the folder nor one of the files exists.
        """
        tried = list(files)
        if os.path.isdir(self.path(relative, where)):
            return self.frames(relative, where, num_frames)
        for name in tried:
            path = self.path(name, where)
            if os.path.isfile(path):
                return Media("video", path)
        wanted = " or ".join(dict.fromkeys(str(self.root / name) for name in (relative, *tried)))
        raise DataError(f"{where}: video {wanted} does not exist. Check {self.setting}, or fetch the frames")


def natural_key(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key under which numbers inside names count as numbers: `frame2.jpg` before `frame10.jpg`."""
    parts = [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in _NUMBERS.split(name) if part]
    return parts, name

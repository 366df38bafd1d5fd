"""What a song says of itself, copied to its stems: title, artist, album and the like, and the cover."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutagen
from mutagen import id3
from mutagen.asf import ASF
from mutagen.flac import FLAC, Picture
from mutagen.mp3 import MP3
from mutagen.mp4 import MP4, MP4Cover
from mutagen.wave import WAVE

from .. import reading

_MOST_COVER_BYTES = 16 << 20
_FRONT = 3  # type of a picture
_FIELDS = {  # as Vorbis comments call it: as ID3, MP4 and Windows Media do
    "title": ("TIT2", "©nam", "Title"),
    "artist": ("TPE1", "©ART", "Author"),
    "album": ("TALB", "©alb", "WM/AlbumTitle"),
    "albumartist": ("TPE2", "aART", "WM/AlbumArtist"),
    "date": ("TDRC", "©day", "WM/Year"),
    "genre": ("TCON", "©gen", "WM/Genre"),
    "composer": ("TCOM", "©wrt", "WM/Composer"),
    "tracknumber": ("TRCK", "trkn", "WM/TrackNumber"),
    "discnumber": ("TPOS", "disk", "WM/PartOfSet"),
    "bpm": ("TBPM", "tmpo", "WM/BeatsPerMinute"),
    "copyright": ("TCOP", "cprt", "Copyright"),
}


@dataclass(frozen=True)
class Tags:
    """What is copied.

    Attributes:
        fields: Texts, by their names as Vorbis comments.
        cover: Its MIME type and bytes.
    """

    fields: Mapping[str, list[str]]
    cover: tuple[str, bytes] | None


def read(path: Path) -> Tags | None:
    """The tags of a song; None if it has none, or none that can be read: they are no reason to keep its stems back."""
    try:
        with reading.opened(path) as file:
            song = mutagen.File(file)
        if song is None or song.tags is None:
            return None
        fields = {name: _texts(song, name, *keys) for name, keys in _FIELDS.items()}
        tags = Tags({name: texts for name, texts in fields.items() if texts}, _cover(song))
    except Exception:  # a parser of files from anybody, and of a dozen formats
        return None
    return tags if tags.fields or tags.cover else None


def write(path: Path, tags: Tags, title: str) -> None:
    """Write tags into a stem: WAV, FLAC, MP3 or MP4.

    Args:
        path: The stem.
        tags: The song's.
        title: The stem's.

    Raises:
        OSError: The file cannot be written.
    """
    fields = {**tags.fields, "title": [title]}
    try:
        song: Any = mutagen.File(path)
        if isinstance(song, FLAC):
            song.update(fields)
            if tags.cover is not None:
                song.add_picture(_picture(*tags.cover))
        elif isinstance(song, WAVE | MP3):
            _set_frames(song, fields, tags.cover)
        elif isinstance(song, MP4):
            _set_atoms(song, fields, tags.cover)
        else:  # RF64, which has no place for them
            return
        song.save()
    except mutagen.MutagenError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        return


def _set_frames(song: Any, fields: Mapping[str, list[str]], cover: tuple[str, bytes] | None) -> None:
    """ID3 tags, of WAV and MP3."""
    if song.tags is None:
        song.add_tags()
    for name, texts in fields.items():
        frame = _FIELDS[name][0]
        song.tags.setall(frame, [getattr(id3, frame)(encoding=id3.Encoding.UTF8, text=texts)])
    if cover is not None:
        mime, data = cover
        song.tags.setall("APIC", [id3.APIC(encoding=id3.Encoding.UTF8, mime=mime, type=_FRONT, data=data)])


def _set_atoms(song: Any, fields: Mapping[str, list[str]], cover: tuple[str, bytes] | None) -> None:
    """Tags of MP4, where some are numbers: those that are none here are left out."""
    for name, texts in fields.items():
        atom = _FIELDS[name][1]
        with suppress(ValueError):
            if atom in ("trkn", "disk"):
                song[atom] = [((numbers := [int(part) for part in texts[0].split("/")[:2]] + [0])[0], numbers[1])]
            else:
                song[atom] = [round(float(texts[0]))] if atom == "tmpo" else texts
    formats = {"image/jpeg": MP4Cover.FORMAT_JPEG, "image/png": MP4Cover.FORMAT_PNG}
    if cover is not None and cover[0] in formats:
        song["covr"] = [MP4Cover(cover[1], formats[cover[0]])]


def _texts(song: Any, name: str, frame: str, atom: str, attribute: str) -> list[str]:
    if isinstance(song.tags, id3.ID3):
        return [str(text) for found in song.tags.getall(frame) for text in found.text]
    key = atom if isinstance(song, MP4) else attribute if isinstance(song, ASF) else name
    return [_text(value) for value in song.tags.get(key) or []]


def _text(value: object) -> str:
    """A value, of which MP4 has pairs: a track and how many there are, 0 where that is not known."""
    return "/".join(str(part) for part in value if part) if isinstance(value, tuple) else str(value)


def _cover(song: Any) -> tuple[str, bytes] | None:
    """The first picture."""
    found: list[tuple[str, bytes]] = []
    if isinstance(song.tags, id3.ID3):
        found = [(picture.mime, picture.data) for picture in song.tags.getall("APIC")]
    elif isinstance(song, MP4):
        kinds = {MP4Cover.FORMAT_JPEG: "image/jpeg", MP4Cover.FORMAT_PNG: "image/png"}
        found = [(kinds[cover.imageformat], bytes(cover)) for cover in song.tags.get("covr", [])]
    elif isinstance(song, FLAC):
        found = [(picture.mime, picture.data) for picture in song.pictures]
    elif not isinstance(song, ASF):
        texts = song.tags.get("metadata_block_picture") or []
        found = [(picture.mime, picture.data) for picture in (Picture(base64.b64decode(text)) for text in texts)]
    return next((cover for cover in found if len(cover[1]) <= _MOST_COVER_BYTES), None)


def _picture(mime: str, data: bytes) -> Picture:
    picture = Picture()
    picture.type, picture.mime, picture.data = _FRONT, mime, data
    return picture

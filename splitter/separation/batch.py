"""Many songs: one after another or in worker processes, each done once, interrupted or not.

All stems of a file appear, or none: they are made in a staging directory and moved when they are complete. What a
batch has done before it was interrupted counts in the next one, see `splitter.separation.receipts`.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, TypeAlias

from .. import output
from ..bundle.directory import Bag, Bundle, file_record
from ..bundle.manifest import FileRecord
from ..errors import AudioError, BundleError, InternalError, SplitterError, UsageError, WorkerError
from ..runtime.workers import Worker, share
from . import collisions, decoding, inputs, receipts
from .selection import Engines
from .separator import Advance, Options, Progress, Separator, Written, silent

ATTEMPTS = 4  # of a file whose worker is killed
_STAGING = "separating"
_USUAL = 240.0  # seconds of a song that does not say
_PROGRESS = struct.Struct("<dd")  # seconds done, seconds in all
_PROGRESS_FILE = "progress"

Work: TypeAlias = Callable[[Path, Path, Path, Progress], SplitterError | None]  # track, out, staging directory


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes:
        path: The track.
        stems: By name; empty with an error.
        error: Why there are none.
        attempts: How often it was begun; 0 if its stems were there already.
        written: What else there is to say of the stems; None with an error.
    """

    path: Path
    stems: Mapping[str, Path]
    error: SplitterError | None = None
    attempts: int = 1
    written: Written | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, what is `written` among them."""
        return {
            "path": str(self.path),
            "stems": {name: str(path) for name, path in self.stems.items()},
            "error": None if self.error is None else str(self.error),
            "attempts": self.attempts,
            **({} if self.written is None else asdict(self.written)),
        }


def separate(
    separator: Separator,
    files: Sequence[str | Path],
    out: str | Path,
    *,
    jobs: int = 1,
    force: bool = False,
    recursive: bool = False,
    progress: Progress = silent,
    done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Separate files; one that fails does not stop the others.

    A file is left alone if its stems are there and were made of the same sound with the same bundle, options and
    engines asked for. With several jobs a worker that is killed is replaced, and its file tried again, `ATTEMPTS` times
    in all.

    Args:
        separator: How.
        files: Audio files in any format soundfile reads; folders of them; ``-`` for standard input.
        out: Stems go to ``out/<model>/<track>/<stem>.wav``, or as ``options.filename`` says.
        jobs: Files at a time. One is separated in this process; more in worker processes that share out the cores.
        force: Make the stems again that are there already, and replace those of another song of the same name.
        recursive: Take the sound files of the folders in a folder as well.
        progress: Told how far each file has come; with several jobs by a thread for each.
        done: Called with each file's outcome, as they come.

    Returns:
        The outcomes in the order of ``files``, each file once.

    Raises:
        UsageError: There are more jobs than cores, two files would write the same stems, or a path is a URL or a
            folder without sound files.
        EngineError: An engine cannot run its segment here.
    """
    given, out = inputs.tracks(files, Path(out), recursive=recursive), Path(out)
    share(jobs)
    with inputs.files(given) as shown:
        paths = [*shown]
        collisions.check(separator, paths, out)
        engines = separator.engines(jobs, separator.runs(sum(decoding.seconds(path) or _USUAL for path in paths)))
        if force:
            _forget(separator, paths, out)
        outcomes: dict[Path, Outcome] = {}
        task = partial(separate_file, separator, out=out, progress=progress, force=force)
        in_turn = (task(path) for path in paths)
        with closing(_in_workers(separator, engines, paths, task, jobs) if jobs > 1 else in_turn) as coming:
            for outcome in coming:
                outcomes[outcome.path] = _shown(outcome, shown[outcome.path])
                done(outcomes[outcome.path])
    return [outcomes[path] for path in paths]


def separate_into(separator: Separator, file: str | Path, sink: BinaryIO, progress: Progress = silent) -> Written:
    """Separate one file, of which the options ask for a single stem, and write that stem's file to a stream.

    Raises:
        UsageError: The options ask for several stems.
        AudioError: The file cannot be read.
        OSError: The stream cannot be written.
    """
    if len(separator.written) != 1:
        raise UsageError(
            "a stream holds one stem",
            received=", ".join(separator.written),
            fix="Choose one by --stems STEM.",
        )
    found = inputs.tracks([file], Path(os.devnull))
    if len(found) != 1:
        raise UsageError("a stream holds a stem of one file", received=f"{len(found)} in {file}")
    with inputs.files(found) as shown, output.scratch("stream") as folder:
        (path,) = shown
        stem = folder / f"stem.{separator.options.encoding.container}"
        try:
            written = separator.write(separator.track(path), {separator.written[0]: stem}, progress)
        except (OSError, RuntimeError) as error:
            raise _unwritten(path, folder, folder, error) from error
        with stem.open("rb") as content:
            shutil.copyfileobj(content, sink)
    return written


def _shown(outcome: Outcome, path: Path) -> Outcome:
    """An outcome by the path that was asked for, where another file was read in its place."""
    if outcome.path == path:
        return outcome
    error = outcome.error
    if error is not None:
        error = type(error)(str(error).replace(str(outcome.path), "standard input"))
    return replace(outcome, path=path, error=error)


def separate_file(
    separator: Separator,
    path: Path,
    out: Path,
    progress: Progress = silent,
    work: Work | None = None,
    *,
    force: bool = False,
) -> Outcome:
    """Separate one file, unless that has been done.

    Args:
        separator: How.
        path: The track.
        out: As for `separate`.
        progress: Shown its advance.
        work: What makes the stems in a staging directory and moves them, `deliver` where None; called again when it
            raises `WorkerError`.
        force: Replace stems that were made of another song.

    Raises:
        UsageError, EngineError: The bundle cannot be loaded as asked.
    """
    try:
        return _separated(separator, path, out, progress, work or partial(deliver, separator), force=force)
    except SplitterError:
        raise
    except Exception as error:  # of what lies around it: its name, its receipt
        return Outcome(path, {}, _unforeseen(path, error))


def _separated(separator: Separator, path: Path, out: Path, progress: Progress, work: Work, *, force: bool) -> Outcome:
    try:
        outputs, home = separator.outputs(path, out), separator.home(out)
    except UsageError as nameless:
        return Outcome(path, {}, nameless)
    if os.path.realpath(path) in {os.path.realpath(target) for target in outputs.values()}:
        refused = UsageError(f"a stem would overwrite the track {path}", fix="Choose another -o or --filename.")
        return Outcome(path, {}, refused)
    if receipts.complete(separator, path, home, outputs):
        return _done(path, home, outputs, 0)
    if not force and (stem := receipts.of_another_song(path, home, outputs)) is not None:
        refused = UsageError(
            f"{stem} was made of another song than {path}",
            fix="--force replaces it; another -o or --filename keeps both.",
        )
        return Outcome(path, {}, refused)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _staging(out, home) as staging:
                error = work(path, out, staging, progress)
        except AudioError as unwritable:
            error = unwritable
        except WorkerError:
            if not receipts.complete(separator, path, home, outputs):  # it may have died after its last step
                continue
            error = None
        return Outcome(path, {}, error, attempt) if error else _done(path, home, outputs, attempt)
    lost = WorkerError(
        f"{path} was not separated: its worker was killed {ATTEMPTS} times",
        fix="Does the memory suffice? Fewer jobs take less.",
    )
    return Outcome(path, {}, lost, ATTEMPTS)


def _done(path: Path, home: Path, outputs: Mapping[str, Path], attempts: int) -> Outcome:
    """Stems that are there, as their receipt says."""
    receipt = receipts.at(home, outputs)
    return Outcome(path, outputs, None, attempts, None if receipt is None else receipt.written)


def deliver(separator: Separator, path: Path, out: Path, staging: Path, progress: Progress) -> SplitterError | None:
    """Make the stems of a file in a staging directory; then its receipt, then the stems are moved to their places.

    Returns:
        What is wrong with the file, if anything.

    Raises:
        UsageError, EngineError: The bundle cannot be loaded as asked, for this file or any other.
    """
    separator.load()
    outputs, home = separator.outputs(path, out), separator.home(out)
    try:
        source = _hashed(path)
        container = separator.options.encoding.container
        waiting = {name: staging / f"{index}.{container}" for index, name in enumerate(outputs)}
        try:
            _check_places(outputs.values(), home)
            written = separator.write(separator.track(path), waiting, progress)
            stems = {target: waiting[name] for name, target in outputs.items()}
            receipt = receipts.made(separator, source, home, stems, written)
            with output.alone(home):
                receipts.place(receipt, staging, home)
                _move(stems, staging, home)
        except (OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
            raise _unwritten(path, home, staging, error) from error
    except SplitterError as error:
        return error
    except Exception as error:  # of any library below: the other files go on
        return _unforeseen(path, error)
    return None


def _unwritten(path: Path, home: Path, staging: Path, error: Exception) -> AudioError:
    reason = _reason(staging, error).rstrip(".")
    return AudioError(f"the stems of {path} cannot be written to {home}", received=reason, fix="None was left behind.")


def _reason(staging: Path, error: Exception) -> str:
    """Why a file cannot be written. libsndfile says "System error" to all that a system refuses: it is asked again."""
    refusal = error if isinstance(error, OSError) else _refusal(staging)
    if refusal is None or refusal.strerror is None:
        return str(error)
    full = "the disk is full: " if refusal.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return full + refusal.strerror


def _refusal(staging: Path) -> OSError | None:
    """What the system says to more in any of the unfinished files."""
    try:
        for file in staging.iterdir():
            with file.open("ab") as unfinished:
                unfinished.write(bytes(1 << 20))  # more than a write that failed can have left free
    except OSError as refusal:
        return refusal
    return None


def _unforeseen(path: Path, error: Exception) -> InternalError:
    if os.environ.get("SPLITTER_DEBUG"):
        raise error
    received = f"{type(error).__name__}: {error}"
    return InternalError(f"{path} cannot be separated", received=received, fix="Please report it.")


def _check_places(targets: Iterable[Path], home: Path) -> None:
    """Before a song is run for them.

    Raises:
        AudioError: A stem cannot be moved to its place.
        OSError: Nor can a file of its name be.
    """
    for target in targets:
        below = [target, *target.parents]
        there = next(place for place in below if os.path.lexists(place))
        for place in below[: below.index(home)]:
            if place != target:
                _check_no_link(place)
        if (target.is_dir() and not target.is_symlink()) or (there != target and not there.is_dir()):
            raise AudioError(f"{target} cannot be written: something else than a file is in its place")
        if there.lstat().st_dev != home.stat().st_dev:
            raise AudioError(f"{target} is not on the file system of {home}", fix="Choose -o there.")


def _check_no_link(folder: Path) -> None:
    if folder.is_symlink():
        raise AudioError(
            f"{folder} is a link, which leads out of the output folder",
            fix="Remove it, or give -o the folder that it leads to.",
        )


def _move(stems: Mapping[Path, Path], staging: Path, home: Path) -> None:
    """Move all stems, or none: what was there before is put back unless every one arrives.

    No link is followed, even one that was made while the song ran; in the place of a stem it is replaced.
    """
    with ExitStack() as folders, ExitStack() as undoing:
        for index, (target, made) in enumerate(stems.items()):
            folder = folders.enter_context(output.folder_below(home.parent, target.parent.relative_to(home.parent)))
            if _is_folder(target.name, folder):
                raise IsADirectoryError(errno.EISDIR, "a folder is in the place of a stem", str(target))
            kept = staging / f"{index}.before"
            try:
                os.rename(target.name, kept, src_dir_fd=folder)
                undoing.callback(os.replace, kept, target.name, dst_dir_fd=folder)
            except FileNotFoundError:
                undoing.callback(_remove, target.name, folder)
            os.replace(made, target.name, dst_dir_fd=folder)
        undoing.pop_all()


def _is_folder(name: str, folder: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _remove(name: str, folder: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _forget(separator: Separator, paths: Sequence[Path], out: Path) -> None:
    """All at once, so that a batch that is interrupted here is resumed without force."""
    home = separator.home(out)
    try:
        for path in paths:
            with suppress(UsageError):
                receipts.discard(home, separator.outputs(path, out))
    except OSError as error:
        raise _unwritable(home, error) from error


def _hashed(path: Path) -> FileRecord:
    try:
        return file_record(path)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        fix = f"- reads standard input: splitter separate - < {path}" if path.is_fifo() else ""
        raise AudioError(f"{path} cannot be read as audio", received=reason, fix=fix) from error


@contextmanager
def _staging(out: Path, home: Path) -> Iterator[Path]:
    """A directory for stems until they are complete. Those that killed batches left are removed first.

    Raises:
        AudioError: There cannot be one.
    """
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            _check_no_link(home)
            _check_no_link(home / receipts.DIRECTORY)
            with output.folder_below(out, home.relative_to(out)):
                pass
            staging = stack.enter_context(output.staging(home, _STAGING))
        except OSError as error:
            raise _unwritable(home, error) from error
        yield staging


def _unwritable(home: Path, error: OSError) -> AudioError:
    return AudioError(f"{home} cannot be written to", received=error.strerror)


# ----------------------------------------------------------------------------- in workers


def _in_workers(
    separator: Separator, engines: Engines, paths: Sequence[Path], task: Callable[..., Outcome], jobs: int
) -> Generator[Outcome, None, None]:
    """One thread for each worker; it waits for the worker, and hashes what is there already."""
    model = _Model.of(separator, engines)
    workers = [Worker(threads=share(jobs)) for _ in range(jobs)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def separated(path: Path) -> Outcome:
        worker = idle.get()
        try:
            return task(path, work=partial(_by_worker, worker, model))
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(jobs, initializer=_leave_interrupts) as threads:
        try:
            for future in as_completed([threads.submit(separated, path) for path in paths]):
                yield future.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.stop()


def _leave_interrupts() -> None:
    """Ctrl-C is for this process alone: workers inherit the mask of the thread that starts them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@dataclass(frozen=True)
class _Model:
    """A separator, small enough to send, and to be looked up by."""

    path: Path
    name: str
    members: tuple[Path, ...]
    fingerprint: str
    weights: tuple[tuple[float, ...], ...]
    options: Options
    requested_engines: tuple[tuple[str, str], ...]
    automatic_engines: tuple[tuple[str, str], ...]
    low_memory: bool

    @classmethod
    def of(cls, separator: Separator, engines: Engines) -> _Model:
        bag = separator.bag
        return cls(
            bag.path,
            bag.name,
            tuple(member.path for member in bag.members),
            bag.fingerprint,
            bag.weights,
            separator.options,
            tuple(engines.requested.items()),
            tuple(engines.automatic.items()),
            separator.low_memory,
        )


@cache
def _loaded(model: _Model) -> Separator:
    bag = Bag(model.path, model.name, tuple(Bundle.load(member) for member in model.members), model.weights)
    if bag.fingerprint != model.fingerprint:
        raise BundleError(f"{model.path} was changed while it was used", fix="Start again.")
    engines = Engines(dict(model.requested_engines), dict(model.automatic_engines))
    return Separator(bag, engines, low_memory=model.low_memory, options=model.options)


def _by_worker(
    worker: Worker, model: _Model, path: Path, out: Path, staging: Path, progress: Progress
) -> SplitterError | None:
    look = partial(_look, path, staging / _PROGRESS_FILE, progress)
    error = worker.call(_in_worker, model, path, out, staging, meanwhile=look)
    look()
    return error


def _in_worker(model: _Model, path: Path, out: Path, staging: Path) -> SplitterError | None:
    """Progress is left in the staging directory, where nothing blocks when either side is killed."""

    def tell(step: str | Advance) -> None:
        if isinstance(step, Advance):
            (staging / _PROGRESS_FILE).write_bytes(_PROGRESS.pack(step.done, step.total))

    return deliver(_loaded(model), path, out, staging, tell)


def _look(path: Path, file: Path, progress: Progress) -> None:
    """Pass on how far a worker has come."""
    try:
        progress(Advance(path, *_PROGRESS.unpack(file.read_bytes())))
    except (FileNotFoundError, struct.error):  # not begun; being written
        return

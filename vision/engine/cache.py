"""Cache of built engines in a folder. Each engine has a key that describes its model, settings, library, and GPU.

File names contain the hash of the key, so after a change of the key, the cache looks for a different file. A JSON file
next to the engine contains the key in readable form, and the hash of the plan (the serialized engine), which is checked
at every load.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from vision.engine.build import Built
from vision.engine.build_plan import PRECISIONS, BuildPlan
from vision.engine.library import Gpu, Library
from vision.errors import Closed, ModelError
from vision.state.private_files import (
    Held,
    Untrusted,
    Unwritable,
    cache_folder,
    locked,
    make_private_folder,
    read_private,
    sha256_of,
    write_whole,
)

if TYPE_CHECKING:
    from vision.config import AnySpec

_log = logging.getLogger(__name__)

_UNUSED_DAYS = 90.0
_STALE_S = 3600.0  # older temporary files are left over from a crash, because a write takes less time
_STEM = re.compile(rf".+-({'|'.join(PRECISIONS)})-b\d+-sm\d+-[0-9a-f]{{20}}")
_TIMING = re.compile(r"[0-9a-f]{20}\.timing")
_SUFFIXES = (".engine", ".json", ".kernels", ".lock")


def default_folder() -> Path:
    """Return the default folder of the cache."""
    return cache_folder("engines")


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Values that determine the contents of a plan. A plan is used only if its key is equal to the requested key."""

    onnx_sha256: str
    flavour: str
    version: str
    gpu_name: str
    compute_capability: tuple[int, int]
    settings: BuildPlan
    profiles: tuple[Any, ...]  # from model.yaml, as plain data; empty if max_batch determines the profiles
    input_hw: tuple[int, int]
    plugins: tuple[str, ...] = ()  # SHA-256 of each plugin library

    def as_json(self) -> dict[str, Any]:
        """Return the key as data that JSON can represent."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def digest(self) -> str:
        """Return the first 20 hexadecimal digits of the SHA-256 of the key, which are part of file names."""
        return sha256_of(json.dumps(self.as_json(), sort_keys=True).encode())[:20]

    def differences(self, other: Mapping[str, Any]) -> str:
        """Return the differences from `other`, a result of `as_json`, as text.

        Return an empty string if the keys are equal.
        """
        theirs, mine = _flat(other), _flat(self.as_json())
        return ", ".join(
            f"{name} {theirs.get(name)!r} instead of {mine.get(name)!r}"
            for name in dict.fromkeys((*mine, *theirs))
            if theirs.get(name) != mine.get(name)
        )


def _flat(key: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a key from `EngineKey.as_json`, with each setting at the top level of the dictionary.

    With this form, the settings of two keys can be compared one by one.
    """
    settings = key.get("settings")
    return {**key, "settings": None, **(settings if isinstance(settings, dict) else {})}


def key_of(onnx: bytes, library: Library, gpu: Gpu, settings: BuildPlan, spec: AnySpec) -> EngineKey:
    """Return the key of an engine for the ONNX model `onnx`, with the input size and profiles of `spec`."""
    return EngineKey(
        onnx_sha256=sha256_of(onnx),
        flavour=library.flavour,
        version=library.version,
        gpu_name=gpu.name,
        compute_capability=gpu.compute_capability,
        settings=settings,
        profiles=tuple(profile.model_dump(mode="json") for profile in spec.profiles or ()),
        plugins=tuple(plugin.sha256 for plugin in spec.plugin_libraries),
        input_hw=(spec.input.height, spec.input.width),
    )


class _Sidecar(msgspec.Struct, frozen=True):
    """Contents of the JSON file that is stored with a plan."""

    model: str
    key: dict[str, Any]
    plan_sha256: str
    plan_bytes: int
    built_at: str  # UTC, RFC 3339
    build_s: float
    layers: int
    weights_bytes: int | None
    activation_bytes: int | None
    profiles: list[str]
    notes: tuple[str, ...]
    schema: Literal[1] = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One engine in the cache.

    If a file cannot be read, or the JSON file is damaged, `key` and `built_at` are empty, and `plan_bytes` is 0.
    """

    path: Path  # of the plan
    model: str  # name of the model; if the files cannot be read, the name of the plan file without its suffix
    key: Mapping[str, Any]
    plan_bytes: int
    built_at: str  # UTC, RFC 3339
    fault: str  # reason why the engine cannot be used; otherwise empty

    @property
    def unused_s(self) -> float:
        """Time in seconds since the engine was last loaded or built.

        It is 0 if the file of the engine no longer exists.
        """
        return max(0.0, _age_s(self.path))


@dataclass(frozen=True, slots=True)
class Loaded:
    """Plan (serialized engine) that was loaded from the cache or built."""

    plan: bytes
    path: Path
    built: Built | None  # None if the plan is from the cache
    not_kept: str = ""  # reason why the built plan is not in the cache; otherwise empty


class EngineCache:
    """Folder of built engines. If `folder` is None, the folder is `default_folder`.

    The constructor raises `ModelError` if the folder cannot be created or is not private, and `Unavailable` if it
    cannot be created at present, for example because the disk is full.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()
        make_private_folder(self.folder)
        self.folder = self.folder.resolve()  # stay in the checked folder, even if a link in its path changes

    # -------------------------------------------------------------------------------------------- finding

    def path_of(self, model: str, key: EngineKey) -> Path:
        """Return the path at which the plan with this key is stored, even if there is no such file yet."""
        major, minor = key.compute_capability
        precision, max_batch = key.settings.precision, key.settings.max_batch
        return self.folder / f"{model}-{precision}-b{max_batch}-sm{major}{minor}-{key.digest()}.engine"

    def find(self, model: str, key: EngineKey) -> tuple[bytes | None, str]:
        """Return the plan and an empty string, or None and the reason why no plan can be used.

        If there is a plan, record the time of this use.

        Raises:
            Untrusted: a file of the engine is a link, is unreadable, or can be written by other users.
            Unavailable: a file cannot be read at present.
            ModelError: the folder cannot be read.
        """
        path = self.path_of(model, key)
        try:
            entry, plan = _read(path)
        except FileNotFoundError as error:
            missing = Path(error.filename).suffix if error.filename else ""
            return None, self._nearest(model, key) if missing == ".json" else "the plan is missing"
        differences = key.differences(entry.key)
        if entry.fault or differences:
            return None, entry.fault or f"its key differs: {differences}"
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of the last use, for `prune`
        return plan, ""

    def load_or_build(
        self,
        model: str,
        key: EngineKey,
        build: Callable[[bytes | None], Built],
        *,
        force: bool = False,
        canceled: Callable[[], bool] = lambda: False,
    ) -> Loaded:
        """Load the plan from the cache, or build and store the plan.

        While another process is building the same plan, `load_or_build` waits, and then loads the plan. If the plan
        cannot be stored, it is still returned, so that the program can start.

        Args:
            build: function that builds the plan. Its argument is the timing cache of previous builds, or None.
            force: True to build the plan even if the cache contains it.
            canceled: function that returns True to end the wait for another process.

        Raises:
            Closed: `canceled` returned True during the wait.
            Held: another process has been building the plan for an hour.
            Untrusted: other users can write to the timing cache. See also `find`.
            Unavailable: see `find`.
            ModelError: see `find`. Other errors of `build` are also passed on.
        """
        path = self.path_of(model, key)
        if not force and (plan := self.find(model, key)[0]) is not None:
            return Loaded(plan, path, None)
        with self._lock_of(path, canceled):
            plan, reason = (None, "requested") if force else self.find(model, key)
            if plan is not None:
                return Loaded(plan, path, None)
            _log.info("building %s: %s", path.name, reason)
            built = build(self._timing_cache(key))
            try:
                self._store(path, model, key, built)
            except Unwritable as error:
                _log.warning("cannot store the engine, so the next start builds it again: %s", error.args[0])
                return Loaded(built.plan, path, built, not_kept=str(error.args[0]))
            return Loaded(built.plan, path, built)

    def _nearest(self, model: str, key: EngineKey) -> str:
        """Return the reason why no engine has this key, with the differences of the most similar engine, if any."""
        stored = [entry.key for entry in self.entries() if entry.model == model and not entry.fault]
        if not stored:
            return "not built yet"
        wanted = key.as_json()
        nearest = min(stored, key=lambda other: sum(other.get(name) != value for name, value in wanted.items()))
        return f"the key of the stored engine differs: {key.differences(nearest)}"

    @contextlib.contextmanager
    def _lock_of(self, path: Path, canceled: Callable[[], bool]) -> Iterator[None]:
        def log_wait() -> None:
            _log.info("waiting for another process that builds %s", path.name)

        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(path.with_suffix(".lock"), when_waiting=log_wait, canceled=canceled))
            except Held:
                if canceled():
                    raise Closed("the wait for a build in another process was canceled") from None
                raise
            except Unwritable as error:
                _log.debug("cannot lock, so two processes may build at the same time: %s", error)
            yield

    # -------------------------------------------------------------------------------------------- keeping

    def _store(self, path: Path, model: str, key: EngineKey, built: Built) -> None:
        """Store an engine and its timing cache. Raise `Unwritable` if a file cannot be written.

        The plan is written before its JSON file, because a plan without a JSON file is ignored.
        """
        sidecar = _Sidecar(
            model=model,
            key=key.as_json(),
            plan_sha256=sha256_of(built.plan),
            plan_bytes=len(built.plan),
            built_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            build_s=round(built.seconds, 3),
            layers=built.layers,
            weights_bytes=built.weights_bytes,
            activation_bytes=built.activation_bytes,
            profiles=[str(profile) for profile in built.profiles],
            notes=built.notes,
        )
        write_whole(path, built.plan)
        write_whole(path.with_suffix(".json"), msgspec.json.format(msgspec.json.encode(sidecar), indent=1))
        if built.timing_cache is not None:
            write_whole(self._timing_path(key), built.timing_cache)

    def _timing_path(self, key: EngineKey) -> Path:
        """Return the path of the timing cache for a library version and a GPU. All models share the timing cache."""
        place = sha256_of(f"{key.flavour} {key.version} {key.gpu_name} {key.compute_capability}".encode())[:20]
        return self.folder / f"{place}.timing"

    def _timing_cache(self, key: EngineKey) -> bytes | None:
        """Return the stored timing cache, or None if there is none. Raise `Untrusted` as `read_private` does."""
        with contextlib.suppress(FileNotFoundError):
            return read_private(self._timing_path(key))
        return None

    # -------------------------------------------------------------------------------------------- looking after

    def entries(self) -> tuple[Entry, ...]:
        """Return all engines in the cache, sorted by file name. Raise `ModelError` if the folder cannot be read."""
        return tuple(_entry(path) for path in self._files() if _is_ours(path, ".engine"))

    def _files(self) -> list[Path]:
        try:
            return sorted(self.folder.iterdir())
        except OSError as error:
            raise ModelError(
                f"the folder {self.folder} cannot be read: {error.strerror}", code="cache-unreadable"
            ) from error

    def prune(self, library: Library | None, gpu: Gpu | None) -> Mapping[str, str]:
        """Remove files that are of no use on this machine. Return the reason for each removed file, by file name.

        These files are removed:

        - damaged engines.
        - engines for a different library or GPU. If `library` or `gpu` is None, any library or GPU is accepted.
        - engines and timing caches that were not used for 90 days.
        - files that an interrupted write or a removed engine left behind.

        An engine that another process is building or storing is kept. For a removed engine, the result contains only
        the plan file.

        Raises:
            ModelError: the folder cannot be read, or a file cannot be removed.
            Unavailable: a file cannot be read, or the lock of an engine cannot be opened.
        """
        gone: dict[str, str] = {}
        for entry in self.entries():
            reason = entry.fault or foreign(entry.key, library, gpu)
            if not reason and entry.unused_s > _UNUSED_DAYS * 86400:
                reason = f"not used for {entry.unused_s / 86400:.0f} days"
            if reason and self._remove(entry.path, entry.built_at):
                gone[entry.path.name] = reason
        return gone | self._prune_orphans()

    def _prune_orphans(self) -> dict[str, str]:
        gone: dict[str, str] = {}
        for path in self._files():
            if _is_ours(path, *_SUFFIXES[1:]):
                engine = path.with_suffix(".engine")
                if not engine.exists() and self._remove(engine, None):
                    gone[path.name] = "its engine is missing"
            elif _is_unfinished(path):
                if _age_s(path) > _STALE_S and _unlink(path):
                    gone[path.name] = "left by an interrupted write"
            elif _TIMING.fullmatch(path.name) and _age_s(path) > _UNUSED_DAYS * 86400 and _unlink(path):
                gone[path.name] = f"not used for {_UNUSED_DAYS:.0f} days"
        return gone

    @staticmethod
    def _remove(engine: Path, built_at: str | None) -> bool:
        """Remove the files of an engine, and return True.

        Return False if another process is building the engine, or has replaced it. `built_at` is the expected build
        time. None means that the engine file is expected to be missing.
        """
        try:
            with locked(engine.with_suffix(".lock"), timeout_s=0):
                if (_entry(engine).built_at if engine.exists() else None) != built_at:
                    return False
                for suffix in _SUFFIXES:
                    _unlink(engine.with_suffix(suffix))
        except Held:
            return False
        return True


# ------------------------------------------------------------------------------------------------ single files


def _is_ours(path: Path, *suffixes: str) -> bool:
    """Return True if the file name has the form that `EngineCache.path_of` returns, but with one of `suffixes`."""
    return path.suffix in suffixes and _STEM.fullmatch(path.stem) is not None


def _is_unfinished(path: Path) -> bool:
    """Return True if a file is a temporary file (``.NAME.RANDOM.tmp``) of `write_whole` for a file of the cache."""
    name = Path(path.name.removeprefix(".").removesuffix(".tmp")).stem
    return path.suffix == ".tmp" and (_is_ours(Path(name), *_SUFFIXES) or _TIMING.fullmatch(name) is not None)


def _age_s(path: Path) -> float:
    """Return the time in seconds since the file was last written, or 0 if it no longer exists."""
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0


def _unlink(path: Path) -> bool:
    """Remove a file. Return False if there is none. Raise `ModelError` if it cannot be removed."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ModelError(f"{path} cannot be removed: {error.strerror}", code="cache-file-not-removed") from error
    return True


def _read(path: Path) -> tuple[Entry, bytes]:
    """Read a plan and its JSON file. Return the entry and the plan. Raise the same errors as `read_private`."""
    document = read_private(path.with_suffix(".json"))
    plan = read_private(path)
    try:
        sidecar = msgspec.json.decode(document, type=_Sidecar)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _faulty(path, "its JSON file is damaged or has a different version"), plan
    fault = ""
    if len(plan) != sidecar.plan_bytes:
        fault = f"it is truncated: {len(plan)} of {sidecar.plan_bytes} bytes"
    elif sha256_of(plan) != sidecar.plan_sha256:
        fault = "its contents have changed since it was written"
    return Entry(path, sidecar.model, sidecar.key, sidecar.plan_bytes, sidecar.built_at, fault), plan


def _entry(path: Path) -> Entry:
    try:
        return _read(path)[0]
    except FileNotFoundError:
        return _faulty(path, "its JSON file is missing")
    except Untrusted as error:
        return _faulty(path, str(error.args[0]))


def _faulty(path: Path, fault: str) -> Entry:
    """Return the entry of an engine whose files cannot be read or decoded, with the reason `fault`."""
    return Entry(path, path.stem, key={}, plan_bytes=0, built_at="", fault=fault)


def foreign(key: Mapping[str, Any], library: Library | None, gpu: Gpu | None) -> str:
    """Return the reason why an engine with this key cannot run on `library` and `gpu`.

    Return an empty string if the engine can run. If `library` or `gpu` is None, any library or GPU is accepted.
    """
    if library is not None and (key.get("flavour"), key.get("version")) != (library.flavour, library.version):
        return f"built with {key.get('flavour')} {key.get('version')}, but this machine has {library}"
    here = None if gpu is None else [gpu.name, list(gpu.compute_capability)]
    if gpu is not None and [key.get("gpu_name"), key.get("compute_capability")] != here:
        return f"built for {key.get('gpu_name')}, but this machine has {gpu.name}"
    return ""

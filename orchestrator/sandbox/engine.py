"""The Docker engine, through the only module that imports ``docker``.

Everything here blocks; async callers run it on worker threads (:mod:`orchestrator.sandbox.container`). Foreign
exceptions end here: they leave as :class:`~orchestrator.errors.EngineUnavailableError` and its siblings.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from orchestrator.errors import EngineUnavailableError, ImageError
from orchestrator.text import one_line

if TYPE_CHECKING:
    import docker

# One request to the engine; starting a container on a loaded two-core machine has taken 4 s.
REQUEST_TIMEOUT_S = 60
BUILD_TIMEOUT_S = 1800
# Between a container's last oom event and its die event, by the engine's clock; 0.1 s has been seen.
OOM_BEFORE_DEATH_S = 3


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image the engine holds.

    Attributes:
        id: a digest.
        labels: as it was built with.
        created: when it was built, in Unix time; 0 where the engine was not asked for a list.
    """

    id: str
    labels: dict[str, str]
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class ContainerInfo:
    """A container the engine knows, running or not."""

    id: str
    state: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine says of itself and its host.

    Attributes:
        version: of the engine.
        runc: version of the default low-level runtime, as reported.
        kernel: release of the host's Linux.
        cgroup_version: ``1`` or ``2``.
        cgroup_driver: ``cgroupfs`` or ``systemd``.
        security_options: such as ``name=seccomp,profile=default`` or ``name=userns``.
        runtimes: names of the OCI runtimes it can be asked for.
        default_runtime: the one it takes unasked.
        architecture: of the host, such as ``x86_64``.
        operating_system: of the host.
        swarm: whether the engine is part of a swarm.
        name: host name of the engine's host.
    """

    version: str
    runc: str
    kernel: str
    cgroup_version: str
    cgroup_driver: str
    security_options: tuple[str, ...]
    runtimes: tuple[str, ...]
    default_runtime: str
    architecture: str
    operating_system: str
    swarm: bool = False
    name: str = ""


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    import docker.errors
    import requests

    try:
        yield
    except docker.errors.APIError as error:
        raise EngineUnavailableError(f"the Docker engine refused to {doing}: {error.explanation or error}") from error
    except requests.ReadTimeout as error:
        raise EngineUnavailableError(f"the Docker engine did not {doing} within {REQUEST_TIMEOUT_S} s") from error
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise EngineUnavailableError(
            f"no Docker engine answers at {_address()} ({_reason(error)}): start dockerd, or set DOCKER_HOST"
        ) from error


def _address() -> str:
    host = os.environ.get("DOCKER_HOST")
    return f"DOCKER_HOST={one_line(host, 100)}" if host else "/var/run/docker.sock"


def _knock(base_url: str | None) -> None:
    """Connect to the engine's Unix socket and hang up: docker-py leaves a socket open that could not connect.

    Raises:
        OSError: nobody listens there.
    """
    from docker.utils import parse_host

    scheme, _, path = str(parse_host(base_url)).partition("://")
    if scheme == "http+unix":
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(REQUEST_TIMEOUT_S)
            probe.connect(path)


def _reason(error: BaseException) -> str:
    """Return what the operating system said at the bottom of it, else the beginning of the error's own text."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return one_line(str(error), 80)


class Engine:
    """A connection to one engine, as found by Docker's own environment variables."""

    def __init__(self, api: docker.APIClient) -> None:
        """Wrap a client; use :meth:`connect`."""
        self._api = api

    @classmethod
    def connect(cls) -> Engine:
        """Connect to the engine of ``DOCKER_HOST`` and its siblings, else to the local socket.

        Raises:
            EngineUnavailableError: none answers.
        """
        import docker
        import docker.utils

        with _translated("say its version"):
            settings = docker.utils.kwargs_from_env()
            _knock(settings.get("base_url"))
            # Every box keeps one connection for its stream besides those of short requests.
            return cls(docker.APIClient(version="auto", timeout=REQUEST_TIMEOUT_S, max_pool_size=64, **settings))

    @property
    def address(self) -> str:
        """Where it is, as the client has it."""
        return str(self._api.base_url)

    def close(self) -> None:
        """Close idle connections; streams that were attached stay open."""
        self._api.close()

    def info(self) -> EngineInfo:
        """Ask the engine about itself."""
        with _translated("describe itself"):
            info = self._api.info()
            version = self._api.version()
        components = {part["Name"].lower(): part["Version"] for part in version.get("Components", [])}
        return EngineInfo(
            version=version.get("Version", ""),
            runc=components.get("runc", ""),
            kernel=info.get("KernelVersion", ""),
            cgroup_version=str(info.get("CgroupVersion", "1")),
            cgroup_driver=info.get("CgroupDriver", ""),
            security_options=tuple(info.get("SecurityOptions") or ()),
            runtimes=tuple(sorted(info.get("Runtimes") or ())),
            default_runtime=info.get("DefaultRuntime", ""),
            architecture=info.get("Architecture", ""),
            operating_system=info.get("OperatingSystem", ""),
            swarm=(info.get("Swarm") or {}).get("LocalNodeState", "inactive") != "inactive",
            name=info.get("Name", ""),
        )

    # Containers -----------------------------------------------------------------------------------------------------

    def create(self, config: dict[str, Any], name: str) -> str:
        """Create a container from the engine API's own JSON; return its id."""
        import docker.errors

        with _translated("create the container"):
            try:
                return str(self._api.create_container_from_config(config, name)["Id"])
            except docker.errors.APIError as error:
                runtime = config["HostConfig"].get("Runtime", "")
                known = self.info().runtimes
                if not runtime or runtime in known:
                    raise
                raise EngineUnavailableError(
                    f"the Docker engine has no runtime {runtime!r}: register it (see policies/GVISOR.md), or set "
                    f"sandbox.runtime to one it has ({', '.join(known)})"
                ) from error

    def attach(self, container: str) -> socket.socket:
        """Return the raw stream of a created container's stdin, stdout and stderr, multiplexed by the engine.

        Raises:
            EngineUnavailableError: the engine is reached over TLS or SSH, whose streams cannot be half-read safely:
                forward its socket instead (``ssh -L local.sock:/var/run/docker.sock``).
        """
        with _translated("attach to the container"):
            parameters = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            raw = self._api.attach_socket(container, params=parameters)
            inner = getattr(raw, "_sock", None)
            if type(inner) is not socket.socket:
                raise EngineUnavailableError(
                    "an engine reached over TLS or SSH is not supported; forward its socket and set DOCKER_HOST to it"
                )
            # The response behind ``raw`` would close the descriptor whenever it is collected: take a copy, end it now.
            stream = inner.dup()
            inner.close()
            raw.close()
            return stream

    def start(self, container: str) -> None:
        """Start a created container."""
        with _translated("start the container"):
            self._api.start(container)

    def inspect(self, container: str) -> dict[str, Any]:
        """Return the engine's full record of a container."""
        with _translated("inspect the container"):
            record: dict[str, Any] = self._api.inspect_container(container)
            return record

    def ran_out_of_memory(self, container: str, patience_s: int) -> bool:
        """Whether memory is what a container died of; False as well if it is not known to have ended within the time.

        The engine remembers for a while, even of a container that is gone. A box outlives the end of processes in it
        for want of memory: what counts is one just before its own end, by the engine's clock.
        """
        with _translated("say what a container died of"):
            events = self._api.events(
                since=1,
                until=int(time.time()) + patience_s,
                filters={"container": [container], "event": ["oom", "die"]},
                decode=True,
            )
            with closing(events):
                return _died_of_memory(events)

    def end(self, container: str, timeout_s: float) -> None:
        """See a container off that removes itself when it exits, and kill it if it stays; one that is gone is fine.

        A box exits by itself once its stream is closed. To kill or remove it at that moment races with the engine's own
        handling of the exit, after which Docker 20.10 keeps a record "Removal In Progress" for ever, of a container
        that is not there. So it is killed only when it is still there after a third of the time.
        """
        import docker.errors

        with _translated("end the container"):
            try:
                if self._api.inspect_container(container)["State"]["Status"] == "created":
                    self._remove(container)
                    return
                if not self._gone_within(container, timeout_s / 3):
                    self._api.kill(container)
                    if not self._gone_within(container, timeout_s / 3):
                        self._remove(container)
            except docker.errors.APIError as error:
                # 404: gone. 409: it exited while it was to be killed.
                if error.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                    raise

    def _gone_within(self, container: str, timeout_s: float) -> bool:
        import requests

        try:
            self._api.wait(container, timeout=math.ceil(timeout_s), condition="removed")
        except (requests.exceptions.Timeout, requests.exceptions.ConnectionError):
            # The engine sends the head of its reply at once; requests calls a body that is late a ConnectionError. An
            # engine that is gone is one, too: what is asked of it next will say so.
            return False
        return True

    def _remove(self, container: str) -> None:
        import docker.errors

        try:
            self._api.remove_container(container, force=True, v=True)
        except docker.errors.APIError as error:
            # 409: another removal is in progress.
            if error.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise

    def containers(self, label: str) -> list[ContainerInfo]:
        """Return all containers, running or not, that carry ``label`` (``key`` or ``key=value``)."""
        with _translated("list containers"):
            found = self._api.containers(all=True, filters={"label": label})
        return [ContainerInfo(item["Id"], item["State"], dict(item.get("Labels") or {})) for item in found]

    # Images ---------------------------------------------------------------------------------------------------------

    def images(self, label: str) -> list[ImageInfo]:
        """Return all images that carry ``label`` (``key`` or ``key=value``), newest first."""
        with _translated("list images"):
            found = self._api.images(filters={"label": label})
        found.sort(key=lambda item: item.get("Created", 0), reverse=True)
        return [ImageInfo(item["Id"], dict(item.get("Labels") or {}), item.get("Created", 0)) for item in found]

    def image(self, reference: str) -> ImageInfo | None:
        """Return the local image of that id or reference, or None; nothing is pulled."""
        import docker.errors

        with _translated("inspect the image"):
            try:
                record = self._api.inspect_image(reference)
            except docker.errors.ImageNotFound:
                return None
        return ImageInfo(record["Id"], dict((record.get("Config") or {}).get("Labels") or {}))

    def pull(self, reference: str, timeout_s: float) -> bool:
        """Try to pull ``reference``; return whether it is there now. A registry that does not answer is no error."""
        import docker.errors
        import requests

        previous, self._api.timeout = self._api.timeout, int(timeout_s)
        try:
            self._api.pull(reference)
        except (docker.errors.DockerException, requests.RequestException, OSError):
            return False
        finally:
            self._api.timeout = previous
        return self.image(reference) is not None

    def import_rootfs(self, tar: Path, tag: str) -> str:
        """Make an image of a root file system in a tar file; return its id.

        Raises:
            ImageError: the engine did not take it.
        """
        import docker.errors

        repository, _, version = tag.rpartition(":")
        with _translated("import a root file system"):
            try:
                self._api.import_image_from_file(str(tar), repository=repository, tag=version)
            except docker.errors.APIError as error:
                raise ImageError(f"the engine refused the root file system: {error.explanation}") from error
        image = self.image(tag)
        if image is None:
            raise ImageError("the engine took the root file system and then lost it")
        return image.id

    def build(self, context: BinaryIO, *, build_args: dict[str, str], labels: dict[str, str], tag: str) -> str:
        """Build an image from a tar stream with ``Dockerfile.sandbox`` in it, without network; return its id.

        Raises:
            ImageError: a step failed; the message ends with the last lines of the log.
        """
        log: list[str] = []
        with _translated("build the image"):
            stream = self._api.build(
                fileobj=context,
                custom_context=True,
                dockerfile="Dockerfile.sandbox",
                buildargs=build_args,
                labels=labels,
                tag=tag,
                network_mode="none",
                pull=False,
                rm=True,
                forcerm=True,
                decode=True,
                timeout=BUILD_TIMEOUT_S,
            )
            for line in stream:
                if "error" in line:
                    tail = "\n".join(log[-20:])
                    raise ImageError(f"the image did not build: {line['error']}\n{tail}")
                log.append(str(line.get("stream", "")).rstrip())
        image = self.image(tag)
        if image is None:
            raise ImageError("the engine reported no error, but there is no image")
        return image.id

    def remove_image(self, image: str) -> None:
        """Remove an image that no container uses; one that is in use, or gone, stays as it is."""
        import docker.errors

        with _translated("remove the image"):
            try:
                self._api.remove_image(image)
            except docker.errors.APIError as error:
                if error.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                    raise


def _died_of_memory(events: Iterator[dict[str, Any]]) -> bool:
    short = -math.inf
    for event in events:
        when = int(event.get("timeNano", 0)) / 1e9
        if event.get("Action") == "oom":
            short = when
        elif event.get("Action") == "die":
            ended_well = event.get("Actor", {}).get("Attributes", {}).get("exitCode") == "0"
            return not ended_well and when - short <= OOM_BEFORE_DEATH_S
    return False

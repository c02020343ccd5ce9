"""The built image, looked at from outside and from inside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest

from orchestrator.errors import EngineUnavailableError
from orchestrator.sandbox import image
from orchestrator.sandbox.engine import Engine
from sandbox_image.wire import PROTOCOL_VERSION

pytestmark = pytest.mark.docker

Inside = Callable[[str], Any]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    try:
        engine = Engine.connect()
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def built(engine: Engine) -> image.ImageRef:
    return image.build(engine, report=lambda _line: None)


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="module")
def inside(client: docker.DockerClient, built: image.ImageRef) -> Inside:
    """Run a program in a container of the image, as a box's supervisor is run; return what it prints as JSON."""

    def run(program: str) -> Any:
        output = client.containers.run(
            built.id,
            ["-c", program],
            entrypoint=["/opt/box/python", "-I", "-B"],
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            tmpfs={"/tmp": "size=16m"},  # noqa: S108 - the container's
            remove=True,
        )
        return json.loads(output)

    return run


def test_a_second_build_finds_the_first_and_reports_nothing(engine: Engine, built: image.ImageRef) -> None:
    said: list[str] = []
    assert image.build(engine, report=said.append) == built
    assert image.find(engine) == built
    assert said == []


def test_the_image_carries_labels_user_entrypoint_and_no_metadata_of_its_base(
    client: docker.DockerClient, built: image.ImageRef
) -> None:
    config = client.images.get(built.id).attrs["Config"]
    assert config["Labels"][image.PROTOCOL_LABEL] == str(PROTOCOL_VERSION)
    assert config["Labels"][image.CONTENT_LABEL] == image.content_hash()
    assert config["User"] == "64000:64000"
    assert config["WorkingDir"] == "/work"
    assert config["Entrypoint"] == ["/opt/box/python", "-I", "-B", "-u", "/opt/box/sandbox_image/supervisor.py"]
    assert [entry.partition("=")[0] for entry in config["Env"]] == ["PATH"]
    assert not config.get("Volumes")
    assert not config.get("ExposedPorts")
    assert not config.get("Cmd")


def test_no_file_has_a_setuid_or_setgid_bit(inside: Inside) -> None:
    assert (
        inside(
            """
import json, os, stat
found = []
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if not os.path.ismount(os.path.join(folder, name))]
    for name in folders + files:
        path = os.path.join(folder, name)
        if os.lstat(path).st_mode & (stat.S_ISUID | stat.S_ISGID):
            found.append(path)
print(json.dumps(found))
"""
        )
        == []
    )


def test_the_box_owns_nothing_and_its_working_folder_is_empty(inside: Inside) -> None:
    owned, work, identity = inside(
        """
import json, os, pwd
owned = []
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if not os.path.ismount(os.path.join(folder, name))]
    owned += [os.path.join(folder, name) for name in folders + files if os.lstat(os.path.join(folder, name)).st_uid]
identity = [os.getuid(), os.getgid(), os.getcwd(), pwd.getpwuid(os.getuid())[0]]
print(json.dumps([owned, os.listdir(os.getcwd()), identity]))
"""
    )
    assert owned == []
    assert work == []
    assert identity == [64000, 64000, "/work", "box"]


def test_libraries_import_isolated_from_bytecode_in_the_image(inside: Inside) -> None:
    version, missing, sources = inside(
        """
import importlib.util, json, os, sys
import ipykernel.ipkernel, numpy, pandas, zmq
import sandbox_image.wire
files = [module.__spec__ for module in list(sys.modules.values()) if getattr(module, "__spec__", None)]
sources = [spec.origin for spec in files if (spec.origin or "").endswith(".py")]
missing = [path for path in sources if not os.path.exists(importlib.util.cache_from_source(path))]
print(json.dumps([sys.version_info[:2], missing, len(sources)]))
"""
    )
    assert version == [3, 13]
    assert missing == []
    assert sources > 500


def test_pandas_and_numpy_compute_and_know_time_zones(inside: Inside) -> None:
    assert inside(
        """
import json
import numpy, pandas
frame = pandas.DataFrame({"a": numpy.arange(4), "b": list("xyxy")})
sums = frame.groupby("b")["a"].sum().to_dict()
hours = pandas.Timestamp("2026-07-01", tz="Europe/Paris").utcoffset().total_seconds() / 3600
print(json.dumps([sums, hours, float(numpy.linalg.det(numpy.eye(3) * 2))]))
"""
    ) == [{"x": 2, "y": 4}, 2.0, pytest.approx(8.0)]


def test_no_package_installer_is_left_in_the_image(inside: Inside) -> None:
    assert (
        inside(
            """
import importlib.util, json, shutil
modules = [name for name in ("pip", "ensurepip", "setuptools") if importlib.util.find_spec(name)]
print(json.dumps(modules + [name for name in ("pip", "pip3") if shutil.which(name)]))
"""
        )
        == []
    )

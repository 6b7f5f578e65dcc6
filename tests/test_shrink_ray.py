"""Data sets shrunk on a Ray cluster: the same bytes as by threads, whatever dies, and what the machines must share."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="pictures are read by Pillow")
pytest.importorskip("safetensors", reason="labels are stored by safetensors")
ray = pytest.importorskip("ray", reason="the engine 'ray' needs Ray")
pytest.importorskip("ray.data", reason="the engine 'ray' needs Ray Data")

from tritonsoft.data import (  # noqa: E402
    ClusterError,
    label_format,
    pair_files,
    ray_engine,
    shrink_dataset,
    shrink_settings,
)
from tritonsoft.data.saving import TEMPORARY_PREFIX  # noqa: E402

pytestmark = pytest.mark.xdist_group("ray")  # one cluster for all
SETTINGS = shrink_settings(label_format(5), factor=4)
PICTURES = 32


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of this machine with two workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        context = ray.init(
            "local", num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False
        )
        yield context.address_info["gcs_address"]
        ray.shutdown()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Pictures, of which one image is broken, one label file has an unknown class, and one image is missing."""
    random = np.random.default_rng(0)
    for number in range(PICTURES):
        for kind, shape, high in (("images", (200, 300, 3), 256), ("labels", (200, 300), 5)):
            file = tmp_path / "source" / kind / f"{number % 2}" / f"{number:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, high, shape, np.uint8)).save(file, compress_level=0)
    folder = tmp_path / "source"
    broken = folder / "images/0/02.png"
    broken.write_bytes(broken.read_bytes()[:1000])
    Image.fromarray(np.full((200, 300), 77, np.uint8)).save(folder / "labels/1/03.png")
    (folder / "images/0/04.png").unlink()
    (folder / "images/0/04.png").symlink_to("nowhere.png")
    return folder


def shrink(source: Path, out: Path, **options: Any) -> Any:
    return shrink_dataset(source / "images", source / "labels", out, SETTINGS, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def workers_of_ray() -> set[int]:
    """Processes that shrink at this moment: Ray names them by what they do."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if "ray::Map(_attempt)" in (folder / "cmdline").read_text():
                found.add(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


def test_the_bytes_are_those_of_threads_though_a_worker_is_killed(
    cluster: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # relative paths are those of this process
    expected = shrink(Path("source"), Path("threads"))
    assert len(expected.skipped) == 3
    killed: list[int] = []
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    def kill() -> None:
        """One that works, once some of the work is done; nobody waits for this process to be told of that."""
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            if any(Path("ray").rglob("*.safetensors")):
                for worker in workers_of_ray():
                    with contextlib.suppress(ProcessLookupError):  # it has ended
                        os.kill(worker, signal.SIGKILL)
                        killed.append(worker)
                        break
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    result = shrink(Path("source"), Path("ray"), engine="ray", workers=2, progress=progress)
    killer.join()
    assert killed
    assert ray.is_initialized()  # it was not ours to end
    assert seen == [(done, PICTURES) for done in range(PICTURES + 1)]
    assert result.samples == expected.samples
    assert [message.replace(f"{tmp_path}/", "") for message in result.skipped] == list(expected.skipped)
    made, wanted = files_of(Path("ray")), files_of(Path("threads"))
    del made["manifest.json"], wanted["manifest.json"]
    assert made == wanted
    assert not list(Path("ray").rglob(f"{TEMPORARY_PREFIX}*"))

    # What is there is found by its checksums, and what is not is made.
    (file := tmp_path / "ray" / result.samples[5].labels).unlink()
    kept = (tmp_path / "ray" / result.samples[6].labels).stat().st_mtime_ns
    assert shrink(Path("source"), Path("ray"), engine="ray", existing="resume").samples == expected.samples
    assert file.exists()
    assert (tmp_path / "ray" / result.samples[6].labels).stat().st_mtime_ns == kept


def test_an_address_is_refused_where_a_cluster_is_connected(cluster: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this program is connected"):
        shrink(source, tmp_path / "out", engine="ray", address=cluster)
    assert not (tmp_path / "out").exists()


def test_the_command_uses_a_running_cluster_and_says_little(cluster: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folders = ("--images", source / "images", "--labels", source / "labels", "--out", out)
    options = ("--num-classes", 5, "--factor", 4, "--engine", "ray", "--address", cluster, "--limit", 6)
    command = [str(part) for part in (sys.executable, "-m", "tritonsoft", "shrink", *folders, *options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stderr  # files were left out
    assert done.stdout.startswith("4 pictures in ")
    assert done.stdout.count("\n") == 1
    assert all(line.startswith("left out ") for line in done.stderr.splitlines()), done.stderr
    assert done.stderr.count("\n") == 2
    expected = files_of(tmp_path / "threads") if shrink(source, tmp_path / "threads", limit=6) else {}
    made = files_of(out)
    del made["manifest.json"], expected["manifest.json"]
    assert made == expected


@pytest.mark.parametrize(
    ("address", "message"),
    [("ray://127.0.0.1:10001", "Ray Client"), ("nonsense", "cannot be used"), (None, "no Ray cluster answers at")],
)
def test_an_address_where_nothing_answers_is_named_at_once(
    address: str | None, message: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:  # bound, and nobody listens
        free.bind(("127.0.0.1", 0))
        started = time.monotonic()
        with pytest.raises(ClusterError, match=message):
            shrink(source, tmp_path / "out", engine="ray", address=address or f"127.0.0.1:{free.getsockname()[1]}")
    assert time.monotonic() - started < 10
    assert not (tmp_path / "out").exists()


class OtherMachine:
    """Workers that do not see a file of ours."""

    def __init__(self, hidden: Path) -> None:
        self.hidden = hidden

    def run(self, work: Any, items: Any) -> Iterator[tuple[Any, Any]]:
        for item in items:
            elsewhere = self.hidden.rename(self.hidden.with_name("elsewhere"))
            try:
                outcome = work(item)
            except ray_engine.EXPECTED as error:
                outcome = error
            elsewhere.rename(self.hidden)
            yield item, outcome


@pytest.mark.parametrize("hidden", ["source/images", "source/labels/0/00.png", "out"])
def test_a_machine_that_does_not_see_the_files_is_named(hidden: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    pairs = pair_files(source / "images", source / "labels")[0][:1]
    machine: Any = OtherMachine(tmp_path / hidden)
    found = ray_engine.shrink_on(machine, pairs, SETTINGS, label_format(5), out, resume=False)
    with pytest.raises(
        ClusterError, match=rf"{socket.gethostname()} does not see .*{hidden}.*: all machines must share"
    ):
        raise next(found)[1]  # type: ignore[misc]
    found.close()
    assert not list(out.iterdir())


def test_a_machine_with_other_versions_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (probe := tmp_path / "probe").touch()
    with pytest.raises(ClusterError, match=r"has pillow [\d.]+, not 1\.0: all machines need the same"):
        ray_engine._check_machine(probe, (("pillow", "1.0"),))


def test_arguments_of_the_engine_are_named(source: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"engine": "dask"}, "engine must be one of local, ray, got 'dask'"),
        ({"address": "auto"}, "address is of engine 'ray', got 'auto' with 'local'"),
        ({"engine": "ray", "workers": 0}, "workers must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            shrink(source, tmp_path / "out", **options)

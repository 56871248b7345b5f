"""Hostile files against a real server: each is refused with a clear reason, and nothing else happens.

`./dev test hostile` runs all cases; the ordinary test run takes every twelfth (MODELPRESS_HOSTILE=1 makes it all of
them). For each: the operation ends with an error that is the caller's and names the file. For all together: the
server's memory stays where it was, nothing outside of its data directory is read or written, and afterwards it works
as before.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

import modelpress
import pytest

from tests.e2e.server_process import GOLDEN_SAVE, ServerProcess
from tests.hostile import data, models, texts
from tests.hostile.calls import CALLS
from tests.hostile.case import UNCLEAR, Case, all_cases, good_files

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = os.environ.get("MODELPRESS_HOSTILE") == "1"
GENERATOR_MODULES = (models, data, texts)  # whose import registers their cases
EVERY = 12
CALL_LIMIT_S = 60.0  # longer is a finding, but for what is endless by itself
GROWTH_MB = 48  # of the server over all cases, once it has seen some of each kind
WARM_UP = 40
CLIENTS = 3

# Cases that may end otherwise than with a clear error of the caller's, and why. Empty is the goal.
ACCEPTED: dict[str, str] = {}


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that nobody may read, beside the data directory."""
    folder = tmp_path_factory.mktemp("hostile") / "canary"
    folder.mkdir()
    path = folder / "secret.bin"
    # As many bytes as the weight has that points to it: what was read would fit.
    path.write_bytes((secrets.token_bytes(16) * 108)[:1728])
    return path


@pytest.fixture(scope="module")
def server(canary: Path) -> Iterator[ServerProcess]:
    """One server for all cases."""
    flags = ("--workers=2", "--threads_per_operation=1", "--child_memory_limit_mb=4096", "--child_file_limit_mb=1024")
    with ServerProcess(canary.parent.parent, *flags, "--log_format=text") as process:
        yield process


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def listing(folder: Path, besides: Path) -> dict[str, str]:
    """Digests of all files below a folder, but those of the server's own."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and besides not in path.parents and path.name not in {"server.log", "port"}
    }


def upload(client: modelpress.Client, workspace: str, folder: str, files: dict[str, bytes], scratch: Path) -> None:
    """Puts files into a folder of a workspace; content that the server has is not sent again."""
    local = scratch / folder.replace("/", "-")
    for path, content in files.items():
        local.write_bytes(content)
        client.upload_file(workspace, f"{folder}/{path}", local)
    local.unlink()


def outcome(client: modelpress.Client, workspace: str, case: Case, scratch: Path) -> str:
    """Runs a case; "" if it ended as it should, else what is wrong."""
    files = good_files() | case.content()
    upload(client, workspace, case.name, files, scratch)
    begun = time.monotonic()
    try:
        CALLS[case.call](client, workspace, case.name).result(timeout=180)
    except modelpress.Error as error:
        problems = []
        if error.reason in UNCLEAR or error.code in (2, 13):
            problems.append(f"is not clear: {type(error).__name__}")
        if case.reasons and error.reason not in case.reasons:
            problems.append(f"is not one of {sorted(case.reasons)}")
        # Where two files contradict each other, either may be named.
        named = any(f"{case.name}/{path}" in error.message for path in files)
        if not named and error.reason not in {"OPERATION_DEADLINE", "RESOURCE_LIMIT"}:
            problems.append("names none of the files")
        if "/scratch/" in error.message:
            problems.append("tells a path of the server")
        if (took := time.monotonic() - begun) > CALL_LIMIT_S and not case.reasons & {"OPERATION_DEADLINE"}:
            problems.append(f"took {took:.1f} s")
        if problems:
            return f"{'; '.join(problems)}: {error.reason} {error.message[:300]!r}"
        return ""
    except TimeoutError:
        return "did not end in 180 s"
    return "" if case.harmless else "was accepted"


def run_cases(server: ServerProcess, workspace: str, cases: list[Case], scratch: Path) -> dict[str, str]:
    """What is wrong, by case."""
    wrong: dict[str, str] = {}

    def work(share: list[Case]) -> None:
        with modelpress.Client(server.target) as client:
            for case in share:
                problem = outcome(client, workspace, case, scratch)
                if problem and case.name not in ACCEPTED:
                    wrong[case.name] = problem
                    print(f"{case.name}: {problem}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(work, cases[i::CLIENTS]) for i in range(CLIENTS)]:
            done.result()
    return wrong


def check_normal_operation(server: ServerProcess, folder: Path) -> None:
    """A good file gives the bytes that it should."""
    golden = GOLDEN_SAVE / "conv2d_bn_relu_linear"
    with modelpress.Client(server.target) as client:
        result = client.save_model_files(
            golden / "modified.onnx", golden / "record.txt", str(folder / "m"), reference_defects=True
        )
        assert result.deploy_model.read_bytes() == (golden / "deploy.onnx").read_bytes()


def test_hostile_files(server: ServerProcess, canary: Path, tmp_path: Path) -> None:
    cases = all_cases() + list(models.canary_cases(canary))
    refused = sum(1 for case in cases if not case.harmless)
    assert refused >= 200
    if not ALL:
        cases = cases[::EVERY]
    outside = canary.parent.parent
    before = listing(outside, server.data_dir)
    with modelpress.Client(server.target) as client:
        workspace = client.create_workspace("hostile").name

    begun = time.monotonic()
    check_normal_operation(server, tmp_path)
    warm_up, rest = cases[:: max(1, len(cases) // WARM_UP)], []
    names = {case.name for case in warm_up}
    rest = [case for case in cases if case.name not in names]
    wrong = run_cases(server, workspace, warm_up, tmp_path)
    warm = resident_mb(server.pid)
    wrong |= run_cases(server, workspace, rest, tmp_path)
    after = resident_mb(server.pid)
    check_normal_operation(server, tmp_path / "again")

    print(
        f"{len(cases)} hostile files ({refused} that must be refused of {len(all_cases())} in all) in "
        f"{time.monotonic() - begun:.0f} s; server {warm:.0f} MB after {len(warm_up)}, {after:.0f} MB after all"
    )
    report = "\n".join(f"{name}: {problem}" for name, problem in sorted(wrong.items()))
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n{report}"
    assert after - warm < GROWTH_MB
    assert listing(outside, server.data_dir) == before, "something outside was written"
    assert not Path("/tmp/modelpress-was-here").exists(), "code in a file was run"
    secret = canary.read_bytes()[:16]
    for path in server.data_dir.rglob("*"):
        if path.is_file() and path.stat().st_size < 64 << 20:
            assert secret not in path.read_bytes(), f"{path} has bytes from outside"
    assert not list((server.data_dir / "scratch").glob("*/*")), "scratch files are left"

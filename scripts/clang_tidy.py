"""Runs clang-tidy over every source of ours, skipping those that were clean before.

A source is known to be clean if its preprocessed text, its flags and the configuration are the ones it was clean with;
the cache holds one empty file per such combination.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def fingerprint(entry: dict[str, str], configuration: bytes) -> str:
    """Returns a digest of everything that clang-tidy's verdict on `entry` depends on."""
    command = shlex.split(entry["command"])
    if command[0].endswith("ccache"):
        command = command[1:]
    output = command.index("-o")
    # Without line numbers, so that a longer comment is no change.
    preprocess = [*command[:output], *command[output + 2 :], "-E", "-P"]
    preprocess.remove("-c")
    for flag in ("-MD", "-MT", "-MF"):
        while flag in preprocess:
            at = preprocess.index(flag)
            del preprocess[at : at + (1 if flag == "-MD" else 2)]
    text = subprocess.run(preprocess, cwd=entry["directory"], check=True, capture_output=True).stdout
    digest = hashlib.sha256()
    digest.update(configuration)
    digest.update(" ".join(preprocess).encode())
    digest.update(text)
    return digest.hexdigest()


def check(entry: dict[str, str], configuration: bytes, build: pathlib.Path, cache: pathlib.Path) -> tuple[bool, str]:
    """Returns (was it run, what clang-tidy said; empty if clean)."""
    stamp = cache / fingerprint(entry, configuration)
    if stamp.exists():
        return False, ""
    result = subprocess.run(
        ["clang-tidy", "--quiet", "-p", str(build), "--extra-arg=-Wno-unknown-warning-option", entry["file"]],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        return True, result.stdout + result.stderr
    stamp.touch()
    return True, ""


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True, help="folder with compile_commands.json")
    parser.add_argument("--cache", type=pathlib.Path, required=True)
    parser.add_argument("files", nargs="*", help="only sources whose path in the tree begins with one of these")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    entries = [
        entry
        for entry in json.loads((arguments.build / "compile_commands.json").read_text())
        if entry["file"].startswith(tuple(f"{ROOT}/{part}" for part in arguments.files or [""]))
    ]
    # The effective checks and the version, so that a comment in .clang-tidy costs no second run.
    configuration = b"".join(
        subprocess.run(["clang-tidy", flag], cwd=ROOT, check=True, capture_output=True).stdout
        for flag in ("--version", "--dump-config")
    )
    failed = ran = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        pending = [pool.submit(check, entry, configuration, arguments.build, arguments.cache) for entry in entries]
        for future in concurrent.futures.as_completed(pending):
            was_run, text = future.result()
            ran += was_run
            if text:
                failed += 1
                print(text, flush=True)
    print(f"clang-tidy: {len(entries)} sources, {ran} checked now, {failed} with findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

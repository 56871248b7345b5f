"""Adds the step that generates the protobuf and gRPC stubs to setuptools' build (everything else: pyproject.toml)."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import generate_stubs  # type: ignore[import-not-found,unused-ignore]  # noqa: E402  (beside this file, which the build backend does not put on the path)


class BuildWithStubs(build_py):  # type: ignore[misc]  # setuptools is untyped
    """build_py, then the stubs beside the hand-written modules."""

    def run(self) -> None:
        """Builds; an editable install gets the stubs in src/, where git ignores them."""
        super().run()
        generate_stubs.generate(HERE / "src" if self.editable_mode else Path(self.build_lib))


setup(cmdclass={"build_py": BuildWithStubs})

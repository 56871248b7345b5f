#!/usr/bin/env bash
# All static checks; runs in the dev image (./dev lint [BEGINNING OF A PATH]...: clang-tidy over these sources only).
set -euo pipefail
cd /src

mapfile -t sources < <(find engine server client tests -name '*.h' -o -name '*.cc' | sort)
mapfile -t python < <(find client/python tests examples scripts -name '*.py' -not -path 'tests/golden/*' | sort)
status=0

echo "clang-format: ${#sources[@]} files"
clang-format --dry-run -Werror "${sources[@]}" || status=1

echo "ruff: ${#python[@]} files"
ruff check --no-cache --config client/python/pyproject.toml "${python[@]}" || status=1
ruff format --no-cache --config client/python/pyproject.toml --check "${python[@]}" || status=1

echo "mypy"
python3 client/python/generate_stubs.py /build/python
MYPYPATH=/build/python:/src/examples:/src/tests/client/python:/src mypy --config-file client/python/pyproject.toml \
  --cache-dir /lint/mypy "${python[@]}" || status=1

echo "clang-tidy"
cmake --preset release >/build/lint.log
# Generated headers must exist before the sources that include them can be read.
cmake --build --preset release --target generated_sources >>/build/lint.log
python3 scripts/clang_tidy.py --build /build/release --cache /lint/tidy "$@" || status=1

[[ $status -eq 0 ]] && echo "lint: clean"
exit $status

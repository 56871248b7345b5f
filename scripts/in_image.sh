#!/usr/bin/env bash
# What ./dev does once it is inside the dev image: the tree is /src, build folders are below /build. Not called by hand.
set -euo pipefail

export MODELPRESS_BUILD_ROOT=/build CCACHE_DIR=/ccache CCACHE_BASEDIR=/src CCACHE_NOHASHDIR=1 CCACHE_MAXSIZE=10G
export PYTHONDONTWRITEBYTECODE=1 OMPI_MCA_plm=isolated

build() { # PRESET
  local log=/build/$1.log
  cd /src
  if ! { cmake --preset "$1" && cmake --build --preset "$1"; } >"$log" 2>&1; then
    grep -E -A12 'error|FAILED|CMake Error' "$log" | head -n 150 >&2 || tail -n 80 "$log" >&2
    echo "build of preset $1 failed" >&2
    return 1
  fi
}

# The generated Python stubs, and the paths under which tests, examples and users of `exec` find everything.
use_build() { # PRESET
  export MODELPRESS_SOURCE_DIR=/src MODELPRESS_BIN_DIR=/build/$1/bin
  # abseil's tables mark free slots for AddressSanitizer; Debian's library, built without it, does not take the marks away.
  export ASAN_OPTIONS="allow_user_poisoning=0"
  export TSAN_OPTIONS="ignore_noninstrumented_modules=1 suppressions=/src/tests/tsan.supp"
  export PATH="$MODELPRESS_BIN_DIR:$PATH"
  if [[ -f /src/client/python/generate_stubs.py ]]; then
    python3 /src/client/python/generate_stubs.py /build/python
    export PYTHONPATH="/src/client/python/src:/build/python${PYTHONPATH:+:$PYTHONPATH}"
  fi
}

run_pytest() { # PATHS...
  python3 -m pytest -q -p no:cacheprovider -c /src/client/python/pyproject.toml --rootdir=/src "$@"
}

command=$1
shift
caller_dir=$PWD
case $command in
  build)
    build "${1:-release}"
    ;;
  demo)
    build release
    use_build release
    cd "$caller_dir"
    exec python3 /src/examples/demo.py "$@"
    ;;
  test)
    suite=${1:-all}
    [[ $# -eq 0 ]] || shift
    preset=release
    [[ $suite == asan || $suite == tsan || $suite == fuzz ]] && preset=$suite
    build "$preset"
    use_build "$preset"
    cd /src
    case $suite in
      all)
        ctest --preset release --label-exclude long
        run_pytest tests
        ;;
      unit) ctest --preset release --label-regex unit "$@" ;;
      golden) ctest --preset release --label-regex golden "$@" ;;
      asan | tsan) ctest --preset "$preset" --label-exclude 'long|large' "$@" ;;
      python) run_pytest tests/client/python "$@" ;;
      e2e) run_pytest tests/e2e "$@" ;;
      large) MODELPRESS_LARGE=1 run_pytest tests/e2e -k large "$@" ;;
      fuzz) /src/scripts/fuzz.sh "$@" ;;
      hostile) MODELPRESS_HOSTILE=1 run_pytest tests/hostile -s "$@" ;;
      fault) MODELPRESS_FAULT_ROUNDS=${MODELPRESS_FAULT_ROUNDS:-10} run_pytest tests/fault -s "$@" ;;
      *)
        echo "no such suite: $suite" >&2
        exit 64
        ;;
    esac
    ;;
  serve)
    build release
    use_build release
    cd "$caller_dir"
    [[ " $* " == *" --data_dir"* ]] || set -- --data_dir="$caller_dir/modelpress-data" "$@"
    exec modelpressd serve "$@"
    ;;
  bench)
    build release
    use_build release
    cd "$caller_dir"
    exec python3 /src/tests/bench/run.py "$@"
    ;;
  lint) exec /src/scripts/lint.sh "$@" ;;
  fmt)
    cd /src
    find api engine server client tests -name '*.h' -o -name '*.cc' | xargs clang-format -i
    ruff format -q --no-cache --config client/python/pyproject.toml client/python tests examples scripts
    ruff check -q --no-cache --config client/python/pyproject.toml --fix client/python tests examples scripts
    ;;
  shell)
    use_build release
    exec bash
    ;;
  exec)
    build release
    use_build release
    cd "$caller_dir"
    exec "$@"
    ;;
esac

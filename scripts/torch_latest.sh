#!/usr/bin/env bash
# ./dev test torch-latest: the tests of modelpress.torch with the newest torch, grpcio, protobuf, onnx and onnxruntime that the Python
# package index gives this machine, in a virtual environment on it. The server runs in the image as always.
# MODELPRESS_TORCH: what to install in place of the newest torch ("torch==2.13.0", a wheel file).
set -euo pipefail
cache=$1
shift
cd "$(dirname "$0")/.."

venv=$cache/torch-latest
[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --upgrade "${MODELPRESS_TORCH:-torch}" grpcio grpcio-tools protobuf googleapis-common-protos onnx \
  onnxscript onnxruntime numpy safetensors scikit-learn pillow tqdm pytest pytest-asyncio
"$venv/bin/pip" list 2>/dev/null | grep -iE '^(torch|grpcio|protobuf|onnx|onnxruntime|numpy) '
"$venv/bin/python" client/python/generate_stubs.py "$venv/stubs"

work=$(mktemp -d)
setsid ./dev exec --mount "$work" -- modelpressd serve --data_dir="$work/data" --listen=localhost:0 --port_file="$work/port" \
  --metrics_listen= >"$work/server.log" 2>&1 &
server=$!
trap 'kill -TERM -- -$server 2>/dev/null || true; wait $server || true; rm -rf "$work"' EXIT
until [[ -s $work/port ]]; do
  kill -0 $server 2>/dev/null || {
    cat "$work/server.log" >&2
    exit 1
  }
  sleep 0.2
done

export PYTHONPATH=$PWD/client/python/src:$venv/stubs PYTHONDONTWRITEBYTECODE=1
export MODELPRESS_SOURCE_DIR=$PWD MODELPRESS_BIN_DIR=/nonexistent MODELPRESS_TEST_TARGET=localhost:$(cat "$work/port")
"$venv/bin/python" -m pytest -q -p no:cacheprovider -c client/python/pyproject.toml --rootdir="$PWD" tests/client/python \
  tests/e2e/test_torch.py tests/e2e/test_retrain.py tests/e2e/test_retrain_example.py "$@"

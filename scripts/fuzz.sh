#!/usr/bin/env bash
# ./dev test fuzz [TARGET|all] [SECONDS]: runs libFuzzer (preset `fuzz`, built) on one target of tests/fuzz, or on one after the
# other, for so long each (600). Called by scripts/in_image.sh.
#
# Starts from tests/fuzz/{regressions,seeds,corpus}/TARGET and from the golden files of the target's kind; what is learned stays in
# /build/fuzz-corpus/TARGET for the next run. Findings go to /build/fuzz-findings/TARGET: minimise one with
# TARGET_fuzzer -minimize_crash=1, put it into tests/fuzz/regressions/TARGET, where the ordinary tests replay it, then repair.
# FUZZ_KEEP=1 writes the reduced corpus to tests/fuzz/corpus/TARGET, to be committed if it is small.
set -euo pipefail

readonly BIN=/build/fuzz/bin SOURCE=/src/tests/fuzz GOLDEN=/src/tests/golden
readonly KEEP_BYTES=40000 # of the corpus of one target in the tree
# abseil's tables mark free slots for AddressSanitizer; Debian's library, built without it, does not take the marks away.
export ASAN_OPTIONS="allow_user_poisoning=0:detect_leaks=1:allocator_may_return_null=0"

golden_files() { # TARGET: the golden files of its kind
  local pattern
  case $1 in
    onnx_model) pattern='*.onnx' ;;
    create_functions) pattern='model.onnx' ;;
    record) pattern='*record*.txt' ;;
    cfg) pattern='*.cfg' ;;
    json_config) pattern='*.json' ;;
    npz) pattern='*.npz' ;;
    *) return 0 ;;
  esac
  find "$GOLDEN" -name "$pattern" -size -64k
}

run_target() { # TARGET SECONDS
  local target=$1 seconds=$2 corpus=/build/fuzz-corpus/$1 findings=/build/fuzz-findings/$1 seeds=/build/fuzz-seeds/$1 log=/build/fuzz-$1.log
  local -a options=(-max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 -artifact_prefix="$findings/")
  rm -rf "$seeds"
  mkdir -p "$corpus" "$findings" "$seeds"
  golden_files "$target" | xargs --no-run-if-empty --delimiter='\n' cp --backup=numbered --target-directory="$seeds"
  local -a inputs=("$corpus" "$seeds")
  local kind
  for kind in regressions seeds corpus; do
    [[ ! -d $SOURCE/$kind/$target ]] || inputs+=("$SOURCE/$kind/$target")
  done
  [[ ! -f $SOURCE/$target.dict ]] || options+=(-dict="$SOURCE/$target.dict")
  local status=0 TIMEFORMAT="%R s, %U s of a processor"
  { time "$BIN/${target}_fuzzer" "${options[@]}" "${inputs[@]}" >"$log" 2>&1; } 2>"$log.time" || status=$?
  printf '%-18s exit %d  %s  %s  %s\n' "$target" "$status" "$(<"$log.time")" "$(grep -E '^#[0-9]+.*(DONE|cov:)' "$log" | tail -n 1)" \
    "$(grep -E 'number_of_executed_units|average_exec_per_sec|peak_rss' "$log" | sed 's/stat:://; s/: */=/' | tr '\n' ' ')"
  [[ $status -eq 0 ]] || grep -E 'violated|ERROR: |SUMMARY|Test unit written' "$log" | head -n 5
  if [[ -n ${FUZZ_KEEP:-} ]]; then
    keep_corpus "$target" "${inputs[@]}"
  fi
  return $status
}

# Few inputs that together reach all edges of the code that any has reached, as many as fit, without those that the tree has already.
keep_corpus() { # TARGET INPUTS...
  local target=$1 reduced total=0 known name file size
  shift
  reduced=$(mktemp -d)
  "$BIN/${target}_fuzzer" -set_cover_merge=1 -use_counters=0 -max_len=65536 "$reduced" "$@" >/dev/null 2>&1
  mkdir -p "$SOURCE/corpus/$target"
  rm -f "$SOURCE/corpus/$target"/*
  # libFuzzer calls a file by its SHA-1.
  for known in "/build/fuzz-seeds/$target" "$SOURCE/seeds/$target" "$SOURCE/regressions/$target"; do
    [[ -d $known ]] || continue
    find "$known" -type f -exec sha1sum {} + | cut -c1-40 | while read -r name; do rm -f "$reduced/$name"; done
  done
  find "$reduced" -type f -printf '%s %f\n' | sort -n | while read -r size file; do
    total=$((total + size))
    [[ $total -le $KEEP_BYTES ]] || break
    cp "$reduced/$file" "$SOURCE/corpus/$target/"
  done
  rm -rf "$reduced"
}

target=${1:-all}
seconds=${2:-600}
if [[ $target != all ]]; then
  run_target "$target" "$seconds"
  exit
fi
failed=0
for file in "$SOURCE"/*_fuzzer.cc; do
  run_target "$(basename "$file" _fuzzer.cc)" "$seconds" || failed=1
done
exit $failed

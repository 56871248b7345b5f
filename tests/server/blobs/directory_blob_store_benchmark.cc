// How fast content comes in, beside what the disk does by itself and what hashing costs by itself. The folder is below $TMPDIR.
#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "server/base/sha256.h"
#include "server/blobs/directory_blob_store.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {
namespace {

constexpr size_t kPieceSize = size_t{1} << 20;
constexpr int kPieces = 512;

// Every iteration has other bytes, so that no blob exists before.
std::string NextPiece() {
  static unsigned seed = 0;
  return TestBytes(kPieceSize, ++seed);
}

void SetRate(benchmark::State& state) { state.SetBytesProcessed(state.iterations() * kPieces * kPieceSize); }

void BM_WriteAndSync(benchmark::State& state) {
  TestFolder folder;
  const std::string path = folder.path() + "/file";
  for (auto _ : state) {
    const std::string piece = NextPiece();
    int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    for (int i = 0; i < kPieces; ++i) {
      if (write(file, piece.data(), piece.size()) != static_cast<ssize_t>(piece.size())) {
        std::abort();
      }
    }
    fdatasync(file);
    close(file);
    unlink(path.c_str());
  }
  SetRate(state);
}
BENCHMARK(BM_WriteAndSync)->UseRealTime()->Unit(benchmark::kMillisecond)->Iterations(3);

void BM_HashOnly(benchmark::State& state) {
  const std::string piece = NextPiece();
  for (auto _ : state) {
    Sha256 hash;
    for (int i = 0; i < kPieces; ++i) {
      hash.Update(piece.data(), piece.size());
    }
    benchmark::DoNotOptimize(hash.HexDigest());
  }
  SetRate(state);
}
BENCHMARK(BM_HashOnly)->UseRealTime()->Unit(benchmark::kMillisecond)->Iterations(3);

void BM_AppendAndFinish(benchmark::State& state) {
  TestFolder folder;
  auto store = DirectoryBlobStore::OpenFolder(folder.path());
  for (auto _ : state) {
    state.PauseTiming();
    const std::string piece = NextPiece();
    Sha256 hash;
    for (int i = 0; i < kPieces; ++i) {
      hash.Update(piece.data(), piece.size());
    }
    const BlobInfo blob{hash.HexDigest(), kPieces * kPieceSize};
    state.ResumeTiming();
    auto writer = (*store)->OpenWriter("u1", blob);
    for (int i = 0; i < kPieces; ++i) {
      if (!(*writer)->Append(piece).ok()) {
        std::abort();
      }
    }
    if (!(*writer)->Finish().ok()) {
      std::abort();
    }
    state.PauseTiming();
    unlink((*store)->Path(blob.sha256).c_str());
    state.ResumeTiming();
  }
  SetRate(state);
}
BENCHMARK(BM_AppendAndFinish)->UseRealTime()->Unit(benchmark::kMillisecond)->Iterations(3);

}  // namespace
}  // namespace modelpress::server

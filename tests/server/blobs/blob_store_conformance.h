// What every driver of BlobStore must do. A driver's test includes this once and instantiates BlobStoreConformance with a factory
// of its harness.
#ifndef MODELPRESS_TESTS_SERVER_BLOBS_BLOB_STORE_CONFORMANCE_H_
#define MODELPRESS_TESTS_SERVER_BLOBS_BLOB_STORE_CONFORMANCE_H_

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/base/sha256.h"
#include "server/blobs/blob_store.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {

// One store, empty at first, gone with the harness.
class BlobStoreHarness {
 public:
  virtual ~BlobStoreHarness() = default;
  // Opens it as a freshly started process would. Any number of handles may be open at the same time.
  virtual std::unique_ptr<BlobStore> Open() = 0;
  // A folder from which it can adopt files.
  virtual std::string ScratchFolder() const = 0;
};

using BlobStoreHarnessFactory = std::function<std::unique_ptr<BlobStoreHarness>()>;

inline BlobInfo InfoOf(const std::string& bytes) { return {Sha256Hex(bytes), bytes.size()}; }

class BlobStoreConformance : public testing::TestWithParam<BlobStoreHarnessFactory> {
 protected:
  void SetUp() override {
    harness_ = GetParam()();
    Reopen();
  }
  void Reopen() {
    store_.reset();
    store_ = harness_->Open();
    ASSERT_NE(store_, nullptr);
  }

  // Uploads `bytes` from where the upload stands, `piece` bytes at a time.
  static absl::Status Upload(BlobStore& store, const std::string& id, const std::string& bytes, size_t piece = 1000) {
    MP_ASSIGN_OR_RETURN(std::unique_ptr<BlobWriter> writer, store.OpenWriter(id, InfoOf(bytes)));
    for (size_t at = writer->committed_size(); at < bytes.size(); at += piece) {
      MP_RETURN_IF_ERROR(writer->Append(absl::MakeConstSpan(bytes).subspan(at, piece)));
    }
    return writer->Finish();
  }

  void ExpectHolds(const std::string& bytes) {
    BlobInfo info = InfoOf(bytes);
    ASSERT_OK_AND_ASSIGN(bool contains, store_->Contains(info));
    EXPECT_TRUE(contains);
    ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobReader> reader, store_->Open(info.sha256));
    ASSERT_EQ(reader->size(), bytes.size());
    std::string read(bytes.size() + 1, '\0');
    ASSERT_OK_AND_ASSIGN(size_t count, reader->ReadAt(0, absl::MakeSpan(read)));
    read.resize(count);
    EXPECT_TRUE(read == bytes);
    EXPECT_TRUE(ReadTestFile(store_->Path(info.sha256)) == bytes);
  }
  void ExpectLacks(const std::string& bytes) {
    ASSERT_OK_AND_ASSIGN(bool contains, store_->Contains(InfoOf(bytes)));
    EXPECT_FALSE(contains);
    EXPECT_REASON(store_->Open(InfoOf(bytes).sha256), STORAGE_ERROR);
  }
  uint64_t CommittedSize(const std::string& id) {
    absl::StatusOr<uint64_t> size = store_->CommittedSize(id);
    EXPECT_OK(size);
    return size.value_or(999'999'999);
  }

  std::unique_ptr<BlobStoreHarness> harness_;
  std::unique_ptr<BlobStore> store_;
};

TEST_P(BlobStoreConformance, HoldsWhatWasSent) {
  for (size_t size : {size_t{0}, size_t{1}, size_t{999}, size_t{1000}, (size_t{1} << 20) + 3, size_t{20} << 20}) {
    SCOPED_TRACE(size);
    std::string bytes = TestBytes(size, 1 + size);
    ExpectLacks(bytes);
    EXPECT_OK(Upload(*store_, "u1", bytes, size > 100'000 ? 300'000 : 1000));
    ExpectHolds(bytes);
    EXPECT_EQ(CommittedSize("u1"), 0);
    Reopen();
    ExpectHolds(bytes);
  }
}

TEST_P(BlobStoreConformance, ABlobIsNotThereBeforeItIsFinished) {
  std::string bytes = TestBytes(3000);
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobWriter> writer, store_->OpenWriter("u1", InfoOf(bytes)));
  ASSERT_OK(writer->Append(bytes));
  ExpectLacks(bytes);
  ASSERT_OK(writer->Finish());
  ExpectHolds(bytes);
}

TEST_P(BlobStoreConformance, ContainsWantsTheSizeToo) {
  std::string bytes = TestBytes(10);
  ASSERT_OK(Upload(*store_, "u1", bytes));
  EXPECT_FALSE(*store_->Contains({InfoOf(bytes).sha256, 11}));
}

TEST_P(BlobStoreConformance, ReadsAnyRange) {
  std::string bytes = TestBytes(5000);
  ASSERT_OK(Upload(*store_, "u1", bytes));
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobReader> reader, store_->Open(InfoOf(bytes).sha256));
  for (auto [offset, size] : std::vector<std::pair<uint64_t, size_t>>{
           {0, 10}, {4990, 10}, {4990, 100}, {5000, 1}, {9000, 5}, {3, 0}, {~uint64_t{0}, 9}}) {
    std::string out(size, '\0');
    ASSERT_OK_AND_ASSIGN(size_t count, reader->ReadAt(offset, absl::MakeSpan(out)));
    std::string expected = offset >= bytes.size() ? "" : bytes.substr(offset, size);
    EXPECT_EQ(out.substr(0, count), expected) << offset << " " << size;
  }
}

TEST_P(BlobStoreConformance, WrongBytesAreDiscarded) {
  std::string bytes = TestBytes(5000);
  std::string wrong = bytes;
  wrong[4321] ^= 1;
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobWriter> writer, store_->OpenWriter("u1", InfoOf(bytes)));
  ASSERT_OK(writer->Append(wrong));
  EXPECT_REASON(writer->Finish(), DIGEST_MISMATCH);
  EXPECT_EQ(CommittedSize("u1"), 0);
  ExpectLacks(bytes);
  ExpectLacks(wrong);
  EXPECT_REASON(writer->Append(bytes), INTERNAL_ERROR);  // it has ended
  EXPECT_REASON(writer->Finish(), INTERNAL_ERROR);
  writer.reset();
  EXPECT_OK(Upload(*store_, "u1", bytes));
  ExpectHolds(bytes);
}

TEST_P(BlobStoreConformance, TooFewAndTooManyBytes) {
  std::string bytes = TestBytes(100);
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobWriter> writer, store_->OpenWriter("u1", InfoOf(bytes)));
  EXPECT_REASON(writer->Append(bytes + "x"), DIGEST_MISMATCH);
  EXPECT_EQ(writer->committed_size(), 0);
  ASSERT_OK(writer->Append(bytes.substr(0, 99)));
  EXPECT_REASON(writer->Append(std::string("xy")), DIGEST_MISMATCH);
  EXPECT_EQ(writer->committed_size(), 99);
  EXPECT_REASON(writer->Finish(), DIGEST_MISMATCH);
  EXPECT_EQ(CommittedSize("u1"), 0);
  ExpectLacks(bytes);
}

TEST_P(BlobStoreConformance, GoesOnWhereItStopped) {
  std::string bytes = TestBytes(3'000'000);
  for (size_t stop : {size_t{1'000'000}, size_t{1'000'001}, size_t{2'500'000}, bytes.size()}) {
    ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobWriter> writer, store_->OpenWriter("u1", InfoOf(bytes)));
    ASSERT_OK(writer->Append(absl::MakeConstSpan(bytes).subspan(writer->committed_size(), stop - writer->committed_size())));
    EXPECT_EQ(writer->committed_size(), stop);
    EXPECT_EQ(CommittedSize("u1"), stop);
    writer.reset();
    Reopen();
    EXPECT_EQ(CommittedSize("u1"), stop);
  }
  EXPECT_OK(Upload(*store_, "u1", bytes));
  ExpectHolds(bytes);
}

TEST_P(BlobStoreConformance, MoreBytesThanAnnouncedAreNoStart) {
  std::string bytes = TestBytes(100);
  {
    ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobWriter> writer, store_->OpenWriter("u1", InfoOf(TestBytes(500, 2))));
    ASSERT_OK(writer->Append(TestBytes(500, 2)));
  }
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobWriter> writer, store_->OpenWriter("u1", InfoOf(bytes)));
  EXPECT_EQ(writer->committed_size(), 0);
}

TEST_P(BlobStoreConformance, OneWriterAtATimeInAllProcesses) {
  std::string bytes = TestBytes(100);
  std::unique_ptr<BlobStore> other = harness_->Open();
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobWriter> writer, store_->OpenWriter("u1", InfoOf(bytes)));
  EXPECT_NOT_HELD(store_->OpenWriter("u1", InfoOf(bytes)));
  EXPECT_NOT_HELD(other->OpenWriter("u1", InfoOf(bytes)));
  EXPECT_OK(other->OpenWriter("u2", InfoOf(bytes)));
  writer.reset();
  EXPECT_OK(Upload(*other, "u1", bytes));
  ExpectHolds(bytes);
}

TEST_P(BlobStoreConformance, ADiscardedUploadBeginsAnew) {
  std::string bytes = TestBytes(100);
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobWriter> writer, store_->OpenWriter("u1", InfoOf(bytes)));
  ASSERT_OK(writer->Append(bytes));
  ASSERT_OK(store_->DiscardUpload("u1"));
  EXPECT_EQ(CommittedSize("u1"), 0);
  // The old writer cannot finish, whether or not there is a new one.
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobWriter> fresh, store_->OpenWriter("u1", InfoOf(bytes)));
  EXPECT_EQ(fresh->committed_size(), 0);
  EXPECT_REASON(writer->Finish(), UPLOAD_NOT_FOUND);
  ExpectLacks(bytes);
  ASSERT_OK(fresh->Append(bytes));
  ASSERT_OK(store_->DiscardUpload("u1"));
  EXPECT_REASON(fresh->Finish(), UPLOAD_NOT_FOUND);
  ExpectLacks(bytes);
  EXPECT_OK(store_->DiscardUpload("u1"));
}

TEST_P(BlobStoreConformance, TheSameContentMayComeManyTimesAtOnce) {
  std::string bytes = TestBytes(500'000);
  std::unique_ptr<BlobStore> other = harness_->Open();
  std::vector<std::thread> threads;
  threads.reserve(6);
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&, i] { EXPECT_OK(Upload(i % 2 == 0 ? *store_ : *other, absl::StrCat("u", i), bytes, 10'000)); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  ExpectHolds(bytes);
}

TEST_P(BlobStoreConformance, AdoptsFiles) {
  for (size_t size : {size_t{0}, size_t{5}, size_t{3'000'001}}) {
    std::string bytes = TestBytes(size, 7);
    for (const char* name : {"first", "second", "a/b/third"}) {
      const std::filesystem::path path = std::filesystem::path(harness_->ScratchFolder()) / name;
      std::filesystem::create_directories(path.parent_path());
      WriteTestFile(path, bytes);
      ASSERT_OK_AND_ASSIGN(BlobInfo info, store_->Adopt(harness_->ScratchFolder(), name, {}));
      EXPECT_EQ(info.sha256, InfoOf(bytes).sha256);
      EXPECT_EQ(info.size_bytes, size);
      unlink(path.c_str());  // it is still a name of the content
      ExpectHolds(bytes);
    }
  }
}

TEST_P(BlobStoreConformance, AnAdoptedFileKeepsTheContent) {
  const std::string path = harness_->ScratchFolder() + "/out";
  const BlobInfo blob = InfoOf("output");
  for (int turn = 0; turn < 2; ++turn) {  // content that is new, content that is there
    WriteTestFile(path, "output");
    ASSERT_OK(store_->Adopt(harness_->ScratchFolder(), "out", {}));
    ASSERT_OK_AND_ASSIGN(const std::optional<uint64_t> kept, store_->RemoveIfOlder(blob.sha256, absl::InfiniteFuture()));
    EXPECT_FALSE(kept.has_value());
    ASSERT_OK(Upload(*store_, "u1", "output"));  // whose content is there: it does not take the name away
    ASSERT_OK(store_->DiscardUpload("u1"));      // what is left of it
    ASSERT_OK_AND_ASSIGN(const std::optional<uint64_t> again, store_->RemoveIfOlder(blob.sha256, absl::InfiniteFuture()));
    EXPECT_FALSE(again.has_value());
    ASSERT_EQ(unlink(path.c_str()), 0);
    ExpectHolds("output");
  }
  ASSERT_OK_AND_ASSIGN(const std::optional<uint64_t> removed, store_->RemoveIfOlder(blob.sha256, absl::InfiniteFuture()));
  EXPECT_EQ(removed, 6);
  ExpectLacks("output");
  ASSERT_OK_AND_ASSIGN(const std::optional<uint64_t> gone, store_->RemoveIfOlder(blob.sha256, absl::InfiniteFuture()));
  EXPECT_FALSE(gone.has_value());
}

TEST_P(BlobStoreConformance, AnUploadOfWhatIsThereLeavesItWhole) {
  const std::string bytes = TestBytes(5000);
  for (const char* id : {"u1", "u2", "u3"}) {
    ASSERT_OK(Upload(*store_, id, bytes));
    ExpectHolds(bytes);
  }
  for (const char* id : {"u1", "u2", "u3"}) {
    ASSERT_OK(store_->DiscardUpload(id));
    ExpectHolds(bytes);
  }
}

TEST_P(BlobStoreConformance, AdoptingCanBeStopped) {
  WriteTestFile(harness_->ScratchFolder() + "/out", "output");
  std::stop_source stop;
  stop.request_stop();
  EXPECT_TRUE(absl::IsCancelled(store_->Adopt(harness_->ScratchFolder(), "out", stop.get_token()).status()));
  ExpectLacks("output");
}

TEST_P(BlobStoreConformance, WhatIsReliedOnIsNew) {
  const BlobInfo blob = InfoOf("content");
  EXPECT_FALSE(*store_->Keep(blob));
  ASSERT_OK(Upload(*store_, "u1", "content"));
  auto touch_time = [&] {
    absl::Time time = absl::InfinitePast();
    EXPECT_OK(store_->ForEach([&](const BlobStore::StoredBlob& stored) {
      EXPECT_EQ(stored.sha256, blob.sha256);
      EXPECT_EQ(stored.size_bytes, blob.size_bytes);
      time = stored.touch_time;
      return true;
    }));
    return time;
  };
  const absl::Time first = touch_time();
  EXPECT_FALSE(store_->RemoveIfOlder(blob.sha256, first)->has_value());
  while (touch_time() == first) {  // the file system's clock may be coarse
    ASSERT_TRUE(*store_->Keep(blob));
  }
  EXPECT_FALSE(store_->RemoveIfOlder(blob.sha256, first + absl::Nanoseconds(1))->has_value());
  EXPECT_TRUE(store_->RemoveIfOlder(blob.sha256, touch_time() + absl::Nanoseconds(1))->has_value());
}

TEST_P(BlobStoreConformance, UploadsAreListed) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<BlobWriter> writer, store_->OpenWriter("u1", InfoOf("content")));
  ASSERT_OK(writer->Append(absl::MakeConstSpan("con", 3)));
  int count = 0;
  ASSERT_OK(store_->ForEachUpload([&](const BlobStore::StoredUpload& upload) {
    ++count;
    EXPECT_EQ(upload.id, "u1");
    EXPECT_EQ(upload.committed_size, 3);
    return true;
  }));
  EXPECT_EQ(count, 1);
}

TEST_P(BlobStoreConformance, AdoptsRegularFilesOnly) {
  std::string folder = harness_->ScratchFolder();
  WriteTestFile(folder + "/file", "secret");
  ASSERT_EQ(symlink((folder + "/file").c_str(), (folder + "/link").c_str()), 0);
  ASSERT_EQ(mkfifo((folder + "/pipe").c_str(), 0600), 0);
  ASSERT_EQ(mkdir((folder + "/folder").c_str(), 0700), 0);
  ASSERT_EQ(symlink(folder.c_str(), (folder + "/folder/up").c_str()), 0);
  ASSERT_EQ(link((folder + "/file").c_str(), (folder + "/second name").c_str()), 0);
  for (const char* name : {"link", "pipe", "folder", "none", "folder/up/file", "folder/../file", "..", ".", "", "second name"}) {
    EXPECT_REASON(store_->Adopt(folder, name, {}), STORAGE_ERROR) << name;
  }
  EXPECT_REASON(store_->Adopt(folder + "/folder", "../file", {}), STORAGE_ERROR);
  EXPECT_REASON(store_->Adopt(folder + "/folder", folder + "/file", {}), STORAGE_ERROR);
  ExpectLacks("secret");
  ASSERT_EQ(unlink((folder + "/second name").c_str()), 0);
  EXPECT_OK(store_->Adopt(folder, "file", {}));
}

TEST_P(BlobStoreConformance, NamesThatAreNoneAreRefused) {
  for (const std::string& digest : {std::string(), std::string("../../etc/passwd"), std::string(64, 'A'), std::string(63, 'a')}) {
    EXPECT_REASON(store_->Contains({digest, 1}), REQUEST_INVALID);
    EXPECT_REASON(store_->Open(digest), REQUEST_INVALID);
    EXPECT_REASON(store_->OpenWriter("u1", {digest, 1}), REQUEST_INVALID);
  }
  for (const std::string& id :
       {std::string(), std::string("../u1"), std::string("a/b"), std::string("."), std::string(64, 'a')}) {
    EXPECT_REASON(store_->CommittedSize(id), NAME_INVALID);
    EXPECT_REASON(store_->OpenWriter(id, InfoOf("x")), NAME_INVALID);
    EXPECT_REASON(store_->DiscardUpload(id), NAME_INVALID);
  }
}

TEST_P(BlobStoreConformance, KilledWhileWritingTheUploadGoesOn) {
  const std::string bytes = TestBytes(2'000'000);
  constexpr size_t kPiece = 10'007;
  store_.reset();
  std::vector<std::string> said = RunAndKill(50, [&](const std::function<void(const std::string&)>& say) {
    std::unique_ptr<BlobStore> store = harness_->Open();
    absl::StatusOr<std::unique_ptr<BlobWriter>> writer = store->OpenWriter("u1", InfoOf(bytes));
    for (size_t at = 0; at < bytes.size(); at += kPiece) {
      if (!writer.ok() || !(*writer)->Append(absl::MakeConstSpan(bytes).subspan(at, kPiece)).ok()) {
        return;
      }
      say(absl::StrCat((*writer)->committed_size()));
    }
    while (true) {
      pause();
    }
  });
  Reopen();
  EXPECT_GE(CommittedSize("u1"), std::stoull(said.back()));
  EXPECT_OK(Upload(*store_, "u1", bytes));  // the dead writer holds it no more
  ExpectHolds(bytes);
}

TEST_P(BlobStoreConformance, KilledWhileFinishingABlobIsWholeOrAbsent) {
  store_.reset();
  auto bytes_of = [](int i) { return TestBytes(50'000 + i, i + 1); };
  std::vector<std::string> said = RunAndKill(15, [&](const std::function<void(const std::string&)>& say) {
    std::unique_ptr<BlobStore> store = harness_->Open();
    for (int i = 0;; ++i) {
      if (!Upload(*store, absl::StrCat("u", i), bytes_of(i), 7000).ok()) {
        return;
      }
      say("finished");
    }
  });
  Reopen();
  int finished = static_cast<int>(said.size());
  for (int i = 0; i < finished; ++i) {
    ExpectHolds(bytes_of(i));
  }
  if (*store_->Contains(InfoOf(bytes_of(finished)))) {
    ExpectHolds(bytes_of(finished));
  }
  EXPECT_OK(Upload(*store_, "u", bytes_of(finished)));
}

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_SERVER_BLOBS_BLOB_STORE_CONFORMANCE_H_

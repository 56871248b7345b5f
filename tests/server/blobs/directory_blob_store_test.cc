#include "server/blobs/directory_blob_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include "tests/server/blobs/blob_store_conformance.h"

namespace modelpress::server {
namespace {

std::unique_ptr<DirectoryBlobStore> OpenStore(const std::string& folder) {
  absl::StatusOr<std::unique_ptr<DirectoryBlobStore>> store = DirectoryBlobStore::OpenFolder(folder);
  EXPECT_OK(store);
  return store.ok() ? *std::move(store) : nullptr;
}

class DirectoryHarness final : public BlobStoreHarness {
 public:
  DirectoryHarness() { mkdir(ScratchFolder().c_str(), 0700); }
  std::unique_ptr<BlobStore> Open() override { return OpenStore(folder_.path()); }
  std::string ScratchFolder() const override { return folder_.path() + "/scratch"; }

 private:
  TestFolder folder_;
};

INSTANTIATE_TEST_SUITE_P(Directory, BlobStoreConformance,
                         testing::Values(BlobStoreHarnessFactory([] { return std::make_unique<DirectoryHarness>(); })),
                         [](const auto&) { return "Folder"; });

absl::Status Upload(BlobStore& store, const std::string& bytes) {
  MP_ASSIGN_OR_RETURN(std::unique_ptr<BlobWriter> writer, store.OpenWriter("u1", InfoOf(bytes)));
  MP_RETURN_IF_ERROR(writer->Append(bytes));
  return writer->Finish();
}

TEST(DirectoryBlobStoreTest, BlobsAreReadOnlyFilesUnderTheirDigest) {
  TestFolder folder;
  std::unique_ptr<DirectoryBlobStore> store = OpenStore(folder.path());
  ASSERT_OK(Upload(*store, "one"));
  WriteTestFile(folder.path() + "/x", "two");
  ASSERT_OK(store->Adopt(folder.path(), "x", {}));
  for (const char* bytes : {"one", "two"}) {
    std::string digest = Sha256Hex(bytes);
    std::string path = folder.path() + "/blobs/" + digest.substr(0, 2) + "/" + digest.substr(2);
    EXPECT_EQ(store->Path(digest), path);
    struct stat info;
    ASSERT_EQ(stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode, S_IFREG | 0440);
    EXPECT_EQ(ReadTestFile(path), bytes);
  }
}

TEST(DirectoryBlobStoreTest, ABlobThatWasCutShortIsFoundOutAndMended) {
  TestFolder folder;
  std::unique_ptr<DirectoryBlobStore> store = OpenStore(folder.path());
  const std::string bytes = TestBytes(1000);
  ASSERT_OK(Upload(*store, bytes));
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobReader> reader, store->Open(InfoOf(bytes).sha256));
  ASSERT_EQ(truncate(store->Path(InfoOf(bytes).sha256).c_str(), 999), 0);
  EXPECT_FALSE(*store->Contains(InfoOf(bytes)));
  std::string out(1000, '\0');
  EXPECT_REASON(reader->ReadAt(0, absl::MakeSpan(out)), STORAGE_ERROR);
  ASSERT_OK(Upload(*store, bytes));
  EXPECT_TRUE(*store->Contains(InfoOf(bytes)));
  EXPECT_TRUE(ReadTestFile(store->Path(InfoOf(bytes).sha256)) == bytes);
}

TEST(DirectoryBlobStoreTest, AFullDiskLosesNothing) {
  std::unique_ptr<SmallDisk> disk = SmallDisk::Mount(size_t{4} << 20);
  if (disk == nullptr) {
    GTEST_SKIP() << "needs CAP_SYS_ADMIN to mount a small file system";
  }
  std::unique_ptr<DirectoryBlobStore> store = OpenStore(disk->path());
  ASSERT_NE(store, nullptr);
  const std::string bytes = TestBytes(1'000'000);
  {
    ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobWriter> writer, store->OpenWriter("u1", InfoOf(bytes)));
    ASSERT_OK(writer->Append(bytes.substr(0, 600'001)));
    disk->Fill();
    EXPECT_REASON(writer->Append(bytes.substr(600'001)), STORAGE_FULL);
    EXPECT_EQ(writer->committed_size(), 600'001);
    EXPECT_EQ(*store->CommittedSize("u1"), 600'001);
    ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobWriter> other, store->OpenWriter("u2", InfoOf("x")));
    EXPECT_REASON(other->Append(std::string("x")), STORAGE_FULL);
    disk->Free();
    EXPECT_OK(writer->Append(bytes.substr(600'001)));  // the same writer goes on
    EXPECT_OK(writer->Finish());
  }
  EXPECT_TRUE(ReadTestFile(store->Path(InfoOf(bytes).sha256)) == bytes);
}

TEST(DirectoryBlobStoreTest, AnUploadIsAlsoLockedForAnotherProcess) {
  TestFolder folder;
  std::unique_ptr<DirectoryBlobStore> store = OpenStore(folder.path());
  auto child = [&folder] {
    auto other = DirectoryBlobStore::OpenFolder(folder.path());
    if (!other.ok()) {
      return 2;
    }
    absl::Status status = (*other)->OpenWriter("u1", InfoOf("x")).status();
    return status.ok() ? 0 : absl::IsFailedPrecondition(status) ? 1 : 3;
  };
  {
    ASSERT_OK_AND_ASSIGN(std::unique_ptr<BlobWriter> writer, store->OpenWriter("u1", InfoOf("x")));
    EXPECT_EQ(RunInChild(child), 1);
  }
  EXPECT_EQ(RunInChild(child), 0);
}

TEST(DirectoryBlobStoreTest, RemovingWaitsForNobody) {
  TestFolder folder;
  const std::unique_ptr<DirectoryBlobStore> store = OpenStore(folder.path());
  ASSERT_OK(Upload(*store, "one"));
  const BlobInfo blob = InfoOf("one");
  {
    ASSERT_OK_AND_ASSIGN(const UniqueFd busy, LockFile(folder.path() + "/names.lock"));
    ASSERT_OK_AND_ASSIGN(const std::optional<uint64_t> kept, store->RemoveIfOlder(blob.sha256, absl::InfiniteFuture()));
    EXPECT_FALSE(kept.has_value());
    EXPECT_TRUE(*store->Contains(blob));
  }
  ASSERT_OK_AND_ASSIGN(const std::optional<uint64_t> removed, store->RemoveIfOlder(blob.sha256, absl::InfiniteFuture()));
  EXPECT_EQ(removed, 3);
}

TEST(DirectoryBlobStoreTest, AFolderThatCannotBeReadHidesNoOther) {
  TestFolder folder;
  const std::unique_ptr<DirectoryBlobStore> store = OpenStore(folder.path());
  ASSERT_OK(Upload(*store, "one"));
  for (const char* name : {"/blobs/00", "/blobs/ff"}) {
    ASSERT_EQ(rmdir((folder.path() + name).c_str()), 0);
  }
  WriteTestFile(store->Path(InfoOf("one").sha256) + ".tmp", "x");
  std::vector<std::string> seen;
  EXPECT_REASON(store->ForEach([&](const BlobStore::StoredBlob& blob) {
    seen.push_back(blob.sha256);
    return true;
  }),
                STORAGE_ERROR);
  EXPECT_EQ(seen, std::vector<std::string>{InfoOf("one").sha256});
  EXPECT_REASON(store->RemoveStrays(absl::InfiniteFuture()), STORAGE_ERROR);
  EXPECT_EQ(ReadTestFile(store->Path(InfoOf("one").sha256)), "one");
  EXPECT_NE(access((store->Path(InfoOf("one").sha256) + ".tmp").c_str(), F_OK), 0);
}

TEST(DirectoryBlobStoreTest, AFolderThatCannotBeUsedIsAnError) {
  EXPECT_REASON(DirectoryBlobStore::OpenFolder("/no/such/folder"), STORAGE_ERROR);
}

}  // namespace
}  // namespace modelpress::server

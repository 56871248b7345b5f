#include "server/backup/backup.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/sha256.h"
#include "server/blobs/directory_blob_store.h"
#include "server/sql/schema.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {
namespace {

namespace fs = std::filesystem;

const WorkspaceKey kWorkspace{"default", "w1"};

// A data directory with one workspace.
class Data {
 public:
  explicit Data(const std::string& folder) : folder_(folder) {
    fs::create_directory(folder);
    auto database = OpenDatabase(folder + "/modelpress.db");
    EXPECT_OK(database.status());
    database_ = *std::move(database);
    auto blobs = DirectoryBlobStore::OpenFolder(folder);
    EXPECT_OK(blobs.status());
    blobs_ = *std::move(blobs);
  }

  void MakeWorkspace() {
    EXPECT_OK(database_->Write(Durability::kProcessCrash, [](Connection& connection) {
      return connection.ExecuteScript(
          "INSERT INTO workspaces (project, id, create_time, use_time) VALUES ('default', 'w1', 0, 0)");
    }));
  }

  void AddFile(const std::string& path, const std::string& bytes) {
    const BlobInfo blob{Sha256Hex(bytes), bytes.size()};
    auto writer = blobs_->OpenWriter(blob.sha256.substr(0, 40), blob);
    ASSERT_OK(writer.status());
    ASSERT_OK((*writer)->Append(bytes));
    ASSERT_OK((*writer)->Finish());
    EXPECT_OK(database_->Write(Durability::kProcessCrash, [&](Connection& connection) {
      return LinkFile(connection, kWorkspace, path, blob.sha256, blob.size_bytes, absl::UnixEpoch());
    }));
  }

  void RemoveFile(const std::string& path) {
    EXPECT_OK(database_->Write(Durability::kProcessCrash, [&path](Connection& connection) {
      return connection.Execute("DELETE FROM files WHERE path = ?1", {path}).status();
    }));
  }

  // Name -> bytes, of all files; whoever asks has seen each digest to be right.
  std::map<std::string, std::string> Files() {
    std::map<std::string, std::string> files;
    EXPECT_OK(database_->Read([&](Connection& connection) -> absl::Status {
      MP_ASSIGN_OR_RETURN(Statement statement, connection.Query("SELECT path, sha256 FROM files"));
      while (true) {
        MP_ASSIGN_OR_RETURN(const bool found, statement.Step());
        if (!found) {
          return absl::OkStatus();
        }
        const std::string bytes = ReadTestFile(blobs_->Path(statement.Bytes(1)));
        EXPECT_EQ(Sha256Hex(bytes), statement.Bytes(1)) << statement.Bytes(0);
        files[statement.Bytes(0)] = bytes;
      }
    }));
    return files;
  }

  std::string BlobPath(const std::string& bytes) const { return blobs_->Path(Sha256Hex(bytes)); }
  const std::string& folder() const { return folder_; }

 private:
  const std::string folder_;
  std::unique_ptr<Database> database_;
  std::unique_ptr<DirectoryBlobStore> blobs_;
};

class BackupTest : public testing::Test {
 protected:
  BackupTest() : data_(folder_.path() + "/data"), backup_(folder_.path() + "/backup") { data_.MakeWorkspace(); }

  absl::StatusOr<BackupSummary> Run() { return Backup(data_.folder(), "", backup_, clock_); }
  std::map<std::string, std::string> Restored(const std::string& name) {
    const std::string folder = absl::StrCat(folder_.path(), "/", name);
    EXPECT_OK(RestoreBackup(backup_, folder));
    return Data(folder).Files();
  }
  // Where the backup keeps these bytes.
  std::string BackedUp(const std::string& bytes) const {
    const std::string sha256 = Sha256Hex(bytes);
    return absl::StrCat(backup_, "/blobs/", sha256.substr(0, 2), "/", sha256.substr(2));
  }

  const TestFolder folder_;
  Data data_;
  const std::string backup_;
  const SystemClock clock_;
};

void Overwrite(const std::string& path, const std::string& bytes) {
  ASSERT_EQ(chmod(path.c_str(), 0640), 0);
  WriteTestFile(path, bytes);
}

TEST_F(BackupTest, ComesBackAsItWas) {
  const std::map<std::string, std::string> files = {
      {"a", TestBytes(3 << 20, 1)}, {"b", "small"}, {"same as b", "small"}, {"empty", ""}};
  for (const auto& [path, bytes] : files) {
    data_.AddFile(path, bytes);
  }
  ASSERT_OK_AND_ASSIGN(const BackupSummary summary, Run());
  EXPECT_EQ(summary.blobs, 3);
  EXPECT_EQ(summary.bytes, (3 << 20) + 5);
  EXPECT_EQ(summary.copied_blobs, 3);
  ASSERT_OK_AND_ASSIGN(const BackupSummary verified, VerifyBackup(backup_));
  EXPECT_EQ(verified.blobs, 3);
  EXPECT_EQ(verified.bytes, summary.bytes);
  EXPECT_EQ(Restored("restored"), files);
}

TEST_F(BackupTest, CopiesOnlyWhatIsNewAndKeepsOnlyWhatIsNeeded) {
  data_.AddFile("a", "first");
  data_.AddFile("b", "second");
  ASSERT_OK(Run());
  data_.RemoveFile("a");
  data_.AddFile("c", "third");
  ASSERT_OK_AND_ASSIGN(const BackupSummary summary, Run());
  EXPECT_EQ(summary.blobs, 2);
  EXPECT_EQ(summary.copied_blobs, 1);
  EXPECT_FALSE(fs::exists(BackedUp("first")));
  EXPECT_OK(VerifyBackup(backup_));
  EXPECT_EQ(Restored("restored"), (std::map<std::string, std::string>{{"b", "second"}, {"c", "third"}}));
  int databases = 0;
  for (const auto& entry : fs::directory_iterator(backup_)) {
    databases += entry.path().extension() == ".db" ? 1 : 0;
  }
  EXPECT_EQ(databases, 1);
}

TEST_F(BackupTest, DamagedOrMissingContentFailsAndLeavesTheBackupBefore) {
  data_.AddFile("a", "first");
  ASSERT_OK(Run());
  data_.AddFile("b", "second");
  Overwrite(data_.BlobPath("second"), "sec0nd");
  absl::Status status = Run().status();
  EXPECT_REASON(status, STORAGE_ERROR);
  EXPECT_NE(status.message().find("is damaged"), std::string::npos) << status;
  fs::remove(data_.BlobPath("second"));
  status = Run().status();
  EXPECT_REASON(status, STORAGE_ERROR);
  EXPECT_NE(status.message().find("is missing"), std::string::npos) << status;
  EXPECT_OK(VerifyBackup(backup_));
  EXPECT_EQ(Restored("restored"), (std::map<std::string, std::string>{{"a", "first"}}));
  data_.RemoveFile("b");
  EXPECT_OK(Run());
}

TEST_F(BackupTest, VerifyFindsEveryDamage) {
  EXPECT_REASON(VerifyBackup(backup_), REQUEST_INVALID) << "there is none";
  data_.AddFile("a", "first");
  ASSERT_OK(Run());
  const std::string blob = BackedUp("first");
  Overwrite(blob, "f1rst");
  EXPECT_REASON(VerifyBackup(backup_), STORAGE_ERROR);
  EXPECT_REASON(RestoreBackup(backup_, folder_.path() + "/bad1"), STORAGE_ERROR);
  EXPECT_FALSE(fs::exists(folder_.path() + "/bad1/modelpress.db"));
  fs::remove(blob);
  EXPECT_REASON(VerifyBackup(backup_), STORAGE_ERROR);
  WriteTestFile(blob, "first");
  EXPECT_OK(VerifyBackup(backup_));
  for (const auto& entry : fs::directory_iterator(backup_)) {
    if (entry.path().extension() == ".db") {
      std::string bytes = ReadTestFile(entry.path().string());
      bytes[bytes.size() - 100] ^= 1;
      WriteTestFile(entry.path().string(), bytes);
    }
  }
  EXPECT_REASON(VerifyBackup(backup_), STORAGE_ERROR);
  WriteTestFile(backup_ + "/manifest.json", "{\"format\": 1, \"database\": \"../data/modelpress.db\", \"sha256\": \"\"}");
  EXPECT_REASON(VerifyBackup(backup_), STORAGE_ERROR);
  WriteTestFile(backup_ + "/manifest.json", "no JSON");
  EXPECT_REASON(VerifyBackup(backup_), STORAGE_ERROR);
}

TEST_F(BackupTest, NothingIsOverwrittenOrMadeUp) {
  EXPECT_REASON(Backup(folder_.path() + "/nowhere", "", backup_, clock_), REQUEST_INVALID);
  EXPECT_FALSE(fs::exists(folder_.path() + "/nowhere"));
  data_.AddFile("a", "first");
  ASSERT_OK(Run());
  EXPECT_REASON(RestoreBackup(backup_, data_.folder()), REQUEST_INVALID);
  EXPECT_EQ(data_.Files().size(), 1);
}

TEST_F(BackupTest, UnderLoadEachIsOfOneMoment) {
  // File i comes after file i - 1 and goes after file i + kAlive came: the names of one moment have no gap.
  constexpr int kAlive = 20;
  std::atomic<bool> stop = false;
  std::thread load([&] {
    for (int i = 0; !stop; ++i) {
      data_.AddFile(absl::StrCat(1000000 + i), TestBytes(10'000, static_cast<unsigned>(i)));
      if (i >= kAlive) {
        data_.RemoveFile(absl::StrCat(1000000 + i - kAlive));
      }
    }
  });
  for (int round = 0; round < 5; ++round) {
    ASSERT_OK(Run());
    EXPECT_OK(VerifyBackup(backup_));
    const std::map<std::string, std::string> files = Restored(absl::StrCat("restored", round));
    if (files.empty()) {
      continue;
    }
    EXPECT_LE(files.size(), kAlive + 1);
    EXPECT_EQ(std::stoi(files.rbegin()->first) - std::stoi(files.begin()->first) + 1, files.size());
  }
  stop = true;
  load.join();
}

}  // namespace
}  // namespace modelpress::server

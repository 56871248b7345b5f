#include "server/backup/backup.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/base/status.h"
#include "server/backup/read_only_sqlite.h"
#include "server/base/posix.h"
#include "server/base/sha256.h"
#include "server/blobs/directory_blob_store.h"

namespace modelpress::server {
namespace {

constexpr char kDatabase[] = "/modelpress.db";
constexpr char kManifest[] = "/manifest.json";
constexpr char kDatabasePrefix[] = "database-";
constexpr int kFormat = 1;
constexpr size_t kPiece = size_t{1} << 20;
constexpr size_t kMaxManifest = size_t{1} << 20;
constexpr size_t kUploadIdSize = 60;  // of a digest's 64 digits; upload ids have at most 63

// What a database refers to: as WorkspaceStore::RemoveUnreferenced has it.
constexpr char kNeeded[] = "SELECT sha256 FROM files UNION SELECT sha256 FROM job_inputs";
// May be there, where the bytes of an upload came or were found to be there, but need not.
constexpr char kAnnounced[] = "SELECT DISTINCT sha256 FROM uploads";

struct Manifest {
  std::string database;  // name of the file
  std::string sha256;    // of it
};

absl::Status Damaged(absl::string_view message) { return MakeError(v1::STORAGE_ERROR, message); }

absl::StatusOr<BlobInfo> InfoOf(const std::string& path) {
  MP_ASSIGN_OR_RETURN(const UniqueFd file, OpenFile(path, O_RDONLY));
  Sha256 hash;
  BlobInfo info;
  MP_ASSIGN_OR_RETURN(info.size_bytes, HashFile(file.get(), path, hash));
  info.sha256 = hash.HexDigest();
  return info;
}

// Under its name completely or not at all.
absl::Status WriteFile(const std::string& folder, const std::string& name, const std::string& text) {
  const std::string path = folder + name;
  const std::string temporary = path + ".new";
  {
    MP_ASSIGN_OR_RETURN(const UniqueFd file, OpenFile(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0640));
    if (write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) || fsync(file.get()) != 0) {
      return ErrnoError(errno, "write", temporary);
    }
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    return ErrnoError(errno, "rename", temporary);
  }
  return SyncFolder(folder);
}

absl::StatusOr<Manifest> ReadManifest(const std::string& folder) {
  const std::string path = folder + kManifest;
  MP_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kMaxManifest));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const bool is_manifest = json.is_object() && json.contains("format") && json.contains("database") && json.contains("sha256") &&
                           json["format"] == kFormat && json["database"].is_string() && json["sha256"].is_string();
  if (!is_manifest) {
    return Damaged(absl::StrCat(path, " is not the manifest of a backup that this version can read"));
  }
  Manifest manifest{.database = json["database"], .sha256 = json["sha256"]};
  if (!absl::StartsWith(manifest.database, kDatabasePrefix) || absl::StrContains(manifest.database, '/')) {
    return Damaged(absl::StrCat(path, " names a file that is no database of a backup"));
  }
  return manifest;
}

// Copies the blob unless it is there; its digest is verified on the way. Nullopt: there is none.
absl::StatusOr<std::optional<uint64_t>> CopyBlob(BlobStore& from, BlobStore& to, const std::string& sha256,
                                                 BackupSummary& summary) {
  if (access(from.Path(sha256).c_str(), F_OK) != 0 && errno == ENOENT) {
    return std::optional<uint64_t>();
  }
  MP_ASSIGN_OR_RETURN(const std::unique_ptr<BlobReader> reader, from.Open(sha256));
  const BlobInfo blob{.sha256 = sha256, .size_bytes = reader->size()};
  MP_ASSIGN_OR_RETURN(const bool is_there, to.Contains(blob));
  if (is_there) {
    return std::optional<uint64_t>(blob.size_bytes);
  }
  // Goes on where a run before was broken off.
  MP_ASSIGN_OR_RETURN(const std::unique_ptr<BlobWriter> writer, to.OpenWriter(sha256.substr(0, kUploadIdSize), blob));
  std::vector<char> buffer(kPiece);
  while (writer->committed_size() < blob.size_bytes) {
    MP_ASSIGN_OR_RETURN(const size_t count, reader->ReadAt(writer->committed_size(), absl::MakeSpan(buffer)));
    MP_RETURN_IF_ERROR(writer->Append(absl::MakeSpan(buffer).first(count)));
  }
  if (absl::Status finished = writer->Finish(); !finished.ok()) {
    return ReasonOf(finished) == v1::DIGEST_MISMATCH
               ? Damaged(absl::StrCat("stored content ", from.Path(sha256), " is damaged: its bytes have another digest"))
               : finished;
  }
  ++summary.copied_blobs;
  summary.copied_bytes += blob.size_bytes;
  return std::optional<uint64_t>(blob.size_bytes);
}

absl::Status CopyNeeded(BlobStore& from, BlobStore& to, const std::vector<std::string>& needed, BackupSummary& summary) {
  for (const std::string& sha256 : needed) {
    MP_ASSIGN_OR_RETURN(const std::optional<uint64_t> size, CopyBlob(from, to, sha256, summary));
    if (!size.has_value()) {
      return Damaged(absl::StrCat("content ", sha256, " is missing in ", from.Path(sha256),
                                  "; where files were deleted during a backup that took long, run it again"));
    }
    ++summary.blobs;
    summary.bytes += *size;
  }
  return absl::OkStatus();
}

// Removes what no manifest names any more: databases, content, bytes of runs that were broken off.
absl::Status Prune(const std::string& folder, const Manifest& manifest, const std::vector<std::string>& kept) {
  namespace fs = std::filesystem;
  std::vector<fs::path> stale;
  std::error_code error;
  for (auto it = fs::directory_iterator(folder, error); !error && it != fs::directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (absl::StartsWith(name, kDatabasePrefix) && name != manifest.database) {
      stale.push_back(it->path());
    }
  }
  const std::string blobs = folder + "/blobs";
  for (auto it = fs::recursive_directory_iterator(blobs, error); !error && it != fs::recursive_directory_iterator();
       it.increment(error)) {
    const std::string digest = absl::StrCat(it->path().parent_path().filename().string(), it->path().filename().string());
    if (it->is_regular_file(error) && !std::ranges::binary_search(kept, digest)) {
      stale.push_back(it->path());
    }
  }
  for (auto it = fs::directory_iterator(folder + "/uploads", error); !error && it != fs::directory_iterator();
       it.increment(error)) {
    stale.push_back(it->path());
  }
  for (const fs::path& path : stale) {
    if (unlink(path.c_str()) != 0 && errno != ENOENT) {
      return ErrnoError(errno, "remove", path.string());
    }
  }
  return error ? Damaged(absl::StrCat("look through ", folder, ": ", error.message())) : absl::OkStatus();
}

// The database of a verified manifest, opened.
absl::StatusOr<ReadOnlySqlite> OpenBackedUp(const std::string& folder, const Manifest& manifest) {
  const std::string path = absl::StrCat(folder, "/", manifest.database);
  MP_ASSIGN_OR_RETURN(const BlobInfo found, InfoOf(path));
  if (found.sha256 != manifest.sha256) {
    return Damaged(absl::StrCat(path, " is damaged: its digest is not that of the manifest"));
  }
  MP_ASSIGN_OR_RETURN(ReadOnlySqlite database, ReadOnlySqlite::Open(path));
  MP_RETURN_IF_ERROR(database.CheckIntegrity());
  return database;
}

absl::Status RequireFile(const std::string& path, absl::string_view advice) {
  return access(path.c_str(), R_OK) == 0
             ? absl::OkStatus()
             : MakeError(v1::REQUEST_INVALID,
                         absl::StrCat("cannot read ", path, ": ", std::generic_category().message(errno), "; ", advice));
}

}  // namespace

absl::StatusOr<BackupSummary> Backup(const std::string& data_folder, const std::string& database,
                                     const std::string& backup_folder, const Clock& clock) {
  const std::string database_path = database.empty() ? data_folder + kDatabase : database;
  MP_RETURN_IF_ERROR(RequireFile(database_path, "give the data directory of a server"));
  MP_RETURN_IF_ERROR(RequireFile(data_folder + "/blobs", "give the data directory of a server"));
  MP_RETURN_IF_ERROR(MakeFolder(backup_folder));
  MP_ASSIGN_OR_RETURN(const UniqueFd lock, LockFile(backup_folder + "/lock"));
  MP_ASSIGN_OR_RETURN(const auto from, DirectoryBlobStore::OpenFolder(data_folder));
  MP_ASSIGN_OR_RETURN(const auto to, DirectoryBlobStore::OpenFolder(backup_folder));
  MP_ASSIGN_OR_RETURN(ReadOnlySqlite living, ReadOnlySqlite::Open(database_path));

  BackupSummary summary;
  MP_ASSIGN_OR_RETURN(const std::vector<std::string> first_round, living.Column(kNeeded));
  for (const std::string& sha256 : first_round) {
    MP_RETURN_IF_ERROR(CopyBlob(*from, *to, sha256, summary).status());
  }

  const std::string moment = absl::FormatTime("%Y%m%dT%H%M%E6SZ", clock.Now(), absl::UTCTimeZone());
  Manifest manifest{.database = absl::StrCat(kDatabasePrefix, moment, ".db")};
  const std::string snapshot_path = absl::StrCat(backup_folder, "/", manifest.database);
  MP_RETURN_IF_ERROR(living.CopyTo(snapshot_path));
  MP_ASSIGN_OR_RETURN(const BlobInfo copied, InfoOf(snapshot_path));
  manifest.sha256 = copied.sha256;
  MP_ASSIGN_OR_RETURN(ReadOnlySqlite snapshot, OpenBackedUp(backup_folder, manifest));
  MP_ASSIGN_OR_RETURN(std::vector<std::string> kept, snapshot.Column(kNeeded));
  MP_RETURN_IF_ERROR(CopyNeeded(*from, *to, kept, summary));
  MP_ASSIGN_OR_RETURN(const std::vector<std::string> announced, snapshot.Column(kAnnounced));
  for (const std::string& sha256 : announced) {
    MP_RETURN_IF_ERROR(CopyBlob(*from, *to, sha256, summary).status());
  }

  const nlohmann::ordered_json json = {{"format", kFormat},
                                       {"modelpressd", MODELPRESS_VERSION},
                                       {"time", absl::FormatTime(absl::RFC3339_sec, clock.Now(), absl::UTCTimeZone())},
                                       {"database", manifest.database},
                                       {"sha256", manifest.sha256},
                                       {"blobs", summary.blobs},
                                       {"bytes", summary.bytes}};
  MP_RETURN_IF_ERROR(WriteFile(backup_folder, kManifest, json.dump(2) + "\n"));
  kept.insert(kept.end(), announced.begin(), announced.end());
  std::ranges::sort(kept);
  MP_RETURN_IF_ERROR(Prune(backup_folder, manifest, kept));
  return summary;
}

absl::StatusOr<BackupSummary> VerifyBackup(const std::string& backup_folder) {
  MP_RETURN_IF_ERROR(RequireFile(backup_folder + kManifest, "there is no complete backup"));
  MP_ASSIGN_OR_RETURN(const UniqueFd lock, LockFile(backup_folder + "/lock"));
  MP_ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(backup_folder));
  MP_ASSIGN_OR_RETURN(ReadOnlySqlite database, OpenBackedUp(backup_folder, manifest));
  MP_ASSIGN_OR_RETURN(const std::vector<std::string> needed, database.Column(kNeeded));
  MP_ASSIGN_OR_RETURN(const auto store, DirectoryBlobStore::OpenFolder(backup_folder));
  BackupSummary summary;
  for (const std::string& sha256 : needed) {
    const std::string path = store->Path(sha256);
    MP_ASSIGN_OR_RETURN(const BlobInfo found, InfoOf(path));
    if (found.sha256 != sha256) {
      return Damaged(absl::StrCat(path, " is damaged: its bytes have another digest"));
    }
    ++summary.blobs;
    summary.bytes += found.size_bytes;
  }
  return summary;
}

absl::StatusOr<BackupSummary> RestoreBackup(const std::string& backup_folder, const std::string& data_folder) {
  MP_RETURN_IF_ERROR(RequireFile(backup_folder + kManifest, "there is no complete backup"));
  MP_RETURN_IF_ERROR(MakeFolder(data_folder));
  const std::string database_path = data_folder + kDatabase;
  if (access(database_path.c_str(), F_OK) == 0) {
    return MakeError(
        v1::REQUEST_INVALID,
        absl::StrCat(data_folder, " has a database already, which a restore would replace; give an empty --data_dir"));
  }
  MP_ASSIGN_OR_RETURN(const UniqueFd lock, LockFile(backup_folder + "/lock"));
  MP_ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(backup_folder));
  MP_ASSIGN_OR_RETURN(ReadOnlySqlite database, OpenBackedUp(backup_folder, manifest));
  MP_ASSIGN_OR_RETURN(const std::vector<std::string> needed, database.Column(kNeeded));
  MP_ASSIGN_OR_RETURN(const std::vector<std::string> announced, database.Column(kAnnounced));
  MP_ASSIGN_OR_RETURN(const auto from, DirectoryBlobStore::OpenFolder(backup_folder));
  MP_ASSIGN_OR_RETURN(const auto to, DirectoryBlobStore::OpenFolder(data_folder));
  BackupSummary summary;
  MP_RETURN_IF_ERROR(CopyNeeded(*from, *to, needed, summary));
  for (const std::string& sha256 : announced) {
    MP_RETURN_IF_ERROR(CopyBlob(*from, *to, sha256, summary).status());
  }
  const std::string temporary = database_path + ".restored";
  if (unlink(temporary.c_str()) != 0 && errno != ENOENT) {
    return ErrnoError(errno, "remove", temporary);
  }
  MP_RETURN_IF_ERROR(database.CopyTo(temporary));
  if (std::rename(temporary.c_str(), database_path.c_str()) != 0) {
    return ErrnoError(errno, "rename", temporary);
  }
  MP_RETURN_IF_ERROR(SyncFolder(data_folder));
  return summary;
}

}  // namespace modelpress::server

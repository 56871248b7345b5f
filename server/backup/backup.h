// Backup of a data directory while a server runs on it, and the way back.
//
//   BACKUP/manifest.json         names the database file of the backup, with its digest; written last, replaced by rename(2)
//   BACKUP/database-TIME.db      SQLite: the state of one moment, T
//   BACKUP/blobs/ab/cdef...      all content that the database refers to, as in a data directory
//   BACKUP/lock                  held by whoever changes the folder
//
// Why everything that the database of T refers to is in the backup. Content is copied in two rounds: (1) what the living database
// refers to at T0; (2), after the snapshot of T > T0, what that refers to and is not there yet. What is referred to at T0 and
// gone before round 1 comes to it was let go of in between; round 1 passes it over. If T refers to it again, round 2 looks for
// it. Content that T refers to and T0 did not is "new" in the sense of garbage collection: whoever comes to refer to content
// touches it, so that it is not removed for the grace time (--blob_grace_s) after T0, even where nothing refers to it any more.
// So round 2 finds it, unless the backup takes longer than the grace time. Then the content of a file that came after T0 and was
// deleted after T may be missing: the backup fails, the one before stays as it is, and another run has only the rest to copy.
//
// A backup that ends with an error, or is killed, leaves the one before as it was: its manifest, database and content stay until
// the next manifest is written. What was copied already is not copied again.
#ifndef MODELPRESS_SERVER_BACKUP_BACKUP_H_
#define MODELPRESS_SERVER_BACKUP_BACKUP_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/base/clock.h"

namespace modelpress::server {

struct BackupSummary {
  int64_t blobs = 0;  // that belong to the backup
  uint64_t bytes = 0;
  int64_t copied_blobs = 0;  // by this run
  uint64_t copied_bytes = 0;
};

// Brings `backup_folder`, which is made if missing, to the present state of `data_folder` and the SQLite file
// `database` ("": modelpress.db in it). Every blob's digest is verified when
// it is copied. STORAGE_ERROR where referenced content is missing or damaged; STORAGE_FULL.
absl::StatusOr<BackupSummary> Backup(const std::string& data_folder, const std::string& database,
                                     const std::string& backup_folder, const Clock& clock);

// Reads everything: STORAGE_ERROR, naming the first file, unless all of the backup is there and has the right digest.
absl::StatusOr<BackupSummary> VerifyBackup(const std::string& backup_folder);

// Makes a data directory of a backup. Content is verified while it is copied, the database comes last, by rename(2).
// FAILED_PRECONDITION (REQUEST_INVALID) if `data_folder` has a database already.
absl::StatusOr<BackupSummary> RestoreBackup(const std::string& backup_folder, const std::string& data_folder);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BACKUP_BACKUP_H_

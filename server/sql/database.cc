#include "server/sql/database.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace modelpress::server {

absl::Status Migrate(Database& database, const SchemaDialect& dialect, absl::Span<const std::string> migrations,
                     absl::string_view name) {
  const auto latest = static_cast<int64_t>(migrations.size());
  int64_t version = 0;
  MP_RETURN_IF_ERROR(database.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(version, dialect.Version(connection));
    return absl::OkStatus();
  }));
  while (version < latest) {
    MP_RETURN_IF_ERROR(database.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
      MP_ASSIGN_OR_RETURN(version, dialect.Version(connection));  // another process may have been first
      if (version >= latest) {
        return absl::OkStatus();
      }
      MP_RETURN_IF_ERROR(connection.ExecuteScript(dialect.Translate(migrations[version])));
      return dialect.SetVersion(connection, ++version);
    }));
  }
  if (version > latest) {
    return MakeError(v1::STORAGE_ERROR,
                     absl::StrCat("database ", name, " has schema version ", version, ", this program knows up to ", latest,
                                  "; start the program that made it, or a newer one"));
  }
  return absl::OkStatus();
}

}  // namespace modelpress::server

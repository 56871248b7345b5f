// The settings of the daemon as a table, made from the descriptor of ServerConfig.
#ifndef MODELPRESS_SERVER_CONFIG_SETTINGS_H_
#define MODELPRESS_SERVER_CONFIG_SETTINGS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"
#include "server/config/server_config.pb.h"

namespace modelpress::server {

// One field of one topic of ServerConfig.
class Setting {
 public:
  Setting(const google::protobuf::FieldDescriptor& topic, const google::protobuf::FieldDescriptor& field)
      : topic_(&topic), field_(&field) {}

  const google::protobuf::FieldDescriptor& topic() const { return *topic_; }
  const google::protobuf::FieldDescriptor& field() const { return *field_; }
  std::string name() const { return field_->name(); }  // of the flag and of the field
  std::string variable() const;                        // MODELPRESSD_...
  const SettingInfo& info() const { return field_->options().GetExtension(setting); }
  bool is_flag() const { return !field_->is_repeated(); }  // and variable; else in the file only
  bool is_bool() const { return field_->type() == google::protobuf::FieldDescriptor::TYPE_BOOL; }

  // True if anybody set it.
  bool IsSet(const ServerConfig& config) const;
  // As it stands in the file, with its default if it is not set; passwords are replaced. Of a setting that is a flag.
  std::string Text(const ServerConfig& config) const;
  // REQUEST_INVALID for a text that is no value of its type.
  absl::Status Set(ServerConfig& config, absl::string_view text) const;
  // REQUEST_INVALID for a value that its SettingInfo does not allow.
  absl::Status Check(const ServerConfig& config) const;

 private:
  const google::protobuf::FieldDescriptor* topic_;
  const google::protobuf::FieldDescriptor* field_;
};

inline constexpr char kVariablePrefix[] = "MODELPRESSD_";

// All settings, topic by topic in the order of the .proto file.
std::vector<Setting> AllSettings();

// The database URL or connection string (name=value pairs) with its password replaced by "***".
std::string MaskPassword(absl::string_view url);

// "; did you mean NAME?" for the one of `names` that is most like `name`, "" if none is.
std::string DidYouMean(absl::string_view name, const std::vector<std::string>& names);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_CONFIG_SETTINGS_H_

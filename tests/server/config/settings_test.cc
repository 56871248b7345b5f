#include "server/config/settings.h"

#include <gtest/gtest.h>

#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/server/base/status_testing.h"

namespace modelpress::server {
namespace {

using google::protobuf::FieldDescriptor;

Setting Named(const std::string& name) {
  for (const Setting& setting : AllSettings()) {
    if (setting.name() == name) {
      return setting;
    }
  }
  ADD_FAILURE() << "no setting " << name;
  return AllSettings().front();
}

void CheckSchema(const google::protobuf::Descriptor& message) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    EXPECT_NE(field.options().GetExtension(setting).help(), "") << field.full_name();
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      CheckSchema(*field.message_type());
    }
  }
}

// What the table promises to flags, variables and --help whoever adds a field.
TEST(SettingsTest, EveryFieldIsDocumentedAndHasANameOfItsOwn) {
  CheckSchema(*ServerConfig::descriptor());
  std::set<std::string> names;
  for (const Setting& setting : AllSettings()) {
    EXPECT_TRUE(names.insert(setting.name()).second) << setting.name() << " comes twice";
    EXPECT_EQ(setting.name(), absl::AsciiStrToLower(setting.name()));
    if (!setting.is_flag()) {
      EXPECT_EQ(setting.field().cpp_type(), FieldDescriptor::CPPTYPE_MESSAGE) << setting.name();
      continue;
    }
    const ServerConfig defaults;
    EXPECT_OK(setting.Check(defaults)) << setting.name();
    const bool is_text = setting.field().cpp_type() == FieldDescriptor::CPPTYPE_STRING;
    ServerConfig config;
    const std::string text = is_text ? "x" : setting.Text(defaults);
    EXPECT_OK(setting.Set(config, text)) << setting.name();
    EXPECT_TRUE(setting.IsSet(config));
    EXPECT_EQ(setting.Text(config), is_text ? "\"x\"" : text);
  }
}

TEST(SettingsTest, ValuesOfTheWrongTypeAreRefused) {
  ServerConfig config;
  EXPECT_EQ(Named("workers").Set(config, "two").message(), "'two' is not a whole number");
  EXPECT_REASON(Named("workers").Set(config, "3000000000"), REQUEST_INVALID);
  EXPECT_REASON(Named("workers").Set(config, ""), REQUEST_INVALID);
  EXPECT_REASON(Named("workers").Set(config, "1.5"), REQUEST_INVALID);
  EXPECT_REASON(Named("quota_bytes").Set(config, "-1"), REQUEST_INVALID);
  EXPECT_REASON(Named("lease_s").Set(config, "10s"), REQUEST_INVALID);
  EXPECT_REASON(Named("insecure_plaintext").Set(config, "maybe"), REQUEST_INVALID);
}

TEST(SettingsTest, BoundsAreKept) {
  ServerConfig config;
  EXPECT_OK(Named("lease_s").Set(config, "0.05"));
  EXPECT_EQ(Named("lease_s").Check(config).message(), "lease_s must be 0.1 or more, not 0.05");
  EXPECT_OK(Named("lease_s").Set(config, "nan"));
  EXPECT_REASON(Named("lease_s").Check(config), REQUEST_INVALID);
  EXPECT_OK(Named("log_format").Set(config, "xml"));
  EXPECT_EQ(Named("log_format").Check(config).message(), "log_format must be json or text, not 'xml'");
  config.mutable_quotas()->add_project_quota()->set_running(1);
  EXPECT_OK(Named("project_quota").Check(config));
  config.mutable_quotas()->add_project_quota()->set_running(-1);
  EXPECT_EQ(Named("project_quota").Check(config).message(), "project_quota[1].running must be 0 or more, not -1");
}

TEST(SettingsTest, PasswordsAreMaskedWhereverTheyMayStand) {
  EXPECT_EQ(MaskPassword("postgresql://user:pa@ss:w/ord@host:5432/db?sslmode=require"),
            "postgresql://user:***@host:5432/db?sslmode=require");
  EXPECT_EQ(MaskPassword("postgresql://user@host/db?password=secret&application_name=x"),
            "postgresql://user@host/db?password=***&application_name=x");
  EXPECT_EQ(MaskPassword("host=h password=secret dbname=d"), "host=h password=*** dbname=d");
  EXPECT_EQ(MaskPassword("host=h password = 'se cr\\'et' dbname=d"), "host=h password = *** dbname=d");
  EXPECT_EQ(MaskPassword("host=h password=se\\ cret&'x y' dbname=d"), "host=h password=***&'x y' dbname=d");
  EXPECT_EQ(MaskPassword("host=h password='never ends"), "host=h password=***");
  EXPECT_EQ(MaskPassword("host=h password='a'b dbname=d"), "host=h password=*** dbname=d");
  EXPECT_EQ(MaskPassword("sslpassword=of_the_key password password=x"), "sslpassword=*** password password=***");
  EXPECT_EQ(MaskPassword("postgresql://u:a@h/d?password=b&password=c"), "postgresql://u:***@h/d?password=***&password=***");
  const std::string secret(1'000'000, 'a');
  EXPECT_EQ(MaskPassword(absl::StrCat("postgresql://u:", secret, "@h")), "postgresql://u:***@h");
  EXPECT_EQ(MaskPassword(absl::StrCat("password='", secret, "'")), "password=***");
  EXPECT_EQ(MaskPassword("postgresql://host:5432/db"), "postgresql://host:5432/db");
  EXPECT_EQ(MaskPassword("host=h dbname=d"), "host=h dbname=d");
  EXPECT_EQ(MaskPassword(""), "");
}

TEST(SettingsTest, NearNamesAreOffered) {
  const std::vector<std::string> names = {"workers", "listen", "lease_s"};
  EXPECT_EQ(DidYouMean("worker", names), "; did you mean workers?");
  EXPECT_EQ(DidYouMean("wrokers", names), "; did you mean workers?");
  EXPECT_EQ(DidYouMean("lease", names), "");  // two of five letters: listen is as near
  EXPECT_EQ(DidYouMean("colour", names), "");
  EXPECT_EQ(DidYouMean("x", {}), "");
  EXPECT_EQ(DidYouMean(std::string(5'000'000, 'x'), names), "");
}

}  // namespace
}  // namespace modelpress::server

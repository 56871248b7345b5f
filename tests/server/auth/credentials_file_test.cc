#include "server/auth/credentials_file.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "server/base/sha256.h"
#include "tests/server/base/fake_clock.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {
namespace {

const std::string kToken = absl::StrCat("mp_", std::string(43, 'x'));

std::string Entry(const std::string& token, const std::string& more = "") {
  return absl::StrCat("token { sha256: \"", Sha256Hex(token), "\" principal: \"ci\" project: \"vision\" role: WRITER ", more,
                      "}\n");
}

TEST(CredentialTableTest, FindsTokensByTheirHash) {
  ASSERT_OK_AND_ASSIGN(const auto table, CredentialTable::Parse(absl::StrCat("# who may call\n", Entry(kToken)), "f"));
  const CredentialTable::TokenEntry* entry = table->FindToken(kToken);
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->principal.name, "ci");
  EXPECT_EQ(entry->principal.project, "vision");
  EXPECT_EQ(entry->principal.role, Role::kWriter);
  EXPECT_EQ(entry->expires, absl::InfiniteFuture());
  for (const std::string& other : {std::string(), kToken.substr(1), absl::StrCat(kToken, " "), Sha256Hex(kToken)}) {
    EXPECT_EQ(table->FindToken(other), nullptr) << other;
  }
}

TEST(CredentialTableTest, EmptyFileKnowsNobody) {
  ASSERT_OK_AND_ASSIGN(const auto table, CredentialTable::Parse("", "f"));
  EXPECT_EQ(table->FindToken(kToken), nullptr);
  ASSERT_OK_AND_ASSIGN(const auto nobody, table->FindCertificate({.uris = {""}, .dns_names = {""}, .common_name = ""}));
  EXPECT_FALSE(nobody.has_value());
}

TEST(CredentialTableTest, MistakesAreToldWithTheirPlace) {
  const std::string good = Entry(kToken);
  const auto changed = [&](const std::string& from, const std::string& to) { return absl::StrReplaceAll(good, {{from, to}}); };
  const struct {
    std::string text;
    std::string told;
    int line;
  } cases[] = {
      {"token {", "", 1},
      {"token { sha: \"\" }", "sha", 1},
      {"hello", "", 1},
      {absl::StrCat(good, "\n", good), "came before", 3},
      {changed("\"ci\"", "\"\""), "principal", 1},
      {changed("\"ci\"", "\"c\\ni\""), "principal", 1},
      {changed("\"ci\"", absl::StrCat("\"", std::string(256, 'p'), "\"")), "principal", 1},
      {changed("vision", "Vision"), "project", 1},
      {changed("vision", ""), "project", 1},
      {changed("vision", "a/b"), "project", 1},
      {changed("role: WRITER", ""), "role", 1},
      {changed("WRITER", "OWNER"), "OWNER", 1},
      {changed("sha256: \"", "sha256: \"A"), "sha256", 1},
      {changed(Sha256Hex(kToken), kToken), "sha256", 1},
      {Entry(kToken, "expire_time: \"tomorrow\""), "expire_time", 1},
      {Entry(kToken, "expire_time: \"2027-02-30T00:00:00Z\""), "expire_time", 1},
      {Entry(kToken, "expire_time: \"2027-01-31\""), "expire_time", 1},
      {Entry(kToken, "expire_time: \"infinite-future\""), "expire_time", 1},
      {Entry(kToken, "expire_time: \"2027-01-31T00:00:00\""), "expire_time", 1},
      {Entry(kToken, "expire_time: \" 2027-01-31T00:00:00Z\""), "expire_time", 1},
      {"\ncertificate { project: \"p\" role: READER }", "common_name", 2},
      {"certificate { uri: \"\" project: \"p\" role: READER }", "common_name", 1},
      {"certificate { uri: \"a\" dns: \"b\" project: \"p\" role: READER }", "", 1},
      {"certificate { dns: \"b\" project: \"p\" role: READER }\ncertificate { dns: \"b\" project: \"q\" role: READER }",
       "came before", 2},
  };
  for (const auto& [text, told, line] : cases) {
    const absl::Status status = CredentialTable::Parse(text, "the-file").status();
    EXPECT_FALSE(status.ok()) << text;
    EXPECT_NE(status.message().find(told), std::string::npos) << status;
    EXPECT_EQ(PlaceOf(status).file, "the-file") << text;
    EXPECT_EQ(PlaceOf(status).line, line) << text << status;
    EXPECT_EQ(status.message().find(kToken), std::string::npos) << status;
  }
}

TEST(CredentialTableTest, CertificatesByKindOfName) {
  ASSERT_OK_AND_ASSIGN(const auto table, CredentialTable::Parse(R"(
certificate { uri: "spiffe://x/press" project: "vision" role: WRITER }
certificate { dns: "press.example" principal: "by-dns" project: "vision" role: READER }
certificate { common_name: "press" principal: "by-cn" project: "speech" role: ADMIN }
certificate { dns: "other.example" principal: "other" project: "vision" role: READER }
)",
                                                                "f"));
  const auto name_of = [&table](const PeerCertificate& certificate) {
    const absl::StatusOr<std::optional<Principal>> found = table->FindCertificate(certificate);
    return !found.ok() ? "error" : found->has_value() ? (*found)->name : "none";
  };
  EXPECT_EQ(name_of({.uris = {"spiffe://x/press"}, .dns_names = {}, .common_name = ""}), "spiffe://x/press");
  EXPECT_EQ(name_of({.uris = {"spiffe://x/press"}, .dns_names = {"press.example"}, .common_name = "press"}), "spiffe://x/press");
  EXPECT_EQ(name_of({.uris = {"spiffe://y"}, .dns_names = {"a", "press.example"}, .common_name = "press"}), "by-dns");
  EXPECT_EQ(name_of({.uris = {}, .dns_names = {}, .common_name = "press"}), "by-cn");
  // No kind of name stands for another.
  EXPECT_EQ(name_of({.uris = {"press", "press.example"}, .dns_names = {"press"}, .common_name = "spiffe://x/press"}), "none");
  EXPECT_EQ(name_of({.uris = {}, .dns_names = {}, .common_name = "press.example"}), "none");
  EXPECT_EQ(name_of({.uris = {}, .dns_names = {"press.example", "other.example"}, .common_name = ""}), "error");
}

class TokenAuthenticatorTest : public ::testing::Test {
 protected:
  void Write(const std::string& text) { WriteTestFile(path_, text); }
  void Open() {
    auto file = WatchedFile<CredentialTable>::Open(path_, clock_, CredentialTable::Parse,
                                                   [this](const absl::Status& status) { errors_.push_back(status); });
    ASSERT_OK(file);
    file_ = *std::move(file);
    authenticator_.emplace(*file_, clock_);
  }
  // The principal's name; "" for one that is not known.
  absl::StatusOr<std::string> Ask(const std::string& token) {
    MP_ASSIGN_OR_RETURN(const std::optional<Principal> principal,
                        authenticator_->Authenticate({.token = token, .certificate = std::nullopt}));
    return principal.has_value() ? principal->name : "";
  }
  // The file is looked at once a second.
  std::string AskLater(const std::string& token) {
    clock_.Advance(absl::Seconds(1));
    return Ask(token).value_or("error");
  }

  FakeClock clock_;
  TestFolder folder_;
  const std::string path_ = folder_.path() + "/credentials";
  std::vector<absl::Status> errors_;
  std::unique_ptr<WatchedFile<CredentialTable>> file_;
  std::optional<TokenAuthenticator> authenticator_;
};

TEST_F(TokenAuthenticatorTest, ExpiresAtItsTime) {
  Write(Entry(kToken, absl::StrCat("expire_time: \"", absl::FormatTime(clock_.Now() + absl::Seconds(10)), "\"")));
  Open();
  EXPECT_EQ(Ask(kToken).value_or("error"), "ci");
  clock_.Advance(absl::Seconds(10));
  const absl::Status expired = Ask(kToken).status();
  EXPECT_REASON(expired, AUTHENTICATION_FAILED);
  EXPECT_EQ(MetadataOf(expired)["cause"], cause::kExpired);
}

TEST_F(TokenAuthenticatorTest, ShortTokensAreWorthNothingWhateverTheFileSays) {
  const std::string password = "correct horse battery staple";
  Write(Entry(password));
  Open();
  EXPECT_EQ(Ask(password).value_or("error"), "");
}

TEST_F(TokenAuthenticatorTest, FollowsTheFile) {
  const std::string other = absl::StrCat("mp_", std::string(43, 'y'));
  Write(Entry(kToken));
  Open();
  EXPECT_EQ(Ask(kToken).value_or("error"), "ci");
  Write(Entry(other));
  EXPECT_EQ(Ask(kToken).value_or("error"), "ci");  // not looked at yet
  EXPECT_EQ(AskLater(kToken), "");
  EXPECT_EQ(Ask(other).value_or("error"), "ci");
  // A mistake, or a file that is gone, changes nothing, and is told once.
  Write("token {");
  EXPECT_EQ(AskLater(other), "ci");
  EXPECT_EQ(AskLater(other), "ci");
  EXPECT_EQ(errors_.size(), 1);
  std::remove(path_.c_str());
  EXPECT_EQ(AskLater(other), "ci");
  EXPECT_EQ(AskLater(other), "ci");
  EXPECT_EQ(errors_.size(), 2);
  // Renamed into its place, with the same size.
  WriteTestFile(path_ + ".new", Entry(kToken));
  ASSERT_EQ(std::rename((path_ + ".new").c_str(), path_.c_str()), 0);
  EXPECT_EQ(AskLater(kToken), "ci");
  EXPECT_EQ(AskLater(other), "");
  EXPECT_EQ(errors_.size(), 2);
}

TEST_F(TokenAuthenticatorTest, FileMustBeThereAtTheStart) {
  EXPECT_FALSE(
      WatchedFile<CredentialTable>::Open(path_, clock_, CredentialTable::Parse, [](const absl::Status&) {}).status().ok());
}

TEST(CreateTokenTest, MakesTokensThatWork) {
  const absl::Time expires = absl::FromUnixSeconds(1'800'000'000);
  ASSERT_OK_AND_ASSIGN(const NewToken made, CreateToken("ci", "vision", "admin", expires));
  EXPECT_GE(made.token.size(), kMinToken);
  EXPECT_EQ(made.entry.find(made.token), std::string::npos);
  ASSERT_OK_AND_ASSIGN(const auto table, CredentialTable::Parse(made.entry, "f"));
  const CredentialTable::TokenEntry* entry = table->FindToken(made.token);
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->principal.name, "ci");
  EXPECT_EQ(entry->principal.role, Role::kAdmin);
  EXPECT_EQ(entry->expires, expires);
  ASSERT_OK_AND_ASSIGN(const NewToken another, CreateToken("ci", "vision", "admin", absl::InfiniteFuture()));
  EXPECT_NE(another.token, made.token);
  EXPECT_EQ(another.entry.find("expire_time"), std::string::npos);
}

TEST(CreateTokenTest, RefusesWhatTheFileWould) {
  EXPECT_REASON(CreateToken("", "vision", "admin", absl::InfiniteFuture()), REQUEST_INVALID);
  EXPECT_REASON(CreateToken("ci", "Vision", "admin", absl::InfiniteFuture()), NAME_INVALID);
  EXPECT_REASON(CreateToken("ci", "vision", "ADMIN", absl::InfiniteFuture()), REQUEST_INVALID);
  EXPECT_REASON(CreateToken("ci", "vision", "role_unspecified", absl::InfiniteFuture()), REQUEST_INVALID);
}

}  // namespace
}  // namespace modelpress::server

#include "tests/server/base/test_folder.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"

namespace modelpress::server {

TestFolder::TestFolder() : path_(testing::TempDir() + "/modelpress-XXXXXX") {
  if (mkdtemp(path_.data()) == nullptr) {
    std::perror(path_.c_str());
    std::abort();
  }
}

TestFolder::~TestFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::unique_ptr<SmallDisk> SmallDisk::Mount(size_t bytes) {
  std::unique_ptr<SmallDisk> disk(new SmallDisk());
  if (mount("modelpress-test", disk->path().c_str(), "tmpfs", 0, absl::StrCat("size=", bytes).c_str()) != 0) {
    return nullptr;
  }
  return disk;
}

SmallDisk::~SmallDisk() { umount2(path().c_str(), MNT_DETACH); }

void SmallDisk::Fill() {
  int file = open((path() + "/ballast").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  const std::string page(4096, 'x');
  while (write(file, page.data(), page.size()) > 0) {
  }
  close(file);
}

void SmallDisk::Free() { unlink((path() + "/ballast").c_str()); }

std::vector<std::string> RunAndKill(int lines, const std::function<void(const std::function<void(const std::string&)>&)>& body) {
  std::array<int, 2> ends;
  if (pipe(ends.data()) != 0) {
    return {};
  }
  pid_t child = fork();
  if (child == 0) {
    close(ends[0]);
    body([&ends](const std::string& line) {
      std::string text = line + "\n";
      if (write(ends[1], text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
        _exit(1);
      }
    });
    _exit(1);
  }
  close(ends[1]);
  std::string text;
  std::array<char, 4096> buffer;
  bool killed = false;
  ssize_t count = 0;
  while ((count = read(ends[0], buffer.data(), buffer.size())) > 0) {
    text.append(buffer.data(), count);
    if (!killed && std::count(text.begin(), text.end(), '\n') >= lines) {
      kill(child, SIGKILL);
      killed = true;
    }
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(killed && WIFSIGNALED(status)) << "the child ended by itself after: " << text;
  std::vector<std::string> said = absl::StrSplit(text, '\n');
  said.pop_back();
  return said;
}

int RunInChild(const std::function<int()>& body) {
  pid_t child = fork();
  if (child == 0) {
    _exit(body());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

void WriteTestFile(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

std::string ReadTestFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string TestBytes(size_t size, unsigned seed) {
  std::minstd_rand random(seed);
  std::string bytes(size, '\0');
  std::generate(bytes.begin(), bytes.end(), [&random] { return static_cast<char>(random() >> 8); });
  return bytes;
}

}  // namespace modelpress::server

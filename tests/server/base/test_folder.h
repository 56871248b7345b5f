// Folders, small disks and sudden death for tests of what is stored.
#ifndef MODELPRESS_TESTS_SERVER_BASE_TEST_FOLDER_H_
#define MODELPRESS_TESTS_SERVER_BASE_TEST_FOLDER_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace modelpress::server {

// An empty folder that goes with the object.
class TestFolder {
 public:
  TestFolder();
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  ~TestFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A file system of `bytes` bytes in memory, mounted on a TestFolder.
class SmallDisk {
 public:
  // nullptr where this process may not mount (no CAP_SYS_ADMIN).
  static std::unique_ptr<SmallDisk> Mount(size_t bytes);
  ~SmallDisk();
  const std::string& path() const { return folder_.path(); }
  // Takes all the space that is left; gives it back.
  void Fill();
  void Free();

 private:
  SmallDisk() = default;
  TestFolder folder_;
};

// Runs `body` in a child process, which calls the function it is given with one line of text whenever something is done, and
// kills it with SIGKILL in the middle of whatever it does once `lines` lines were said. Returns all lines it managed to say. Call
// it while this process has one thread only. `body` must never return.
std::vector<std::string> RunAndKill(int lines, const std::function<void(const std::function<void(const std::string&)>&)>& body);

// Runs `body` in a child process and returns what it returns (0 to 127).
int RunInChild(const std::function<int()>& body);

void WriteTestFile(const std::string& path, const std::string& bytes);
std::string ReadTestFile(const std::string& path);

// `size` bytes that look random and depend on `seed` only.
std::string TestBytes(size_t size, unsigned seed = 1);

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_SERVER_BASE_TEST_FOLDER_H_

// How many streams of one kind may be under way, shared fairly by the projects.
#ifndef MODELPRESS_SERVER_RPC_STREAM_PLACES_H_
#define MODELPRESS_SERVER_RPC_STREAM_PLACES_H_

#include <map>
#include <mutex>
#include <string>

namespace modelpress::server {

// A project may hold as many places as are free besides: one alone gets half of them, two get a third each. So whoever comes
// first, and never leaves, cannot lock out the others. Thread-safe.
class StreamPlaces {
 public:
  explicit StreamPlaces(int count) : free_(count) {}

  // False: the project holds as many as it may at the moment. True wants a Leave.
  bool Enter(const std::string& project);
  void Leave(const std::string& project);

 private:
  std::mutex mutex_;
  int free_;
  std::map<std::string, int> held_;  // by project; none of 0
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_STREAM_PLACES_H_

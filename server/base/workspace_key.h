#ifndef MODELPRESS_SERVER_BASE_WORKSPACE_KEY_H_
#define MODELPRESS_SERVER_BASE_WORKSPACE_KEY_H_

#include <string>

namespace modelpress::server {

// A workspace as the stores know it: "workspaces/{id}" of one project. Callers only ever name the id; the project is theirs.
struct WorkspaceKey {
  std::string project;
  std::string id;

  friend bool operator==(const WorkspaceKey&, const WorkspaceKey&) = default;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BASE_WORKSPACE_KEY_H_

#include "server/daemon/reflection.h"

#include <memory>
#include <vector>

#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/impl/server_builder_option.h"

namespace modelpress::server {
namespace {

using grpc::reflection::ProtoServerReflectionPlugin;

class Reflection final : public grpc::ServerBuilderOption {
 public:
  explicit Reflection(bool on) : on_(on) {}
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    std::erase_if(*plugins,
                  [](const auto& plugin) { return dynamic_cast<ProtoServerReflectionPlugin*>(plugin.get()) != nullptr; });
    if (on_) {
      plugins->push_back(std::make_unique<ProtoServerReflectionPlugin>());
    }
  }

 private:
  const bool on_;
};

}  // namespace

void SetReflection(grpc::ServerBuilder& builder, bool on) { builder.SetOption(std::make_unique<Reflection>(on)); }

}  // namespace modelpress::server

// NumPy's files: .npy arrays and .npz archives of them, read as a stream.
#ifndef MODELPRESS_ENGINE_RUNTIME_NPZ_H_
#define MODELPRESS_ENGINE_RUNTIME_NPZ_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model/file_set.h"

namespace modelpress::engine {

// An array: header parsed, elements read in order.
class ArrayReader {
 public:
  virtual ~ArrayReader() = default;
  virtual int data_type() const = 0;  // onnx.TensorProto.DataType
  virtual const std::vector<int64_t>& dims() const = 0;
  // The next out.size() bytes of the elements (row-major, little-endian). With the last of them the rest of the file is checked:
  // nothing may follow, and the checksum of an archive's member must be right. DATA_UNREADABLE: the file ends early or is
  // damaged.
  virtual absl::Status Read(absl::Span<uint8_t> out) = 0;
};

// A .npy file of its own (numpy.lib.format, versions 1 to 3). DATA_UNREADABLE: no npy, Fortran order of more than one dimension,
// big-endian, structured, a type that ONNX does not have, or an array of Python objects (a pickle), which is never loaded.
absl::StatusOr<std::unique_ptr<ArrayReader>> OpenNpy(std::shared_ptr<const InputFile> file);

// The archive of np.savez and np.savez_compressed. Members are unpacked piece by piece as they are read: an archive that unpacks
// to much more than its size costs no memory, and what a member unpacks to is bounded by its header. The number of members and
// the length of their names are bounded. Not thread-safe, together with its ArrayReaders, of which several may be read in turn.
class NpzFile {
 public:
  // DATA_UNREADABLE: no zip, truncated, two members of one name.
  static absl::StatusOr<std::unique_ptr<NpzFile>> Open(std::shared_ptr<const InputFile> file);
  virtual ~NpzFile() = default;
  // Names without ".npy", in the archive's order.
  virtual const std::vector<std::string>& names() const = 0;
  // The reader may outlive the archive object. DATA_UNREADABLE: as for OpenNpy, with the member's name.
  virtual absl::StatusOr<std::unique_ptr<ArrayReader>> OpenArray(const std::string& name) const = 0;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RUNTIME_NPZ_H_

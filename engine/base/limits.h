// How much of anything the engine takes from a file that a caller uploaded. Every one is checked before memory or work is spent
// in proportion to what the file says; beyond it the file is refused with the reason noted. docs/server.md lists them for
// callers.
#ifndef MODELPRESS_ENGINE_BASE_LIMITS_H_
#define MODELPRESS_ENGINE_BASE_LIMITS_H_

#include <cstddef>
#include <cstdint>

namespace modelpress {

// Errors. Names and texts in a caller's file may have any length and any bytes; bytes of UTF-8 that a status keeps of them.
inline constexpr size_t kMaxErrorPlaceBytes = 1024;
inline constexpr size_t kMaxErrorMessageBytes = 1024;

namespace engine {

// ONNX files: MODEL_LIMIT.
inline constexpr uint64_t kMaxModelItems = 2'000'000;        // nodes and initializers, subgraphs and inlined functions included
inline constexpr int kMaxModelDepth = 100;                   // nested messages (protobuf's own limit): some 32 graphs in graphs;
                                                             // functions that call functions
inline constexpr uint64_t kMaxModelInlineBytes = 256 << 20;  // everything but the data of big tensors
inline constexpr int kMaxNodeAttributes = 1'000;             // of one node
inline constexpr int kMaxNodeValues = 100'000;               // inputs of one node, and outputs
inline constexpr size_t kMaxModelNameBytes = 4'096;          // of a node, a tensor, an operator, a domain, an external file
inline constexpr int kMaxTensorDims = 32;
inline constexpr uint64_t kMaxTensorElements = uint64_t{1} << 56;  // beyond any file; sizes computed from it do not overflow
inline constexpr uint64_t kMaxExternalFiles = 4'096;               // each is open and mapped while the model is

// Record files and simple configurations (protobuf text): RECORD_SYNTAX, CONFIG_SYNTAX.
inline constexpr uint64_t kMaxRecordBytes = 512 << 20;
inline constexpr uint64_t kMaxCfgBytes = 16 << 20;
inline constexpr uint64_t kMaxTextMessages = 4'000'000;  // in braces; an entry of a record has two

// JSON configurations: CONFIG_SYNTAX. The module manifest: MANIFEST_INVALID. Rewrite plans: REQUEST_INVALID.
inline constexpr uint64_t kMaxJsonBytes = 64 << 20;
inline constexpr uint64_t kMaxJsonValues = 4'000'000;
inline constexpr int kMaxJsonDepth = 64;
inline constexpr uint64_t kMaxManifestBytes = 16 << 20;
inline constexpr uint64_t kMaxPlanBytes = 64 << 20;

// What a configuration may ask for: CONFIG_VALUE.
inline constexpr double kMaxSearchSteps = 100'000;  // of an activation's range (60 by default), each a pass over a histogram

// Weights (safetensors): WEIGHTS_INVALID. As many tensors and dims as a model may have.
inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;  // bytes; the format's own limit

// Calibration data: DATA_UNREADABLE.
inline constexpr int64_t kMaxBatches = 1'000'000;
inline constexpr uint64_t kMaxBatchTensorBytes = uint64_t{2} << 30;  // of one input in one batch
inline constexpr uint64_t kMaxTensorProtoBytes = 128 << 20;          // a file that is parsed in memory
inline constexpr uint64_t kMaxNpzMembers = 100'000;
inline constexpr size_t kMaxNpzNameBytes = 1'024;
inline constexpr uint64_t kMaxNpzInflatedBytes = uint64_t{256} << 30;  // of all members
// Of all members, to the bytes of the archive. Deflate reaches 1,032 with nothing but zeros, data some 20. Archives that unpack
// to less than kNpzRatioFrom may have any ratio: a few arrays of zeros are no attack.
inline constexpr uint64_t kMaxNpzRatio = 200;
inline constexpr uint64_t kNpzRatioFrom = 64 << 20;
// numpy itself stops at 10,000 unless told otherwise; a plain array needs some 100.
inline constexpr uint32_t kMaxNpyHeaderBytes = 10'000;

}  // namespace engine
}  // namespace modelpress

#endif  // MODELPRESS_ENGINE_BASE_LIMITS_H_

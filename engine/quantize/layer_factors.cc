#include "engine/quantize/layer_factors.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "engine/quantize/op_rules.h"

namespace modelpress::engine {
namespace {

using AMCTPytorchProto::MapFiledEntry;
using AMCTPytorchProto::SingleLayerRecord;

constexpr float kMinBalanceFactor = 0x1p-23F;
constexpr float kMaxBalanceFactor = 0x1p23F;

int BitsOf(const std::string& type) { return type == "INT16" ? 16 : type[3] - '0'; }

bool IsOneOf(const std::string& value, std::initializer_list<absl::string_view> legal) {
  return std::find(legal.begin(), legal.end(), value) != legal.end();
}

// An entry without any factor leaves its layer in float (rule 5).
bool IsEmpty(const SingleLayerRecord& value) {
  return value.scale_d() == 0 && value.offset_d() == 0 && value.scale_h() == 0 && value.offset_h() == 0 &&
         value.scale_w().empty() && value.offset_w().empty() && value.shift_bit().empty() && value.scale_r().empty() &&
         value.offset_r().empty();
}

// Checks one entry. The numbers in comments are the rules of docs/spec/save.md section 2.3.
class EntryChecker {
 public:
  EntryChecker(const Graph& graph, const MapFiledEntry& entry, ErrorPlace place, const ReferenceDefects& defects, RecordUse use)
      : graph_(graph), entry_(entry), value_(entry.value()), place_(std::move(place)), defects_(defects), use_(use) {}

  // `node` is the item that the key names; true in the result: the entry carries factors for it.
  absl::StatusOr<bool> Check(ItemId node) {
    const std::string why_not = WhyNotQuantizable(graph_, node);
    const bool tensor_entry = absl::string_view(entry_.key()).find(':') != absl::string_view::npos;
    if (!why_not.empty()) {
      if (!tensor_entry) {  // 3
        return Error(v1::RECORD_NOT_QUANTIZABLE, absl::StrCat("this cannot be quantized: ", why_not, "; remove the entry"));
      }
      if (!value_.scale_w().empty() || !value_.offset_w().empty() || !value_.shift_bit().empty()) {  // 4
        return Error(v1::RECORD_UNEXPECTED, "an entry for a tensor may carry activation factors only");
      }
      if (!IsEmpty(value_)) {
        MP_RETURN_IF_ERROR(CheckTypes());
        MP_RETURN_IF_ERROR(CheckActivation("scale_d", value_.scale_d(), "offset_d", value_.offset_d()));
      }
      return false;
    }
    const Item& item = graph_.item(node);
    const OpRule& rule = *FindOpRule(item.node.proto.op_type());
    std::vector<int64_t> dims;
    if (rule.weight >= 0) {
      if (auto weight = FindConstantOperand(graph_, graph_.InputOf(node, rule.weight)); weight.has_value()) {
        dims = DimsOf(graph_.item(weight->holder));
      } else {
        return Error(
            v1::NODE_UNSUPPORTED,
            "its weight must be an initializer or a Constant, at most behind one Transpose; remove the entry or fold the weight");
      }
    }
    const bool empty = IsEmpty(value_);
    if (!empty) {  // 5
      MP_RETURN_IF_ERROR(CheckTypes());
      MP_RETURN_IF_ERROR(CheckWeightFactors(item, rule, dims));
      MP_RETURN_IF_ERROR(CheckActivation("scale_d", value_.scale_d(), "offset_d", value_.offset_d()));
      MP_RETURN_IF_ERROR(CheckScales("scale_w", value_.scale_w(), "offset_w", value_.offset_w()));
      if (rule.is_rnn()) {
        MP_RETURN_IF_ERROR(CheckRnn(item, rule, dims));
      }
    }
    MP_RETURN_IF_ERROR(CheckBalanceFactors(item, rule, dims, empty));
    return !empty;
  }

 private:
  absl::Status Error(v1::Reason reason, absl::string_view message) const { return MakeError(reason, message, place_); }

  absl::Status CheckTypes() const {
    if (!value_.has_scale_d() || !value_.has_offset_d()) {  // 6
      return Error(v1::RECORD_INCOMPLETE, absl::StrCat(value_.has_scale_d() ? "offset_d" : "scale_d", " is missing"));
    }
    if (value_.has_dst_type()) {  // 7
      if (!IsOneOf(value_.dst_type(), {"INT8", "INT4"})) {
        return Error(v1::RECORD_VALUE, absl::StrCat("dst_type \"", value_.dst_type(), "\" must be INT4 or INT8"));
      }
      if (value_.dst_type() == "INT4" && entry_.key().find("AvgPool") != std::string::npos) {
        return Error(v1::RECORD_VALUE, "a pooling layer cannot have dst_type INT4");
      }
    }
    if (value_.has_act_type() && !IsOneOf(value_.act_type(), {"INT4", "INT8", "INT16"})) {  // 8
      return Error(v1::RECORD_VALUE, absl::StrCat("act_type \"", value_.act_type(), "\" must be INT4, INT8 or INT16"));
    }
    if (value_.has_wts_type() && !IsOneOf(value_.wts_type(), {"INT4", "INT6", "INT7", "INT8"})) {  // 9
      return Error(v1::RECORD_VALUE, absl::StrCat("wts_type \"", value_.wts_type(), "\" must be INT4, INT6, INT7 or INT8"));
    }
    if (value_.has_fakequant_precision_mode() &&
        !IsOneOf(value_.fakequant_precision_mode(), {"DEFAULT", "FORCE_FP16_QUANT"})) {  // 10
      return Error(v1::RECORD_VALUE, absl::StrCat("fakequant_precision_mode \"", value_.fakequant_precision_mode(),
                                                  "\" must be DEFAULT or FORCE_FP16_QUANT"));
    }
    return absl::OkStatus();
  }

  // The numbers of scales that `dims` allow, in words for errors too.
  bool LengthFits(const Item& item, const OpRule& rule, const std::vector<int64_t>& dims, int64_t length,
                  std::string& wanted) const {
    const int64_t channels = rule.per_channel_scales ? OutputChannels(item, rule, dims) : 0;
    if (rule.is_rnn()) {
      wanted = absl::StrCat(rule.gates, " (one per gate) or ", channels);
      return length == rule.gates || length == channels;
    }
    wanted = rule.per_channel_scales ? absl::StrCat("1 or ", channels, " (output channels)") : "1";
    return length == 1 || (rule.per_channel_scales && length == channels);
  }

  absl::Status CheckLengths(const Item& item, const OpRule& rule, const std::vector<int64_t>& dims, absl::string_view scale_name,
                            int64_t scales, absl::string_view offset_name, int64_t offsets) const {
    if (scales != offsets) {
      return Error(v1::RECORD_LENGTH, absl::StrCat(scale_name, " has ", scales, " values and ", offset_name, " ", offsets));
    }
    if (std::string wanted; !LengthFits(item, rule, dims, scales, wanted)) {
      return Error(v1::RECORD_LENGTH, absl::StrCat(scale_name, " has ", scales, " values; this layer needs ", wanted));
    }
    return absl::OkStatus();
  }

  absl::Status CheckWeightFactors(const Item& item, const OpRule& rule, const std::vector<int64_t>& dims) const {
    if (value_.scale_w().empty() || value_.offset_w().empty()) {  // 11
      return Error(v1::RECORD_INCOMPLETE, absl::StrCat(value_.scale_w().empty() ? "scale_w" : "offset_w", " is missing"));
    }
    if (!value_.shift_bit().empty()) {  // 12
      return Error(v1::RECORD_UNEXPECTED, "shift_bit is supported by no layer; remove it");
    }
    return CheckLengths(item, rule, dims, "scale_w", value_.scale_w_size(), "offset_w", value_.offset_w_size());  // 14
  }

  // 13, for scale_d and scale_h
  absl::Status CheckActivation(absl::string_view scale_name, float scale, absl::string_view offset_name, int offset) const {
    int bits = value_.act_type() == "INT16" ? 16 : 8;
    if (!defects_.accepts_wide_4bit_offsets && (value_.has_dst_type() ? value_.dst_type() : value_.act_type()) == "INT4") {
      bits = 4;
    }
    const int limit = 1 << (bits - 1);
    if (offset < -limit || offset >= limit) {
      return Error(v1::RECORD_VALUE, absl::StrCat(offset_name, " is ", offset, ", outside [", -limit, ", ", limit - 1, "] of a ",
                                                  bits, "-bit activation"));
    }
    MP_RETURN_IF_ERROR(CheckScale(scale_name, scale));
    if (!defects_.accepts_overflowing_scales && !std::isfinite(1.0F / scale)) {
      return Error(v1::RECORD_VALUE, absl::StrCat(scale_name, " is ", scale, ": its reciprocal is not finite in float32"));
    }
    return absl::OkStatus();
  }

  absl::Status CheckScale(absl::string_view name, float scale) const {
    return std::isfinite(scale) && scale > 0
               ? absl::OkStatus()
               : Error(v1::RECORD_VALUE, absl::StrCat(name, " is ", scale, "; it must be finite and greater than 0"));
  }

  // 13, for scale_w and scale_r
  template <typename Scales, typename Offsets>
  absl::Status CheckScales(absl::string_view scale_name, const Scales& scales, absl::string_view offset_name,
                           const Offsets& offsets) const {
    for (int offset : offsets) {
      if (offset != 0) {
        return Error(v1::RECORD_VALUE,
                     absl::StrCat(offset_name, " is ", offset, "; weights are quantized symmetrically, it must be 0"));
      }
    }
    for (float scale : scales) {
      MP_RETURN_IF_ERROR(CheckScale(scale_name, scale));
      if (!std::isfinite(1.0F / scale)) {
        return Error(v1::RECORD_VALUE, absl::StrCat(scale_name, " is ", scale, ": its reciprocal is not finite in float32"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckRnn(const Item& item, const OpRule& rule, const std::vector<int64_t>& dims) const {  // 15
    const std::array<std::pair<bool, const char*>, 4> present = {{{value_.has_scale_h(), "scale_h"},
                                                                  {value_.has_offset_h(), "offset_h"},
                                                                  {!value_.scale_r().empty(), "scale_r"},
                                                                  {!value_.offset_r().empty(), "offset_r"}}};
    for (const auto& [is_there, name] : present) {
      if (!is_there) {
        return Error(v1::RECORD_INCOMPLETE, absl::StrCat(name, " is missing"));
      }
    }
    MP_RETURN_IF_ERROR(CheckLengths(item, rule, dims, "scale_r", value_.scale_r_size(), "offset_r", value_.offset_r_size()));
    MP_RETURN_IF_ERROR(CheckActivation("scale_h", value_.scale_h(), "offset_h", value_.offset_h()));
    MP_RETURN_IF_ERROR(CheckScales("scale_r", value_.scale_r(), "offset_r", value_.offset_r()));
    if (value_.act_type() == "INT4") {
      return Error(v1::RECORD_VALUE, "an LSTM or GRU cannot have act_type INT4; use INT8 or INT16");
    }
    return absl::OkStatus();
  }

  absl::Status CheckBalanceFactors(const Item& item, const OpRule& rule, const std::vector<int64_t>& dims,
                                   bool empty) const {  // 16
    if (value_.tensor_balance_factor().empty()) {
      return absl::OkStatus();
    }
    if (!rule.balance_factors) {
      return Error(v1::RECORD_UNEXPECTED, absl::StrCat("operator ", rule.op_type, " may not carry tensor_balance_factor"));
    }
    if (const int64_t channels = InputChannels(item, rule, dims); value_.tensor_balance_factor_size() != channels) {
      return Error(v1::RECORD_LENGTH, absl::StrCat("tensor_balance_factor has ", value_.tensor_balance_factor_size(),
                                                   " values; this layer has ", channels, " input channels"));
    }
    for (float factor : value_.tensor_balance_factor()) {
      if (!(factor >= kMinBalanceFactor && factor <= kMaxBalanceFactor)) {
        return Error(v1::RECORD_VALUE, absl::StrCat("tensor_balance_factor is ", factor, ", outside [2^-23, 2^23]"));
      }
    }
    if (empty && use_ == RecordUse::kSave) {
      return Error(v1::RECORD_INCOMPLETE, "it has tensor_balance_factor but no quantization factors");
    }
    return absl::OkStatus();
  }

  const Graph& graph_;
  const MapFiledEntry& entry_;
  const SingleLayerRecord& value_;
  const ErrorPlace place_;
  const ReferenceDefects& defects_;
  const RecordUse use_;
};

LayerFactors ToFactors(const SingleLayerRecord& value) {
  LayerFactors factors;
  factors.scale_d = value.scale_d();
  factors.offset_d = value.offset_d();
  factors.scale_w.assign(value.scale_w().begin(), value.scale_w().end());
  factors.scale_h = value.scale_h();
  factors.offset_h = value.offset_h();
  factors.scale_r.assign(value.scale_r().begin(), value.scale_r().end());
  factors.tensor_balance_factor.assign(value.tensor_balance_factor().begin(), value.tensor_balance_factor().end());
  // The defaults of the proto ("INT8") stand for absent fields.
  factors.activation_bits = BitsOf(value.has_dst_type() ? value.dst_type() : value.act_type());
  factors.weight_bits = BitsOf(value.has_dst_type() ? value.dst_type() : value.wts_type());
  factors.rnn_activation_bits = BitsOf(value.act_type());
  factors.merge_type = value.has_act_type() ? value.act_type() : "UNSET";
  factors.packs_int4 = value.has_wts_type() && value.wts_type() == "INT4";
  factors.truncates_dequant_scale = value.fakequant_precision_mode() == "FORCE_FP16_QUANT";
  return factors;
}

}  // namespace

std::string IntegerTypeName(int bits) { return absl::StrCat("INT", bits); }

absl::StatusOr<FactorsByLayer> ReadFactors(const ParsedRecord& record, const Graph& graph, const std::string& file,
                                           const ReferenceDefects& defects, RecordUse use) {
  if (record.record.record().empty()) {  // 0
    return MakeError(v1::RECORD_EMPTY, "the record file has no 'record' entry", {.file = file});
  }
  absl::flat_hash_map<std::string, ItemId> items;
  for (bool nodes : {true, false}) {  // a node goes before an initializer of the same name
    for (ItemId id : graph.Order()) {
      if (graph.item(id).is_node() == nodes) {
        items.emplace(graph.item(id).name, id);
      }
    }
  }
  FactorsByLayer layers;
  for (int i = 0; i < record.record.record_size(); ++i) {
    const MapFiledEntry& entry = record.record.record(i);
    const TextPosition& position = record.entry_positions[i];
    const ErrorPlace place = {.file = file, .line = position.line, .column = position.column, .layer = entry.key()};
    if (!entry.has_key() || !entry.has_value()) {  // 1
      return MakeError(v1::RECORD_INCOMPLETE, absl::StrCat("the entry has no ", entry.has_key() ? "value" : "key"), place);
    }
    auto it = items.find(entry.key().substr(0, entry.key().find(':')));
    if (it == items.end()) {  // 2
      return MakeError(v1::RECORD_UNKNOWN_LAYER, "the model has no node of this name", place);
    }
    MP_ASSIGN_OR_RETURN(const bool carries_factors, EntryChecker(graph, entry, place, defects, use).Check(it->second));
    if (carries_factors && it->first == entry.key()) {
      layers[entry.key()] = ToFactors(entry.value());
    }
  }
  return layers;
}

}  // namespace modelpress::engine

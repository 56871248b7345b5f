"""Hostile calibration data and weights: zip archives, NumPy arrays, TensorProtos, safetensors."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper

from tests.hostile.case import Case, generator, message, npy, npz, number, reasons, safetensors, varint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.hostile.case import Content

UNREADABLE = reasons("DATA_UNREADABLE", "DATA_MISMATCH", "DATA_TOO_SHORT", "DATA_NOT_FINITE")
GOOD = np.ones((2, 3, 8, 8), np.float32)
STORED, DEFLATED = 0, 8


# ---- zip archives by hand --------------------------------------------------------------------------------------


class Member:
    """A member of an archive, with everything that its two headers say of it."""

    def __init__(self, name: bytes, data: bytes, **says: int) -> None:
        self.name = name
        self.data = data
        self.method = says.get("method", STORED)
        self.flags = says.get("flags", 0)
        self.crc = says.get("crc", zlib.crc32(data))
        self.packed = says.get("packed", len(data))
        self.unpacked = says.get("unpacked", len(data))
        self.offset = says.get("offset", -1)  # of the local header, as the directory says
        self.extra = b""
        self.only_in_directory = False

    def local(self) -> bytes:
        """Local header and data."""
        head = struct.pack(
            "<IHHHHHIIIHH",
            0x04034B50,
            20,
            self.flags,
            self.method,
            0,
            0,
            self.crc & 0xFFFFFFFF,
            self.packed & 0xFFFFFFFF,
            self.unpacked & 0xFFFFFFFF,
            len(self.name),
            0,
        )
        return head + self.name + self.data

    def central(self, offset: int) -> bytes:
        """Entry of the directory."""
        head = struct.pack(
            "<IHHHHHHIIIHHHHHII",
            0x02014B50,
            20,
            20,
            self.flags,
            self.method,
            0,
            0,
            self.crc & 0xFFFFFFFF,
            self.packed & 0xFFFFFFFF,
            self.unpacked & 0xFFFFFFFF,
            len(self.name),
            len(self.extra),
            0,
            0,
            0,
            0,
            offset & 0xFFFFFFFF,
        )
        return head + self.name + self.extra


def archive(
    *members: Member, entries: int | None = None, directory_offset: int | None = None, comment: bytes = b""
) -> bytes:
    """An archive of these members; what the end says can be given otherwise."""
    body = bytearray()
    directory = bytearray()
    for member in members:
        directory += member.central(member.offset if member.offset >= 0 else len(body))
        if not member.only_in_directory:
            body += member.local()
    count = len(members) if entries is None else entries
    end = struct.pack(
        "<IHHHHIIH",
        0x06054B50,
        0,
        0,
        count & 0xFFFF,
        count & 0xFFFF,
        len(directory),
        len(body) if directory_offset is None else directory_offset,
        len(comment),
    )
    return bytes(body + directory + end + comment)


def deflated(data: bytes) -> bytes:
    """Raw deflate."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def packed(name: bytes, data: bytes, **says: int) -> Member:
    """A deflated member."""
    content = deflated(data)
    return Member(name, content, **({"method": DEFLATED, "crc": zlib.crc32(data), "unpacked": len(data)} | says))


def npz_case(name: str, content: Content, allowed: frozenset[str] = UNREADABLE) -> Case:
    """An archive as calibration data."""
    return Case(f"npz_{name}", {"d.npz": content}, call="calibrate_npz", reasons=allowed)


@generator
def archives() -> Iterator[Case]:
    """Zip bombs, overlapping members, lies about sizes."""
    good = npy(GOOD)

    def zeros() -> bytes:  # 77 MB in 75 kB
        return npy(np.zeros((100_000, 3, 8, 8), np.float32))

    yield npz_case("bomb", lambda: archive(packed(b"x.npy", zeros())))

    # 42.zip's idea: members that are all the same bytes.
    def at_one_place(first: Member, count: int) -> bytes:
        return archive(first, *[shared(f"x__{i}.npy".encode(), first) for i in range(1, count)])

    yield npz_case("bomb_of_overlapping_members", lambda: at_one_place(packed(b"x__0.npy", zeros()), 50))
    yield npz_case("ten_members_at_one_place", at_one_place(Member(b"x__0.npy", good), 10))
    yield npz_case("nested", archive(packed(b"x.npy", archive(packed(b"x.npz", archive(packed(b"x.npy", good)))))))
    yield npz_case("says_less_than_it_unpacks_to", archive(packed(b"x.npy", good, unpacked=len(good) - 1)))
    yield npz_case("says_more_than_it_unpacks_to", archive(packed(b"x.npy", good, unpacked=len(good) + 1)))
    yield npz_case("says_4_gib", archive(packed(b"x.npy", good, unpacked=0xFFFFFFFE)))
    yield npz_case("says_nothing", archive(packed(b"x.npy", good, unpacked=0)))
    yield npz_case("packed_size_beyond_file", archive(packed(b"x.npy", good, packed=0x7FFFFFFF)))
    yield npz_case("stored_with_two_sizes", archive(Member(b"x.npy", good, unpacked=len(good) * 2)))
    yield npz_case("wrong_checksum", archive(Member(b"x.npy", good, crc=1)))
    yield npz_case("wrong_checksum_deflated", archive(packed(b"x.npy", good, crc=1)))
    yield npz_case("encrypted", archive(Member(b"x.npy", good, flags=1)))
    yield npz_case("strongly_encrypted", archive(Member(b"x.npy", good, flags=0x41)))
    for method in (1, 6, 9, 12, 14, 93, 95, 99, 0xFFFF):
        yield npz_case(f"method_{method}", archive(Member(b"x.npy", good, method=method)))
    yield npz_case("deflate_of_garbage", archive(Member(b"x.npy", b"\xff" * 100, method=DEFLATED, unpacked=len(good))))
    yield npz_case("deflate_bomb_behind_header", lambda: archive(packed(b"x.npy", bytes(100 << 20))))
    yield npz_case(
        "deflate_cut",
        archive(Member(b"x.npy", deflated(good)[:-10], method=DEFLATED, unpacked=len(good), crc=zlib.crc32(good))),
    )
    yield npz_case("offset_beyond_file", archive(Member(b"x.npy", good, offset=0x7FFFFFFF)))
    yield npz_case("offset_into_itself", archive(Member(b"x.npy", good, offset=7)))
    yield npz_case("directory_beyond_file", archive(Member(b"x.npy", good), directory_offset=0x7FFFFFFF))
    yield npz_case("directory_at_0", archive(Member(b"x.npy", good), directory_offset=0))
    yield npz_case("entries_65534", archive(Member(b"x.npy", good), entries=65534))
    yield npz_case("entries_0", archive(Member(b"x.npy", good), entries=0))
    yield npz_case("twice_the_same", archive(Member(b"x.npy", good), Member(b"x.npy", good)))
    yield npz_case("twice_with_and_without_suffix", archive(Member(b"x.npy", good), Member(b"x", good)))
    yield npz_case("name_that_climbs", archive(Member(b"../../x.npy", good), Member(b"/etc/passwd.npy", good)))
    yield npz_case("name_long", archive(Member(b"x" * 60_000 + b".npy", good), Member(b"y.npy", good)))
    yield npz_case("name_no_utf8", archive(Member(b"\xff\xfe.npy", good), Member(b"y.npy", good)))
    yield npz_case("name_null", archive(Member(b"x\0.npy", good), Member(b"y.npy", good)))
    yield npz_case("name_empty", archive(Member(b"", good), Member(b"y.npy", good)))
    yield npz_case("many_empty_members", lambda: archive(*[Member(f"{i}.npy".encode(), b"") for i in range(60_000)]))
    yield npz_case("no_members", archive())
    yield npz_case(
        "comment_with_an_archive",
        archive(Member(b"y.npy", good), Member(b"x.npy", good), comment=archive(Member(b"z.npy", good[:-1]))),
    )
    whole = npz(x=GOOD)
    for part in range(1, 16):
        yield npz_case(f"cut_at_{part}_16th", whole[: len(whole) * part // 16])
    yield npz_case("empty", b"")
    yield npz_case("zeros", bytes(10_000))
    yield npz_case("only_an_end", whole[-22:])
    # zip64: an end that says anything.
    for name, count in {"entries_2_to_the_63": 2**63, "entries_2_to_the_32": 2**32, "entries_1": 1}.items():
        body = Member(b"x.npy", good).local()
        directory = Member(b"x.npy", good).central(0)
        end64 = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, 2**62, len(body) + 2**40)
        locator = struct.pack("<IIQI", 0x07064B50, 0, len(body) + len(directory), 1)
        end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        yield npz_case(f"zip64_{name}", body + directory + end64 + locator + end)
    huge = Member(b"x.npy", good, packed=0xFFFFFFFF, unpacked=0xFFFFFFFF)
    huge.extra = struct.pack("<HHQQ", 1, 16, 2**62, 2**62)
    yield npz_case("zip64_member_of_2_to_the_62", archive(huge))
    python_zip = io.BytesIO()
    with zipfile.ZipFile(python_zip, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("x.npy", good)
    yield npz_case("lzma", python_zip.getvalue())
    objects = io.BytesIO()
    np.savez(objects, x=np.array([{"a": 1}], dtype=object))
    yield npz_case("pickled_objects", objects.getvalue())


def shared(name: bytes, other: Member) -> Member:
    """A member that is only in the directory: its bytes are those of the archive's first one."""
    member = Member(
        name, b"", method=other.method, packed=other.packed, unpacked=other.unpacked, crc=other.crc, offset=0
    )
    member.only_in_directory = True
    return member


# ---- arrays --------------------------------------------------------------------------------------


def npy_header(text: str | bytes, data: bytes = b"", version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    """An .npy file with this header."""
    content = text.encode() if isinstance(text, str) else text
    size = len(content) if length is None else length
    packed_size = struct.pack("<H", size & 0xFFFF) if version[0] == 1 else struct.pack("<I", size & 0xFFFFFFFF)
    return b"\x93NUMPY" + version + packed_size + content + data


def shape_header(shape: str, descr: str = "'<f4'", order: str = "False") -> str:
    """The header's dictionary."""
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


class Evil:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch /tmp/modelpress-was-here",)


@generator
def arrays() -> Iterator[Case]:
    """Headers with code in them, shapes that lie, pickles."""
    bytes_ = GOOD.tobytes()

    def case(name: str, content: bytes) -> Case:
        return Case(f"npy_{name}", {"d.npy": content}, call="calibrate_npy", reasons=UNREADABLE)

    for name, shape in {
        "huge": "(9223372036854775807, 3, 8, 8)",
        "overflowing": "(4294967296, 4294967296, 4)",
        "beyond_64_bits": "(99999999999999999999, 3, 8, 8)",
        "negative": "(-2, 3, 8, 8)",
        "zero": "(0, 3, 8, 8)",
        "float": "(2.0, 3, 8, 8)",
        "nested": "((2, 3), 8, 8)",
        "an_int": "2",
        "a_text": "'2'",
        "of_a_hundred": "(" + "1," * 100 + ")",
        "code": "(__import__('os').system('touch /tmp/modelpress-was-here'),)",
        "expression": "(1+1, 3, 8, 8)",
        "unfinished": "(2, 3",
        "hex": "(0x2, 3, 8, 8)",
        "true": "(True, 3, 8, 8)",
        "terabytes": "(1000000000, 3, 8, 8)",
        "underscores": "(2_0, 3, 8, 8)",
    }.items():
        yield case(f"shape_{name}", npy_header(shape_header(shape), bytes_))
    for name, descr in {
        "objects": "'|O'",
        "structured": "[('a', '<f4')]",
        "big_endian": "'>f4'",
        "unknown": "'<z4'",
        "empty": "''",
        "void": "'|V8'",
        "text": "'<U8'",
        "bytes": "'|S4'",
        "complex": "'<c8'",
        "date": "'<M8[ns]'",
        "wide": "'<f16'",
        "code": "__import__('os')",
        "no_text": "4",
        "lambda": "(lambda: 0)()",
        "not_utf8": "'\\xff'",
    }.items():
        yield case(f"type_{name}", npy_header(shape_header("(2, 3, 8, 8)", descr), bytes_))
    yield case("fortran", npy_header(shape_header("(2, 3, 8, 8)", order="True"), bytes_))
    yield case("order_code", npy_header(shape_header("(2, 3, 8, 8)", order="exit()"), bytes_))
    yield case("header_empty", npy_header("", bytes_))
    yield case("header_not_a_dictionary", npy_header("[1, 2]\n", bytes_))
    yield case(
        "header_twice_a_key",
        npy_header("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,3,8,8)}\n", bytes_),
    )
    yield case(
        "header_other_key", npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,3,8,8), 'x': 1}\n", bytes_)
    )
    yield case("header_nested", npy_header("{" * 5000, bytes_))
    yield case("header_of_60000", npy_header(shape_header("(2, 3, 8, 8)") + " " * 60_000, bytes_))
    yield case("header_of_4_gib", npy_header(shape_header("(2, 3, 8, 8)"), bytes_, b"\x02\x00", 0xFFFFFFFF))
    yield case(
        "header_no_utf8", npy_header(b"{'descr': '\xff\xfe', 'fortran_order': False, 'shape': (2,3,8,8)}\n", bytes_)
    )
    for version in (0, 4, 255):
        yield case(f"version_{version}", npy_header(shape_header("(2, 3, 8, 8)"), bytes_, bytes([version, 0])))
    good = npy(GOOD)
    yield case("too_long", good + b"\0")
    yield case("too_short", good[:-1])
    for part in range(8):
        yield case(f"cut_at_{part}_8th", good[: len(good) * part // 8])
    yield case("pickle", pickle.dumps(Evil()))
    yield case("pickled_object_array", npy_header(shape_header("(1,)", "'|O'"), pickle.dumps(Evil())))
    for value in ("nan", "inf", "-inf"):
        bad = GOOD.copy()
        bad[1, 2, 7, 7] = float(value)
        yield case(f"with_{value}", npy(bad))
    yield case("of_another_rank", npy(np.ones((2, 3), np.float32)))
    yield case("of_another_type", npy(np.ones((2, 3, 8, 8), np.int64)))
    yield case("of_booleans_of_2", npy_header(shape_header("(2, 3, 8, 8)", "'|b1'"), b"\x02" * 384))


@generator
def tensor_protos() -> Iterator[Case]:
    """TensorProtos as data."""

    def case(name: str, content: bytes) -> Case:
        return Case(f"pb_{name}", {"d.pb": content}, call="calibrate_pb", reasons=UNREADABLE)

    good = helper.make_tensor("x", TensorProto.FLOAT, GOOD.shape, GOOD.tobytes(), raw=True)
    yield case("empty", b"")
    yield case("random", b"\xff" * 1000)
    yield case("cut", good.SerializeToString()[:-100])
    yield case("packed_claimed", number(1, 1) + number(2, 1) + message(4, b"1234", 1 << 40))
    yield case("dims_million", message(1, varint(1) * 1_000_000) + number(2, 1) + message(4, b"1234"))

    def edited(**fields: Any) -> bytes:
        tensor = TensorProto()
        tensor.CopyFrom(good)
        for key, value in fields.items():
            if key == "dims":
                del tensor.dims[:]
                tensor.dims.extend(value)
            else:
                setattr(tensor, key, value)
        return bytes(tensor.SerializeToString())

    yield case("dims_negative", edited(dims=[-1, 3, 8, 8]))
    yield case("dims_overflowing", edited(dims=[2**62, 4]))
    yield case("dims_of_more", edited(dims=[3, 3, 8, 8]))
    yield case("type_unknown", edited(data_type=77))
    yield case("type_undefined", edited(data_type=0))
    yield case("type_text", edited(data_type=TensorProto.STRING))
    yield case("raw_too_short", edited(raw_data=b"1"))
    both = TensorProto()
    both.CopyFrom(good)
    both.float_data.extend([1.0])
    both.ClearField("raw_data")
    yield case("one_value", both.SerializeToString())
    outside = TensorProto()
    outside.CopyFrom(good)
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="/etc/passwd")
    yield case("external", outside.SerializeToString())


# ---- weights --------------------------------------------------------------------------------------


@generator
def weights() -> Iterator[Case]:
    """Safetensors whose headers lie."""

    def case(name: str, content: bytes) -> Case:
        return Case(
            f"safetensors_{name}", {"sens.safetensors": content}, call="search", reasons=reasons("WEIGHTS_INVALID")
        )

    def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    data = bytes(64)
    yield case("empty", b"")
    yield case("seven_bytes", bytes(7))
    yield case("length_0", safetensors(b"", data))
    for name, length in {
        "length_1_too_many": 1 << 10,
        "length_4_gib": 1 << 32,
        "length_2_to_the_63": 1 << 63,
        "length_all_ones": (1 << 64) - 1,
        "length_100_mb": 100_000_000,
    }.items():
        yield case(name, safetensors({"conv1": entry([16], 0, 64)}, data, length))
    yield case("length_too_short", safetensors({"conv1": entry([16], 0, 64)}, data, 10))
    yield case("overlapping", safetensors({"conv1": entry([16], 0, 64), "b": entry([8], 32, 64)}, data))
    yield case("hole", safetensors({"conv1": entry([8], 0, 32)}, data))
    yield case("beyond_file", safetensors({"conv1": entry([16], 64, 128)}, data))
    yield case("backwards", safetensors({"conv1": entry([16], 64, 0)}, data))
    yield case("negative", safetensors({"conv1": entry([16], -64, 0)}, data))
    yield case("offsets_huge", safetensors({"conv1": entry([16], 2**64 - 64, 2**64)}, data))
    yield case(
        "offsets_three", safetensors({"conv1": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64, 64]}}, data)
    )
    yield case("shape_overflowing", safetensors({"conv1": entry([2**62, 4, 4], 0, 64)}, data))
    yield case("shape_negative", safetensors({"conv1": entry([-16], 0, 64)}, data))
    yield case("shape_of_1000", safetensors({"conv1": entry([1] * 1000, 0, 64)}, data))
    yield case("shape_of_floats", safetensors(b'{"conv1":{"dtype":"F32","shape":[1.6e1],"data_offsets":[0,64]}}', data))
    yield case("shape_other", safetensors({"conv1": entry([17], 0, 64)}, data))
    yield case("type_unknown", safetensors({"conv1": entry([16], 0, 64, "F33")}, data))
    yield case("type_other", safetensors({"conv1": entry([8], 0, 64, "F64")}, data))
    yield case(
        "twice_a_tensor",
        safetensors(
            b'{"conv1":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},"conv1":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
            data,
        ),
    )
    yield case(
        "twice_a_key", safetensors(b'{"conv1":{"dtype":"F32","dtype":"F32","shape":[16],"data_offsets":[0,64]}}', data)
    )
    yield case("deep", safetensors(b'{"a":' * 100_000, data))
    yield case("deep_lists", safetensors(b'{"a":' + b"[" * 100_000, data))
    yield case("not_json", safetensors(b"{conv1}", data))
    yield case("a_list", safetensors(b"[]", data))
    yield case("nan", safetensors(b'{"conv1":{"dtype":"F32","shape":[NaN],"data_offsets":[0,64]}}', data))
    yield case("no_utf8", safetensors(b'{"\xff\xfe":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}', data))
    yield case("lone_surrogate", safetensors(b'{"\\ud800":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}', data))
    yield case("null_in_header", safetensors(b'{"conv1":\0{}}', data))
    yield case("pickle_of_torch", b"PK\x03\x04" + pickle.dumps(Evil()))
    many = {f"t{i}": entry([0], 64, 64) for i in range(50_000)}
    yield case("many_tensors", safetensors({"other": entry([16], 0, 64)} | many, data))
    yield case("name_of_a_megabyte", safetensors({"n" * (1 << 20): entry([16], 0, 64)}, data))

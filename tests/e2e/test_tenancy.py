"""A project that tries to read, list, guess, overwrite and cancel what another has.

The standard of all of it: a call on a name that the other project has is answered, to the letter, as the same call on a
name that never existed. What the answers take is measured by `./dev bench tenancy`.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import secrets
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import grpc
import onnx
import pytest
from google.longrunning import operations_pb2
from google.protobuf import text_format
from modelpress.v1 import compression_pb2, workspaces_pb2
from modelpress.v1.operations_pb2 import OperationMetadata

from tests.e2e.server_process import GOLDEN_SAVE
from tests.e2e.tenants import (
    GAMMA_BYTES,
    GAMMA_PENDING,
    GAMMA_WORKSPACES,
    Answer,
    Caller,
    Names,
    Tenants,
    methods,
    strings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKSPACES = "modelpress.v1.Workspaces"
COMPRESSION = "modelpress.v1.Compression"
OPERATIONS = "google.longrunning.Operations"

UPLOAD_SIZE, UPLOAD_SENT = 10, 4
FILE = "model"  # one that every stage has
UPLOAD_FILE = "coming"


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    """One server for all tests; each uses names of its own."""
    with Tenants(tmp_path_factory.mktemp("tenants")) as running:
        yield running


# ---- what is there ---------------------------------------------------------------------------------------------------


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(6)}"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def create_workspace(caller: Caller, workspace: str) -> None:
    caller.call(f"{WORKSPACES}/CreateWorkspace", workspaces_pb2.CreateWorkspaceRequest(workspace_id=workspace))


def start_upload(name: str, size: int, digest: str) -> Any:
    return workspaces_pb2.StartUploadRequest(file=name, size_bytes=size, sha256=digest)


def upload(caller: Caller, name: str, data: bytes) -> Any:
    """Uploads a file as clients do; returns the state of the upload before its bytes were sent."""
    started = caller.call(f"{WORKSPACES}/StartUpload", start_upload(name, len(data), sha256(data)))
    if not started.complete:
        done = caller.call(
            f"{WORKSPACES}/UploadBytes",
            workspaces_pb2.UploadBytesRequest(
                upload=started.name, offset=started.committed_size, data=data[started.committed_size :]
            ),
        )
        assert done.complete
    return started


def download(caller: Caller, name: str) -> bytes:
    parts = caller.call(f"{WORKSPACES}/DownloadFile", workspaces_pb2.DownloadFileRequest(name=name))
    return b"".join(part.data for part in parts)


def wait(caller: Caller, operation: Any) -> Any:
    """The finished operation."""
    done = caller.call(f"{OPERATIONS}/WaitOperation", operations_pb2.WaitOperationRequest(name=operation.name))
    assert done.done
    return done


def metadata(operation: Any) -> Any:
    details = OperationMetadata()
    assert operation.metadata.Unpack(details)
    return details


def save_request(workspace: str, folder: str, **options: Any) -> Any:
    return compression_pb2.SaveModelRequest(
        workspace=f"workspaces/{workspace}",
        modified_onnx_file=f"{folder}/modified.onnx",
        record_file=f"{folder}/record.txt",
        save_path=f"{folder}-out/m",
        options=compression_pb2.CallOptions(**options),
    )


def upload_case(caller: Caller, workspace: str, folder: str) -> None:
    """A model that can be saved."""
    for file in ("modified.onnx", "record.txt"):
        upload(caller, f"workspaces/{workspace}/files/{folder}/{file}", (GOLDEN_SAVE / "conv1d" / file).read_bytes())


def new_names() -> Names:
    """Names of nothing, of the form that those of things have."""
    return Names(
        workspace=new_id("w"),
        folder=new_id("f"),
        upload="w" + secrets.token_hex(13),
        operation="o" + secrets.token_hex(13),
        sha256=sha256(secrets.token_bytes(32)),
    )


def make_stage(caller: Caller, paths: set[str]) -> Names:
    """Makes things of every kind, with the files of these names in the folder."""
    names = new_names()
    create_workspace(caller, names.workspace)
    data = secrets.token_bytes(50)
    for path in sorted(paths | {FILE}):
        upload(caller, names.file(path), data)
    coming = secrets.token_bytes(UPLOAD_SIZE)
    unfinished = caller.call(
        f"{WORKSPACES}/StartUpload", start_upload(names.file(UPLOAD_FILE), UPLOAD_SIZE, sha256(coming))
    )
    caller.call(
        f"{WORKSPACES}/UploadBytes",
        workspaces_pb2.UploadBytesRequest(upload=unfinished.name, data=coming[:UPLOAD_SENT]),
    )
    operation = caller.call(
        f"{COMPRESSION}/CreateQuantConfig",
        compression_pb2.CreateQuantConfigRequest(
            workspace=f"workspaces/{names.workspace}", model=f"{names.folder}/{FILE}", config_file="config.json"
        ),
    )
    wait(caller, operation)
    return replace(
        names,
        upload=unfinished.name.rsplit("/", 1)[1],
        operation=operation.name.removeprefix("operations/"),
        sha256=sha256(data),
    )


def everything(tenants: Tenants, project: str) -> list[str]:
    """All that a project has, as its admin sees it."""
    admin = tenants.caller("operators-admin", project)
    shown: list[str] = []
    for page in admin.pages(f"{WORKSPACES}/ListWorkspaces", workspaces_pb2.ListWorkspacesRequest()):
        for workspace in page.workspaces:
            shown.append(text_format.MessageToString(workspace))
            request = workspaces_pb2.ListFilesRequest(parent=workspace.name)
            shown += [text_format.MessageToString(files) for files in admin.pages(f"{WORKSPACES}/ListFiles", request)]
    request = operations_pb2.ListOperationsRequest(name="operations")
    shown += [text_format.MessageToString(page) for page in admin.pages(f"{OPERATIONS}/ListOperations", request)]
    return shown


# ---- every method ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """How a method is called on what another project may have.

    Attributes:
        request: the request that names these things.
        code: of the answer to another project.
        own_code: the same where it has a workspace of that name itself, without the things in it; "": the call names
            nothing else.
        owner_code: of the answer to the project that has them.
    """

    request: Callable[[Names], Any]
    code: str = "NOT_FOUND"
    own_code: str = "NOT_FOUND"
    owner_code: str = "OK"


CASES = {
    f"{WORKSPACES}/CreateWorkspace": Case(
        lambda names: workspaces_pb2.CreateWorkspaceRequest(workspace_id=names.workspace), "OK", "", "ALREADY_EXISTS"
    ),
    f"{WORKSPACES}/GetWorkspace": Case(
        lambda names: workspaces_pb2.GetWorkspaceRequest(name=f"workspaces/{names.workspace}"), own_code=""
    ),
    f"{WORKSPACES}/ListWorkspaces": Case(lambda _: workspaces_pb2.ListWorkspacesRequest(), "OK", ""),
    f"{WORKSPACES}/DeleteWorkspace": Case(
        lambda names: workspaces_pb2.DeleteWorkspaceRequest(name=f"workspaces/{names.workspace}"), own_code=""
    ),
    f"{WORKSPACES}/GetFile": Case(lambda names: workspaces_pb2.GetFileRequest(name=names.file(FILE))),
    f"{WORKSPACES}/ListFiles": Case(
        lambda names: workspaces_pb2.ListFilesRequest(parent=f"workspaces/{names.workspace}"), own_code=""
    ),
    f"{WORKSPACES}/DeleteFile": Case(lambda names: workspaces_pb2.DeleteFileRequest(name=names.file(FILE))),
    f"{WORKSPACES}/StartUpload": Case(lambda names: start_upload(names.file(FILE), 50, names.sha256), own_code="OK"),
    f"{WORKSPACES}/GetUpload": Case(
        lambda names: workspaces_pb2.GetUploadRequest(name=f"workspaces/{names.workspace}/uploads/{names.upload}")
    ),
    f"{WORKSPACES}/UploadBytes": Case(
        lambda names: workspaces_pb2.UploadBytesRequest(
            upload=f"workspaces/{names.workspace}/uploads/{names.upload}", offset=UPLOAD_SENT, data=b"1"
        )
    ),
    f"{WORKSPACES}/DownloadFile": Case(
        lambda names: workspaces_pb2.DownloadFileRequest(name=names.file(FILE), sha256=names.sha256)
    ),
    f"{OPERATIONS}/ListOperations": Case(
        lambda names: operations_pb2.ListOperationsRequest(
            name="operations", filter=f'workspace = "workspaces/{names.workspace}"'
        ),
        "OK",
        "OK",
    ),
    f"{OPERATIONS}/GetOperation": Case(
        lambda names: operations_pb2.GetOperationRequest(name=f"operations/{names.operation}")
    ),
    f"{OPERATIONS}/DeleteOperation": Case(
        lambda names: operations_pb2.DeleteOperationRequest(name=f"operations/{names.operation}")
    ),
    f"{OPERATIONS}/CancelOperation": Case(
        lambda names: operations_pb2.CancelOperationRequest(name=f"operations/{names.operation}")
    ),
    f"{OPERATIONS}/WaitOperation": Case(
        lambda names: operations_pb2.WaitOperationRequest(name=f"operations/{names.operation}")
    ),
}

# Fields of compression calls that name no file, or that exclude others.
NO_PATHS = {"workspace", "state_dict_name", "options"}
EXCLUDED = {f"{COMPRESSION}/QuantizeModel": {"config_definition"}}


def fill(message: Any, folder: str, without: set[str], prefix: str = "") -> None:
    """Gives every field of the message that is a path a file in the folder, of the field's name."""
    for field in message.DESCRIPTOR.fields:
        if field.label == field.LABEL_REPEATED or field.name in without:
            continue
        if field.type == field.TYPE_STRING:
            setattr(message, field.name, f"{folder}/{prefix}{field.name}")
        elif field.type == field.TYPE_MESSAGE and any(
            inner.type == field.TYPE_STRING for inner in field.message_type.fields
        ):
            fill(getattr(message, field.name), folder, without, f"{field.name}.")


def compression_case(name: str, method: Any) -> Case:
    def request(names: Names) -> Any:
        message = method.input_type._concrete_class(workspace=f"workspaces/{names.workspace}")
        fill(message, names.folder, NO_PATHS | EXCLUDED.get(name, set()))
        return message

    return Case(request)


CASES |= {
    name: compression_case(name, method) for name, method in methods().items() if name.startswith(f"{COMPRESSION}/")
}


def test_every_method_has_a_case(tenants: Tenants) -> None:
    assert methods().keys() == CASES.keys()
    # The server has no service that is not looked at here, and says nothing of names.
    assert {
        *(name.split("/")[0] for name in methods()),
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    } == set(re.findall(r"[a-z0-9.]+\.[A-Z]\w+", reflect(tenants, b"\x3a\x00")))


def reflect(tenants: Tenants, request: bytes) -> str:
    """Asks the reflection service, without credentials and without its messages, which grpc's own package lacks."""
    call = tenants.caller("").channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=lambda message: message,
        response_deserializer=lambda message: message,
    )
    return b"".join(call(iter([request]), timeout=60)).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("name", "own_workspace"),
    [(name, own) for name, case in CASES.items() for own in (False, True) if case.own_code or not own],
)
def test_what_others_have_does_not_exist(tenants: Tenants, name: str, own_workspace: bool) -> None:
    case = CASES[name]
    expected = case.own_code if own_workspace else case.code
    owner = tenants.caller("alpha-writer")
    nothing = new_names()
    folder = f"{nothing.folder}/"
    there = make_stage(
        owner, {text.removeprefix(folder) for text in strings(case.request(nothing)) if text.startswith(folder)}
    )
    if own_workspace:
        create_workspace(tenants.caller("beta-writer"), there.workspace)
        nothing = replace(nothing, workspace=there.workspace)
    before = everything(tenants, "alpha")

    for caller, project, code in [
        ("beta-writer", "", expected),
        ("beta-jwt", "", expected),
        ("beta-writer", "beta", expected),
        ("beta-reader", "", ""),
        ("beta-writer", "other", "PERMISSION_DENIED"),
        ("", "", "UNAUTHENTICATED"),
    ]:
        answers = [
            tenants.caller(caller, {"other": other}.get(project, project)).answer(name, case.request(names))
            for names, other in ((there, "alpha"), (nothing, "never-was"))
        ]
        neutral = [
            answer.without(names, new_upload=new_upload(answer))
            for answer, names in zip(answers, (there, nothing), strict=True)
        ]
        assert neutral[0] == neutral[1]
        assert answers[0].code == code or (not code and answers[0].code in (expected, "PERMISSION_DENIED"))
        if name == f"{WORKSPACES}/CreateWorkspace" and answers[0].code == "OK":
            for names in (there, nothing):
                tenants.caller("beta-writer").call(
                    f"{WORKSPACES}/DeleteWorkspace",
                    workspaces_pb2.DeleteWorkspaceRequest(name=f"workspaces/{names.workspace}"),
                )

    assert everything(tenants, "alpha") == before
    state = owner.call(
        f"{WORKSPACES}/GetUpload",
        workspaces_pb2.GetUploadRequest(name=f"workspaces/{there.workspace}/uploads/{there.upload}"),
    )
    assert (state.committed_size, state.complete) == (UPLOAD_SENT, False)
    # The names were right.
    assert owner.answer(name, case.request(there)).code == case.owner_code


def new_upload(answer: Answer) -> str:
    """The id of the upload that an answer tells of."""
    found = re.search(r"/uploads/(\w+)", " ".join(answer.responses))
    return found[1] if found else "no upload"


# ---- lists -----------------------------------------------------------------------------------------------------------


def names_in(pages: list[Any]) -> list[str]:
    """Names of what is listed on the pages."""
    return [
        row.name
        for page in pages
        for rows in (value for field, value in page.ListFields() if field.label == field.LABEL_REPEATED)
        for row in rows
    ]


def test_lists_and_page_tokens(tenants: Tenants) -> None:
    alpha, beta = tenants.caller("alpha-writer"), tenants.caller("beta-writer")
    workspace = new_id("w")
    for caller, prefix in ((alpha, "a"), (beta, "b")):
        create_workspace(caller, workspace)
        create_workspace(caller, new_id("w"))
        for number in range(3):
            upload(caller, f"workspaces/{workspace}/files/{prefix}{number}", b"file")
            wait(
                caller,
                caller.call(
                    f"{COMPRESSION}/CreateQuantConfig",
                    compression_pb2.CreateQuantConfigRequest(
                        workspace=f"workspaces/{workspace}", model=f"{prefix}0", config_file=f"c{number}"
                    ),
                ),
            )
    mine = f'workspace = "workspaces/{workspace}"'
    lists: dict[str, Callable[[], Any]] = {
        f"{WORKSPACES}/ListWorkspaces": lambda: workspaces_pb2.ListWorkspacesRequest(page_size=1),
        f"{WORKSPACES}/ListFiles": lambda: workspaces_pb2.ListFilesRequest(
            parent=f"workspaces/{workspace}", page_size=1
        ),
        f"{OPERATIONS}/ListOperations": lambda: operations_pb2.ListOperationsRequest(name="operations", page_size=1),
        f"{OPERATIONS}/ListOperations ": lambda: operations_pb2.ListOperationsRequest(
            name="operations", page_size=1, filter=mine
        ),
    }
    for name, request in lists.items():
        method = name.strip()

        def with_token(token: str, make: Callable[[], Any] = request) -> Any:
            message = make()
            message.page_token = token
            return message

        theirs = set(names_in(alpha.pages(method, request())))
        own = set(names_in(beta.pages(method, request())))
        assert len(theirs) >= 2
        assert len(own) >= 2
        if not method.endswith("/ListWorkspaces"):
            assert not own & theirs
        garbage = beta.answer(method, with_token("AAAA"))
        assert garbage.code == "INVALID_ARGUMENT"
        for page in alpha.pages(method, request())[:-1]:
            assert beta.answer(method, with_token(page.next_page_token)) == garbage
        token = beta.call(method, request()).next_page_token
        for place, letter in itertools.product(range(len(token)), "Az"):
            tampered = with_token(f"{token[:place]}{letter}{token[place + 1 :]}")
            try:
                assert set(names_in([beta.call(method, tampered)])) <= own
            except grpc.RpcError:
                assert beta.answer(method, tampered) == garbage
        # The check in a token finds mistakes; whoever makes it themselves gets to their own things only.
        for key in ("", "0", "a", "99", "w-", workspace):
            scope = {
                f"{WORKSPACES}/ListWorkspaces": "projects/beta/workspaces",
                f"{WORKSPACES}/ListFiles": f"projects/beta/workspaces/{workspace}/files",
                f"{OPERATIONS}/ListOperations": "projects/beta/operations",
                f"{OPERATIONS}/ListOperations ": f"projects/beta/operations workspace={workspace}",
            }[name]
            check = sha256(f"{len(scope)}:{scope}{key}".encode())[:16]
            forged = base64.urlsafe_b64encode(f"{check}{key}".encode()).rstrip(b"=").decode()
            assert set(names_in([beta.call(method, with_token(forged))])) <= own


def test_page_tokens_do_not_count_what_others_do(tenants: Tenants) -> None:
    alpha, beta = tenants.caller("alpha-writer"), tenants.caller("beta-writer")
    workspace = new_id("w")
    for caller in (alpha, beta):
        create_workspace(caller, workspace)
        upload(caller, f"workspaces/{workspace}/files/m", b"file")

    def submit(caller: Caller) -> None:
        caller.call(
            f"{COMPRESSION}/CreateQuantConfig",
            compression_pb2.CreateQuantConfigRequest(
                workspace=f"workspaces/{workspace}", model="m", config_file="c.json"
            ),
        )

    def place() -> int:
        request = operations_pb2.ListOperationsRequest(name="operations", page_size=1)
        token = beta.call(f"{OPERATIONS}/ListOperations", request).next_page_token
        return int(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))[16:])

    submit(beta)
    submit(beta)
    before = place()
    for _ in range(5):
        submit(alpha)
    submit(beta)
    assert place() == before + 1


# ---- content ---------------------------------------------------------------------------------------------------------


def test_a_digest_that_only_another_has(tenants: Tenants) -> None:
    alpha, beta = tenants.caller("alpha-writer"), tenants.caller("beta-writer")
    data, unknown = secrets.token_bytes(5000), secrets.token_bytes(5000)
    workspace = new_id("w")
    create_workspace(alpha, workspace)
    create_workspace(beta, workspace)
    upload(alpha, f"workspaces/{workspace}/files/model", data)

    def offer(content: bytes, path: str) -> tuple[Answer, Any]:
        request = start_upload(f"workspaces/{workspace}/files/{path}", len(content), sha256(content))
        answer = beta.answer(f"{WORKSPACES}/StartUpload", request)
        neutral = answer.without(new_names(), digest=sha256(content), path=path, new_upload=new_upload(answer))
        return neutral, beta.call(f"{WORKSPACES}/StartUpload", request)

    answers = [offer(data, "x1"), offer(unknown, "x2")]
    assert answers[0][0] == answers[1][0]
    for _, started in answers:
        assert (started.complete, started.committed_size) == (False, 0)
    # Bytes that are not the content: refused in the same way, and no file comes of it.
    refusals = []
    for (_, started), content in zip(answers, (data, unknown), strict=True):
        wrong = workspaces_pb2.UploadBytesRequest(upload=started.name, data=b"x" * len(content))
        answer = beta.answer(f"{WORKSPACES}/UploadBytes", wrong)
        refusals.append(answer.without(new_names(), digest=sha256(content), path=started.file.rsplit("/", 1)[1]))
    assert refusals[0].code == "INVALID_ARGUMENT"
    assert refusals[0] == refusals[1]
    assert (
        beta.answer(
            f"{WORKSPACES}/GetFile", workspaces_pb2.GetFileRequest(name=f"workspaces/{workspace}/files/x1")
        ).code
        == "NOT_FOUND"
    )
    # The bytes are demanded every time, also after the project had the content and deleted it.
    for _ in range(2):
        assert not upload(beta, f"workspaces/{workspace}/files/y", data).complete
        assert upload(beta, f"workspaces/{workspace}/files/z", data).complete  # its own
        for path in "yz":
            beta.call(
                f"{WORKSPACES}/DeleteFile",
                workspaces_pb2.DeleteFileRequest(name=f"workspaces/{workspace}/files/{path}"),
            )
    assert download(alpha, f"workspaces/{workspace}/files/model") == data


def test_uploads_of_the_same_file_are_two(tenants: Tenants) -> None:
    alpha, beta = tenants.caller("alpha-writer"), tenants.caller("beta-writer")
    data = secrets.token_bytes(1000)
    workspace = new_id("w")
    request = start_upload(f"workspaces/{workspace}/files/model", len(data), sha256(data))
    uploads = []
    for caller in (alpha, beta):
        create_workspace(caller, workspace)
        uploads.append(caller.call(f"{WORKSPACES}/StartUpload", request).name)
    assert uploads[0] != uploads[1]

    def send(caller: Caller, name: str, begin: int, end: int) -> Answer:
        return caller.answer(
            f"{WORKSPACES}/UploadBytes",
            workspaces_pb2.UploadBytesRequest(upload=name, offset=begin, data=data[begin:end]),
        )

    assert send(alpha, uploads[0], 0, 600).code == "OK"
    assert beta.call(f"{WORKSPACES}/StartUpload", request).committed_size == 0
    for begin in (0, 600):
        assert send(beta, uploads[0], begin, len(data)).code == "NOT_FOUND"
    assert send(beta, uploads[1], 600, len(data)).code == "OUT_OF_RANGE"
    assert send(alpha, uploads[0], 600, len(data)).code == "OK"
    assert download(alpha, f"workspaces/{workspace}/files/model") == data
    assert not beta.call(f"{WORKSPACES}/StartUpload", request).complete
    assert send(beta, uploads[1], 0, len(data)).code == "OK"
    assert download(beta, f"workspaces/{workspace}/files/model") == data


def test_workspaces_of_one_name_are_two(tenants: Tenants) -> None:
    alpha, beta = tenants.caller("alpha-writer"), tenants.caller("beta-writer")
    workspace = new_id("w")
    name = f"workspaces/{workspace}/files/model"
    for caller, data in ((alpha, b"alpha's"), (beta, b"beta's")):
        create_workspace(caller, workspace)
        upload(caller, name, data)
    upload(beta, name, b"beta's other")
    assert download(alpha, name) == b"alpha's"
    assert download(beta, name) == b"beta's other"
    beta.call(f"{WORKSPACES}/DeleteFile", workspaces_pb2.DeleteFileRequest(name=name))
    assert download(alpha, name) == b"alpha's"
    # An operation in one of them keeps that one only, and ends though the other goes.
    upload_case(alpha, workspace, "case")
    operations = [
        alpha.call(f"{COMPRESSION}/SaveModel", save_request(workspace, "case", no_cache=True)) for _ in range(3)
    ]
    for operation in operations:
        for method, request in (
            ("Cancel", operations_pb2.CancelOperationRequest(name=operation.name)),
            ("Delete", operations_pb2.DeleteOperationRequest(name=operation.name)),
        ):
            assert beta.answer(f"{OPERATIONS}/{method}Operation", request).code == "NOT_FOUND"
    beta.call(f"{WORKSPACES}/DeleteWorkspace", workspaces_pb2.DeleteWorkspaceRequest(name=f"workspaces/{workspace}"))
    for operation in operations:
        assert metadata(wait(alpha, operation)).state == OperationMetadata.SUCCEEDED
    assert download(alpha, name) == b"alpha's"


# ---- operations ------------------------------------------------------------------------------------------------------


def test_results_of_others_are_not_used(tenants: Tenants) -> None:
    alpha, beta = tenants.caller("alpha-writer"), tenants.caller("beta-writer")
    workspace = new_id("w")
    for caller in (alpha, beta):
        create_workspace(caller, workspace)
        upload_case(caller, workspace, "case")
    request = save_request(workspace, "case")
    first = metadata(wait(alpha, alpha.call(f"{COMPRESSION}/SaveModel", request)))
    assert (first.state, first.cached, first.attempt) == (OperationMetadata.SUCCEEDED, False, 1)
    theirs = metadata(wait(beta, beta.call(f"{COMPRESSION}/SaveModel", request)))
    assert (theirs.state, theirs.cached, theirs.attempt) == (OperationMetadata.SUCCEEDED, False, 1)
    assert theirs.outputs[0].sha256 == first.outputs[0].sha256  # it would have been the result
    assert metadata(alpha.call(f"{COMPRESSION}/SaveModel", request)).cached


def test_request_ids_of_others_are_free(tenants: Tenants) -> None:
    alpha, beta = tenants.caller("alpha-writer"), tenants.caller("beta-writer")
    workspace = new_id("w")
    for caller in (alpha, beta):
        create_workspace(caller, workspace)
        upload_case(caller, workspace, "case")
        upload_case(caller, workspace, "other")
    identifier = str(uuid.uuid4())
    request = save_request(workspace, "case", request_id=identifier)
    theirs = alpha.call(f"{COMPRESSION}/SaveModel", request)
    assert alpha.call(f"{COMPRESSION}/SaveModel", request).name == theirs.name
    # The same request, by which the first operation would be returned, and another one, which would be refused.
    used, unused = (
        beta.answer(f"{COMPRESSION}/SaveModel", save_request(workspace, "other", request_id=request_id))
        for request_id in (identifier, str(uuid.uuid4()))
    )
    assert (used.code, unused.code) == ("OK", "OK")
    identifier = str(uuid.uuid4())
    request = save_request(workspace, "case", request_id=identifier)
    theirs = alpha.call(f"{COMPRESSION}/SaveModel", request)
    mine = beta.call(f"{COMPRESSION}/SaveModel", request)
    assert mine.name != theirs.name
    assert metadata(wait(beta, mine)).state == OperationMetadata.SUCCEEDED
    identifier = str(uuid.uuid4())
    for caller, name in ((alpha, new_id("w")), (beta, new_id("w"))):
        made = caller.call(
            f"{WORKSPACES}/CreateWorkspace",
            workspaces_pb2.CreateWorkspaceRequest(workspace_id=name, request_id=identifier),
        )
        assert made.name == f"workspaces/{name}"


def test_paths_lead_nowhere_else(tenants: Tenants) -> None:
    alpha, beta = tenants.caller("alpha-writer"), tenants.caller("beta-writer")
    workspace, secret = new_id("w"), secrets.token_bytes(4096)
    create_workspace(alpha, workspace)
    upload(alpha, f"workspaces/{workspace}/files/secret", secret)
    mine = new_id("w")
    create_workspace(beta, mine)
    upload_case(beta, mine, "case")
    before = everything(tenants, "alpha")
    digests = sha256(secret), sha256(secrets.token_bytes(32))
    blobs = [f"{tenants.server.data_dir}/blobs/{digest[:2]}/{digest[2:]}" for digest in digests]
    assert [(tenants.server.data_dir / "blobs" / digest[:2] / digest[2:]).exists() for digest in digests] == [
        True,
        False,
    ]

    for there, nothing in (
        blobs,
        [f"../../../blobs/{digest[:2]}/{digest[2:]}" for digest in digests],
        [f"../{workspace}/files/secret", f"../{new_id('w')}/files/secret"],
        [f"case/../../../{workspace}/secret", f"case/../../../{new_id('w')}/secret"],
        [f"workspaces/{workspace}/files/secret", f"workspaces/{new_id('w')}/files/secret"],
    ):
        for field in ("modified_onnx_file", "record_file", "save_path"):
            answers = []
            for path in (there, nothing):
                request = save_request(mine, "case")
                setattr(request, field, path)
                answer = beta.answer(f"{COMPRESSION}/SaveModel", request)
                if answer.code != "OK":  # long paths are shown cut
                    shown = {f"first {size} bytes": path[:size] for size in range(10, len(path) + 1)}
                    shown["own workspace"] = f"workspaces/{mine}"  # may begin as the path does
                    answers.append(answer.without(replace(new_names(), workspace=mine), **shown))
            legal = field == "save_path" and there.startswith("workspaces/")
            assert len(answers) == (0 if legal else 2)
            assert legal or answers[0] == answers[1]

    # A model that points to the file of the other's content: refused as one that points nowhere.
    case = GOLDEN_SAVE / "external_data_input"
    files = {path.name: path.read_bytes() for path in case.iterdir() if path.suffix == ".bin"}
    errors = []
    for number, blob in enumerate(blobs):
        model = onnx.load(case / "modified.onnx", load_external_data=False)
        pointing = next(
            tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL
        )
        next(entry for entry in pointing.external_data if entry.key == "location").value = blob
        folder = f"pointing{number}"
        for name, data in (files | {"modified.onnx": model.SerializeToString()}).items():
            upload(beta, f"workspaces/{mine}/files/{folder}/{name}", data)
        upload(beta, f"workspaces/{mine}/files/{folder}/record.txt", (case / "record.txt").read_bytes())
        done = wait(beta, beta.call(f"{COMPRESSION}/SaveModel", save_request(mine, folder)))
        assert done.HasField("error")
        errors.append(text_format.MessageToString(done.error).replace(blob, "BLOB").replace(folder, "FOLDER"))
    assert errors[0] == errors[1]
    assert "MODEL_EXTERNAL_DATA" in errors[0]
    assert everything(tenants, "alpha") == before


# ---- quotas, admins, probes ------------------------------------------------------------------------------------------


def test_quotas_count_the_project_only(tenants: Tenants) -> None:
    alpha, gamma = tenants.caller("alpha-writer"), tenants.caller("gamma-writer")
    create_workspace(alpha, theirs := new_id("w"))
    big = secrets.token_bytes(GAMMA_BYTES)
    upload(alpha, f"workspaces/{theirs}/files/big", big)
    upload_case(alpha, theirs, "case")

    def refusal(name: str, request: Any) -> dict[str, str]:
        answer = gamma.answer(name, request)
        assert answer.code == "RESOURCE_EXHAUSTED"
        return dict(re.findall(r'key: "(\w+)"\s+value: "(\w+)"', answer.details))

    workspaces = [new_id("w") for _ in range(GAMMA_WORKSPACES)]
    for workspace in workspaces:
        create_workspace(gamma, workspace)
    for identifier in (theirs, new_id("w")):
        request = workspaces_pb2.CreateWorkspaceRequest(workspace_id=identifier)
        told = refusal(f"{WORKSPACES}/CreateWorkspace", request)
        assert told == {"quota": "workspaces", "limit": f"{GAMMA_WORKSPACES}", "used": f"{GAMMA_WORKSPACES}"}

    folder = f"workspaces/{workspaces[0]}/files"
    upload(gamma, f"{folder}/own", secrets.token_bytes(1000))
    # What another has counts as what nobody has: all of it, when it is announced.
    for digest in (sha256(big), sha256(secrets.token_bytes(32))):
        told = refusal(f"{WORKSPACES}/StartUpload", start_upload(f"{folder}/big", len(big), digest))
        assert told == {"quota": "bytes", "limit": f"{GAMMA_BYTES}", "used": "1000"}
    gamma.call(f"{WORKSPACES}/StartUpload", start_upload(f"{folder}/big", GAMMA_BYTES - 1500, sha256(big)))
    told = refusal(f"{WORKSPACES}/StartUpload", start_upload(f"{folder}/more", 501, sha256(b"more")))
    assert told["used"] == f"{GAMMA_BYTES - 500}"

    gamma.call(
        f"{WORKSPACES}/DeleteWorkspace", workspaces_pb2.DeleteWorkspaceRequest(name=f"workspaces/{workspaces[0]}")
    )
    upload_case(gamma, workspaces[1], "case")
    request = save_request(theirs, "case", no_cache=True)
    operations = [alpha.call(f"{COMPRESSION}/SaveModel", request) for _ in range(30)]
    request = save_request(workspaces[1], "case", no_cache=True)
    answer = None
    for _ in range(20):  # accepted far more quickly than worked on
        answer = gamma.answer(f"{COMPRESSION}/SaveModel", request)
        if answer.code != "OK":
            break
    assert answer is not None
    told = dict(re.findall(r'key: "(\w+)"\s+value: "(\w+)"', answer.details))
    assert told == {"quota": "pending", "limit": f"{GAMMA_PENDING}", "used": f"{GAMMA_PENDING}"}
    for operation in operations:
        alpha.call(f"{OPERATIONS}/CancelOperation", operations_pb2.CancelOperationRequest(name=operation.name))


def test_admins_see_each_project(tenants: Tenants) -> None:
    made = {}
    for project in ("alpha", "beta"):
        made[project] = new_id("w")
        create_workspace(tenants.caller(f"{project}-writer"), made[project])
    for project, other in (("alpha", "beta"), ("beta", "alpha")):
        admin = tenants.caller("operators-admin", project)
        seen = names_in(admin.pages(f"{WORKSPACES}/ListWorkspaces", workspaces_pb2.ListWorkspacesRequest()))
        assert f"workspaces/{made[project]}" in seen
        assert f"workspaces/{made[other]}" not in seen
        # The admin's writes go to the project that is named.
        upload(admin, f"workspaces/{made[project]}/files/by-admin", b"admin")
        assert download(tenants.caller(f"{project}-writer"), f"workspaces/{made[project]}/files/by-admin") == b"admin"
    assert everything(tenants, "operators") == everything(tenants, "never-was")


def test_probes_tell_nothing(tenants: Tenants) -> None:
    create_workspace(tenants.caller("alpha-writer"), workspace := new_id("w"))
    port = re.search(r"health on port (\d+)", tenants.server.log())
    assert port is not None
    secure = tenants.caller("").channel
    with grpc.insecure_channel(f"localhost:{port[1]}") as plain:
        for channel in (secure, plain):
            answers = []
            for service in ("alpha", "never-was", f"workspaces/{workspace}", "workspaces/never-was"):
                text = service.encode()
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary("/grpc.health.v1.Health/Check")(b"\x0a" + bytes([len(text)]) + text, timeout=60)
                answers.append((refused.value.code(), refused.value.details()))
            assert set(answers) == {(grpc.StatusCode.NOT_FOUND, answers[0][1])}
        # Nothing else is served there.
        with pytest.raises(grpc.RpcError) as refused:
            plain.unary_unary(f"/{WORKSPACES}/ListWorkspaces")(b"", timeout=60)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    for symbol in ("alpha", workspace):
        found = reflect(tenants, b"\x22" + bytes([len(symbol)]) + symbol.encode())
        missing = reflect(tenants, b"\x22" + bytes([len(symbol)]) + b"n" * len(symbol))
        assert found.replace(symbol, "") == missing.replace("n" * len(symbol), "")

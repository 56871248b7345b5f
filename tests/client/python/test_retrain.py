"""The calls of pruning and quantization-aware training, on files of a workspace and on local files."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from modelpress import AsyncClient, Client, RetrainModel, SavedConfig
from modelpress.amct import record_pb2, retrain_config_pb2
from modelpress.checkpoint import convert_checkpoint
from modelpress.v1 import rewrite_plan_pb2
from protocol_server import ProtocolServer
from safetensors.torch import load_file


@pytest.fixture
def client(server: ProtocolServer) -> Client:
    return Client(server.target)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    contents = {"model": b"", "config": b"{}", "record": b"record", "cfg": b"cfg", "manifest": b"{}", "plan": b"{}"}
    paths = {}
    for name, content in contents.items():
        paths[name] = tmp_path / "in" / name
        paths[name].parent.mkdir(exist_ok=True)
        paths[name].write_bytes(content)
    paths["weights"] = tmp_path / "in" / "w.safetensors"
    paths["weights"].write_bytes(b"weights")
    return paths


def sent(server: ProtocolServer, path: str) -> bytes:
    return server.files[f"{server.requests[-1].workspace}/files/{path}"]


def test_both_clients_have_the_same_methods() -> None:
    def methods(cls: type) -> dict[str, list[tuple[str, Any]]]:
        return {
            name: [(key, value.annotation) for key, value in inspect.signature(method).parameters.items()]
            for name, method in vars(cls).items()
            if not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)


def test_the_messages_are_in_the_package() -> None:
    assert record_pb2.ScaleOffsetRecord().DESCRIPTOR.full_name == "AMCTPytorchProto.ScaleOffsetRecord"
    assert retrain_config_pb2.AMCTRetrainConfig().batch_num == 1
    assert not rewrite_plan_pb2.RewritePlan().cuts


@pytest.mark.parametrize("kind", ["prune", "compressed"])
def test_requests_that_prune(client: Client, server: ProtocolServer, kind: str) -> None:
    workspace = client.create_workspace("w").name
    create = getattr(client, f"create_{kind}_retrain_model")
    operation = create(workspace, "m.onnx", "c.cfg", "r.txt", "out/m", extended=True, module_manifest="m.json")
    response = operation.result()
    assert response.record_file.name == f"{workspace}/files/r.txt"
    assert response.pruned_model.name == f"{workspace}/files/out/m_pruned_model.onnx"
    request = server.requests[-1]
    assert request.DESCRIPTOR.name == f"Create{kind.capitalize()}RetrainModelRequest"
    assert (request.model, request.config_definition, request.record_file) == ("m.onnx", "c.cfg", "r.txt")
    assert (request.save_path, request.module_manifest) == ("out/m", "m.json")
    assert request.prune_options.extended
    assert not request.prune_options.rank_by_all_producers
    assert client.get_operation(operation.name).result().rewrite_plan.name.endswith("/out/m_rewrite_plan.json")

    restore = getattr(client, f"restore_{kind}_retrain_model")
    response = restore(
        workspace, "m.onnx", "r.txt", "c.cfg", "", plan_only=True, weights="w.safetensors", state_dict_name="net"
    ).result()
    assert not response.HasField("record_file")
    assert not response.HasField("pruned_model")
    request = server.requests[-1]
    assert (request.config_definition, request.record_file, request.save_path) == ("c.cfg", "r.txt", "")
    assert (request.plan_only, request.weights, request.state_dict_name) == (True, "w.safetensors", "net")


def test_requests_of_quantization_aware_training(client: Client, server: ProtocolServer) -> None:
    workspace = client.create_workspace("w").name
    made = client.create_quant_retrain_config(workspace, "c.json", "m.onnx", config_definition="c.cfg")
    assert made.result().config_file.name == f"{workspace}/files/c.json"
    assert server.requests[-1].config_definition == "c.cfg"

    created = client.create_quant_retrain_model(workspace, "c.json", "m.onnx", "r.txt", "out/m", validate_only=True)
    assert created.result().record_file.name == f"{workspace}/files/r.txt"
    assert server.requests[-1].options.validate_only
    restored = client.restore_quant_retrain_model(workspace, "c.json", "m.onnx", "r.txt", "out/m", weights="w")
    assert restored.result().rewrite_plan.name.endswith("/out/m_rewrite_plan.json")
    assert server.requests[-1].weights == "w"

    client.upload_file(workspace, "m.onnx", __file__)
    saved = client.save_quant_retrain_model(
        workspace, "c.json", "m.onnx", "r.txt", "out/m", dynamic_axes={"x": [0]}, rewrite_plan="p.json"
    )
    assert saved.result().deploy_model.name.endswith("/out/m_deploy_model.onnx")
    assert dict(server.requests[-1].dynamic_axes["x"].labels) == {0: ""}
    assert (server.requests[-1].config_file, server.requests[-1].rewrite_plan) == ("c.json", "p.json")
    compressed = client.save_compressed_retrain_model(workspace, "m.onnx", "r.txt", "out/m", input_names=["x"])
    assert compressed.result().report.name.endswith("/out/m_report.json")
    assert list(server.requests[-1].input_names) == ["x"]
    client.save_prune_retrain_model(workspace, "m.onnx", "out/m", record_file="r.txt").result()
    assert server.requests[-1].record_file == "r.txt"

    search = client.auto_channel_prune_search(workspace, "m.onnx", "s.cfg", "s.safetensors", "found.cfg")
    assert search.result().output_cfg.name == f"{workspace}/files/found.cfg"
    assert (server.requests[-1].config, server.requests[-1].sensitivities) == ("s.cfg", "s.safetensors")


@pytest.mark.parametrize("kind", ["prune", "compressed"])
def test_pruning_of_local_files(
    client: Client, server: ProtocolServer, files: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    create = getattr(client, f"create_{kind}_retrain_model_files")
    created = create(files["model"], files["cfg"], out / "b" / "r.txt", f"{out}/m", module_manifest=files["manifest"])
    assert created == RetrainModel(
        rewrite_plan=out / "m_rewrite_plan.json",
        report=out / "m_report.json",
        record_file=out / "b" / "r.txt",
        pruned_model=out / "m_pruned_model.onnx",
        external_data=(out / "w.external",),
        warnings=("a warning",),
    )
    assert sent(server, "config_definition/cfg") == b"cfg"
    assert (out / "b" / "r.txt").read_bytes() == b"record of "

    restore = getattr(client, f"restore_{kind}_retrain_model_files")
    restored = restore(
        files["model"], files["record"], files["cfg"], f"{out}/n/", weights=files["weights"], plan_only=True
    )
    assert restored.record_file is None
    assert restored.pruned_model is None
    assert restored.rewrite_plan == out / "n" / "rewrite_plan.json"
    assert sent(server, "record/record") == b"record"
    assert sent(server, "weights/w.safetensors") == b"weights"
    assert not server.workspaces

    with pytest.raises(FileNotFoundError, match="record_file"):
        restore(files["model"], tmp_path / "none", files["cfg"], f"{out}/n/")


def test_quantization_aware_training_of_local_files(
    client: Client, server: ProtocolServer, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = client.create_quant_retrain_config_files(out / "c.json", files["model"], config_definition=files["cfg"])
    assert made == SavedConfig(out / "c.json", ("a warning",))
    created = client.create_quant_retrain_model_files(out / "c.json", files["model"], out / "r.txt", f"{out}/m")
    assert created.record_file == out / "r.txt"
    assert created.pruned_model is None
    restored = client.restore_quant_retrain_model_files(
        out / "c.json", files["model"], out / "r.txt", f"{out}/m", weights=files["weights"]
    )
    assert restored.record_file == out / "r.txt"
    saved = client.save_quant_retrain_model_files(
        out / "c.json", files["model"], out / "r.txt", f"{out}/m", rewrite_plan=restored.rewrite_plan
    )
    assert saved.deploy_model == out / "m_deploy_model.onnx"
    request = server.requests[-1]
    assert sent(server, request.config_file) == b'{"batch_num": 1}'
    assert sent(server, request.record_file) == b"record of "
    assert sent(server, request.rewrite_plan) == b"{}"
    client.save_compressed_retrain_model_files(files["model"], files["record"], f"{out}/m")
    assert sent(server, server.requests[-1].record_file) == b"record"
    client.save_prune_retrain_model_files(files["model"], f"{out}/m", record_file=files["record"])
    assert sent(server, server.requests[-1].record_file) == b"record"

    found = client.auto_channel_prune_search_files(files["model"], files["cfg"], files["weights"], out / "found.cfg")
    assert found.config_file.read_bytes() == b"ratios of weights"
    assert not server.requests[-1].override_prune_cfg
    # A file that the configuration names goes along.
    (tmp_path / "search.cfg").write_text(f"compress_ratio: 2 override_prune_cfg: '{files['cfg']}'")
    client.auto_channel_prune_search_files(files["model"], tmp_path / "search.cfg", files["weights"], out / "found.cfg")
    assert sent(server, server.requests[-1].override_prune_cfg) == b"cfg"
    with pytest.raises(FileNotFoundError, match="override_prune_cfg"):
        client.auto_channel_prune_search_files(
            files["model"],
            tmp_path / "search.cfg",
            files["weights"],
            out / "found.cfg",
            override_prune_cfg=tmp_path / "none.cfg",
        )


def test_weights_of_a_checkpoint(
    client: Client, server: ProtocolServer, files: dict[str, Path], tmp_path: Path
) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    checkpoint = {
        "epoch": 3,
        "net": {"conv.weight": weight.t(), "tied": weight, "n": torch.tensor(5)},
        "optimizer": {"state": {0: {"step": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(checkpoint, tmp_path / "c.pth")
    restore = client.restore_prune_retrain_model_files
    restore(files["model"], files["record"], files["cfg"], f"{tmp_path}/out/", weights=tmp_path / "c.pth")
    (tmp_path / "all.safetensors").write_bytes(sent(server, "weights/c.pth.safetensors"))
    tensors = load_file(tmp_path / "all.safetensors")
    assert sorted(tensors) == ["net.conv.weight", "net.n", "net.tied", "optimizer.state.0.step"]
    assert torch.equal(tensors["net.conv.weight"], weight.t())
    assert torch.equal(tensors["net.tied"], weight)

    # Of one dictionary nothing else is sent.
    convert_checkpoint(tmp_path / "c.pth", tmp_path / "net.safetensors", "net")
    assert sorted(load_file(tmp_path / "net.safetensors")) == ["net.conv.weight", "net.n", "net.tied"]


class Whole(torch.nn.Linear):  # type: ignore[misc]  # torch is untyped
    """A module that a checkpoint holds as a whole."""


@pytest.mark.parametrize(
    ("content", "name", "text"),
    [
        (Whole(1, 1), "", "save its state_dict"),
        (torch.ones(1), "", "holds a Tensor"),
        ({"epoch": 3, "best": 0.5}, "", "no tensors; its keys: epoch, best"),
        ({"net": {"w": torch.ones(1)}}, "model", "no tensors at state_dict_name 'model'; its keys: net"),
        ({"a": {"b": torch.ones(1)}, "a.b": torch.ones(2)}, "", "two tensors 'a.b'"),
    ],
)
def test_what_is_no_checkpoint_of_tensors(tmp_path: Path, content: Any, name: str, text: str) -> None:
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=text):
        convert_checkpoint(tmp_path / "c.pth", tmp_path / "c.safetensors", name)
    assert not (tmp_path / "c.safetensors").exists()


def test_files_that_are_no_checkpoint(
    client: Client, server: ProtocolServer, files: dict[str, Path], tmp_path: Path
) -> None:
    for content in (b"", b"no checkpoint", b"PK\x03\x04 nothing"):
        (tmp_path / "c.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"c\.pt is no checkpoint"):
            client.restore_quant_retrain_model_files(
                files["config"], files["model"], tmp_path / "r", f"{tmp_path}/", weights=tmp_path / "c.pt"
            )
    with pytest.raises(FileNotFoundError, match="weights"):
        convert_checkpoint(tmp_path / "none.pth", tmp_path / "c.safetensors")
    assert not server.workspaces
    assert not server.deleted

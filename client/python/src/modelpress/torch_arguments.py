"""Checks of the documented functions' arguments, before anything is sent; texts begin as the reference's do."""

from pathlib import Path

from modelpress.local_files import SavePath, require_file

_MAX_NAME_LENGTH = 254
_AXES_TYPE = (
    "dynamic_axes type is invalid,type must be dict<string, dict<python:int, string>> or dict<string, list(int)>"
)
_AXES_VALUE = "dynamic_axes value is invalid,The int value of axis indicators cannot be a negative number."


def check_type(function: str, argument: str, value: object, *kinds: type) -> None:
    """Raises TypeError where the value is of none of the types; a bool is no int."""
    if not isinstance(value, kinds) or (int in kinds and isinstance(value, bool)):
        wanted = kinds if len(kinds) > 1 else kinds[0]
        raise TypeError(f"Func {function} argument {argument} must be {wanted}, not {type(value)}")


def check_path(function: str, argument: str, path: object) -> None:
    """Raises TypeError where it is no string, and ValueError where it cannot be the path of a file."""
    check_type(function, argument, path, str)
    assert isinstance(path, str)
    if not path:
        raise ValueError(f"empty string is an invalid value for {argument}")
    if path.endswith("/"):
        raise ValueError(f"{argument}{{{path}}} should be a file's name but a path.")
    name = path.rpartition("/")[2]
    if len(name) > _MAX_NAME_LENGTH:
        raise ValueError(f"{argument}: the file name has {len(name)} characters, {_MAX_NAME_LENGTH} are allowed")


def check_input(function: str, argument: str, path: object) -> Path:
    """Like check_path; the file must be there, else OSError."""
    check_path(function, argument, path)
    return require_file(Path(str(path)), argument)


def check_save_path(function: str, save_path: object) -> None:
    """Raises TypeError or ValueError where it is no prefix of files' paths."""
    check_type(function, "save_path", save_path, str)
    SavePath.parse(str(save_path))


def check_names(function: str, argument: str, names: object) -> None:
    """Raises TypeError where it is no list (None is right), and RuntimeError where it holds something but strings."""
    check_type(function, argument, names, list, type(None))
    if isinstance(names, list) and not all(isinstance(name, str) for name in names):
        raise RuntimeError(f"{argument} type must be list(string)")


def check_dynamic_axes(function: str, dynamic_axes: object) -> None:
    """Raises TypeError or RuntimeError where it is not as documented (docs/spec/qat.md section 11.1)."""
    check_type(function, "dynamic_axes", dynamic_axes, dict, type(None))
    if not isinstance(dynamic_axes, dict):
        return
    for name, value in dynamic_axes.items():
        fault = _fault_of_axes(name, value)
        if fault:
            text = fault if function == "save_compressed_retrain_model" else _AXES_TYPE
            raise RuntimeError(f"{text}; it is not so at {name!r}")
        if any(axis < 0 for axis in value):
            raise RuntimeError(f"{_AXES_VALUE} It is one at {name!r}")


def _fault_of_axes(name: object, value: object) -> str:
    if not isinstance(name, str):
        return "dynamic_axes key must be str"
    if not isinstance(value, dict | list):
        return "dynamic_axes value must be dict or list"
    if not all(isinstance(axis, int) for axis in value):
        return "container element type error <class 'int'>"
    if isinstance(value, dict) and not all(isinstance(label, str) for label in value.values()):
        return "container element type error <class 'str'>"
    return ""

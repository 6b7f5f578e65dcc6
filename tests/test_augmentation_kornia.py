"""What `tritonsoft.augmentation` uses of kornia beyond its documentation is there, and is used in one file only."""

import ast
import importlib
import pathlib

import pytest

K = pytest.importorskip("kornia.augmentation", reason="tritonsoft.augmentation builds on kornia")
_kornia = pytest.importorskip("tritonsoft.augmentation._kornia")

ROOM = pathlib.Path(_kornia.__file__).parent
SHAPE = (2, 3, 8, 8)
# Some attributes are only had by instances, or set when there is one.
MAKERS = {
    K.GeometricAugmentationBase2D: lambda: K.RandomHorizontalFlip(),
    K.RandomCrop: lambda: K.RandomCrop((4, 4)),
    K.RandomResizedCrop: lambda: K.RandomResizedCrop((4, 4)),
    K.RandomHorizontalFlip: lambda: K.RandomHorizontalFlip(),
    K.RandomVerticalFlip: lambda: K.RandomVerticalFlip(),
    K.CenterCrop: lambda: K.CenterCrop((4, 4)),
    K.Resize: lambda: K.Resize((4, 4)),
    K.AugmentationSequential: lambda: K.AugmentationSequential(K.RandomHorizontalFlip()),
    K.VideoSequential: lambda: K.VideoSequential(K.RandomHorizontalFlip()),
}


def missing_names() -> list[str]:
    """Everything that `_kornia` relies upon and kornia lacks, as `where.name`."""
    missing = []
    for node in ast.walk(ast.parse((ROOM / "_kornia.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kornia"):
            module = importlib.import_module(node.module)
            missing += [f"{node.module}.{alias.name}" for alias in node.names if not hasattr(module, alias.name)]
    for owner, names in _kornia.UNDOCUMENTED.items():
        holder = MAKERS[owner]() if owner in MAKERS else owner
        missing += [f"{owner.__name__}.{name}" for name in names if not hasattr(holder, name)]
    for owner, names in _kornia.PARAMETERS.items():
        drawn = MAKERS[owner]().forward_parameters(SHAPE)
        missing += [f"{owner.__name__}.forward_parameters()[{name!r}]" for name in names if name not in drawn]
    return missing


def test_kornia_has_every_name_that_is_relied_upon():
    assert missing_names() == []


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (K.base._BasicAugmentationBase, "_commit_state"),
        (K.AugmentationSequential, "_cast_mask"),
        (K.container.image, "_get_new_batch_shape"),
    ],
    ids=["a method", "a static method", "a function"],
)
def test_a_missing_name_is_named(monkeypatch, owner, name):
    makers = {key: made for key, make in MAKERS.items() for made in [make()]}  # while kornia is whole
    monkeypatch.setattr(f"{__name__}.MAKERS", {key: lambda made=made: made for key, made in makers.items()})
    monkeypatch.delattr(owner, name)
    assert [missing.rsplit(".", 1)[1] for missing in missing_names()] == [name]


def test_a_missing_parameter_is_named(monkeypatch):
    generate = K.RandomResizedCrop.generate_parameters
    monkeypatch.setattr(
        K.RandomResizedCrop,
        "generate_parameters",
        lambda self, shape: {name: value for name, value in generate(self, shape).items() if name != "src"},
    )
    assert missing_names() == ["RandomResizedCrop.forward_parameters()['src']"]


def kornia_s_private_names() -> set[str]:
    """Private attributes of kornia's classes, as far as they are no names of PyTorch's."""
    objects = [*(make() for make in MAKERS.values()), *_kornia.UNDOCUMENTED]
    names = {name for each in objects for name in dir(each) if name.startswith("_") and not name.endswith("__")}
    return names - set(dir(K.container.base.nn.Sequential()))


@pytest.mark.parametrize("path", sorted(set(ROOM.glob("*.py")) - {ROOM / "_kornia.py"}), ids=lambda path: path.name)
def test_private_names_of_kornia_are_used_in_one_file_only(path):
    private = kornia_s_private_names()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kornia"):
            assert node.module in ("kornia.constants",), f"line {node.lineno}"
        used = {ast.Attribute: "attr", ast.FunctionDef: "name"}.get(type(node))
        if used is not None:
            assert getattr(node, used) not in private, f"line {node.lineno}"

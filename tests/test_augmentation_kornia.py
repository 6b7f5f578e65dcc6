"""What `tritonsoft.augmentation` uses of kornia beyond its documentation is there, and is used in one file only."""

import ast
import importlib
import pathlib

import pytest
import torch

K = pytest.importorskip("kornia.augmentation", reason="tritonsoft.augmentation builds on kornia")
TA = pytest.importorskip("tritonsoft.augmentation")
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
    K.RandomAffine: lambda: K.RandomAffine(10.0),
    K.RandomElasticTransform: lambda: K.RandomElasticTransform(),
    K.RandomPerspective: lambda: K.RandomPerspective(),
    K.RandomRotation: lambda: K.RandomRotation(10.0),
    K.RandomShear: lambda: K.RandomShear(10.0),
    K.RandomTranslate: lambda: K.RandomTranslate((0.1, 0.1)),
    K.AugmentationSequential: lambda: K.AugmentationSequential(K.RandomHorizontalFlip()),
    _kornia.ResizedCropGenerator: lambda: _kornia.ResizedCropGenerator((4, 4), (0.1, 1.0), (0.5, 2.0)),
    _kornia.ResizeGenerator: lambda: _kornia.ResizeGenerator((4, 4)),
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


# --- the generators --------------------------------------------------------------------------------------------------

RANGES = {
    "default": {},
    "too large to fit": {"scale": (0.5, 3.0)},
    "wide": {"ratio": (2.0, 3.0)},
    "never fits, wide": {"scale": (1.0, 1.0), "ratio": (8.0, 9.0)},
    "never fits, tall": {"scale": (1.0, 1.0), "ratio": (0.1, 0.2)},
    "never fits, whole": {"scale": (1e-9, 1e-9)},
    "tensors": {"scale": torch.tensor([0.1, 0.9]), "ratio": torch.tensor([0.5, 2.0])},
}


def assert_same_draw(theirs, ours, shape):
    """The same parameters in the same memory layout, and the same random stream after them."""
    torch.manual_seed(0)
    wanted = [theirs.forward_parameters(shape) for _ in range(8)], torch.rand(1)
    torch.manual_seed(0)
    drawn = [ours.forward_parameters(shape) for _ in range(8)], torch.rand(1)
    assert torch.equal(wanted[1], drawn[1])
    for want, got in zip(wanted[0], drawn[0], strict=True):
        assert list(want) == list(got)
        for name, value in want.items():
            assert torch.equal(value, got[name]), name
            assert (value.dtype, value.stride()) == (got[name].dtype, got[name].stride()), name


@pytest.mark.parametrize("shape", [(5, 3, 37, 200), (1, 3, 16, 16), (2, 1, 300, 20), (0, 3, 8, 8)])
@pytest.mark.parametrize("same_on_batch", [False, True])
@pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_crops_are_drawn_as_kornia_draws_them(shape, same_on_batch, ranges, dtype):
    theirs, ours = (M.RandomResizedCrop((7, 9), same_on_batch=same_on_batch, **ranges).to(dtype) for M in (K, TA))
    assert_same_draw(theirs, ours, shape)


@pytest.mark.parametrize("size", [7, (3, 5)])
def test_resizes_have_kornia_s_parameters_which_may_be_edited(size):
    theirs, ours = K.Resize(size), TA.Resize(size)
    for shape in ((4, 3, 16, 30), (4, 3, 16, 30), (2, 3, 40, 30), (0, 3, 8, 8)):
        assert_same_draw(theirs, ours, shape)
        for value in ours.forward_parameters(shape).values():
            value.zero_() if 0 not in value.stride() else value[:1].zero_()

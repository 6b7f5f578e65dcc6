"""All that this package uses of kornia beyond its documentation: the one file to read when kornia changes.

Other files import such names from here, and reach private attributes through the functions and the base class below.
`UNDOCUMENTED` and `PARAMETERS` list what is relied upon without an import: a test says which name is missing.
"""

from typing import Any, Final, cast

import kornia.augmentation as K
import torch
from kornia.augmentation._2d.base import _input_metadata_only as input_metadata_only
from kornia.augmentation.auto.operations import OperationBase as OperationBase
from kornia.augmentation.container.base import ImageSequentialBase as ImageSequentialBase
from kornia.augmentation.container.image import _get_new_batch_shape as new_batch_shape
from kornia.augmentation.container.ops import AugmentationSequentialOps as AugmentationSequentialOps
from kornia.augmentation.container.ops import MaskSequentialOps as MaskSequentialOps
from kornia.augmentation.container.params import ParamItem as ParamItem
from kornia.augmentation.random_generator import RandomGeneratorBase as RandomGeneratorBase
from kornia.augmentation.random_generator import ResizedCropGenerator as ResizedCropGenerator
from kornia.augmentation.random_generator import ResizeGenerator as ResizeGenerator
from kornia.augmentation.random_generator.base import UniformDistribution as UniformDistribution
from kornia.augmentation.utils import _adapted_rsampling as adapted_rsampling
from kornia.augmentation.utils import override_parameters as override_parameters
from kornia.constants import DataKey
from kornia.filters import filter2d_separable as filter2d_separable
from kornia.filters import get_gaussian_kernel1d as get_gaussian_kernel1d
from kornia.geometry.transform.affwarp import _side_to_image_size as side_to_image_size
from torch import Tensor, nn

__all__ = [
    "AugmentationSequentialOps",
    "ImageSequentialBase",
    "MaskSequentialOps",
    "OperationBase",
    "ParamItem",
    "RandomGeneratorBase",
    "ResizeGenerator",
    "ResizedCropGenerator",
    "UniformDistribution",
    "adapted_rsampling",
    "input_metadata_only",
    "new_batch_shape",
    "override_parameters",
    "side_to_image_size",
]

# Attributes and methods that are called, overridden or set, by the class that has them (or whose instances do).
UNDOCUMENTED: Final[dict[type, tuple[str, ...]]] = {
    K.GeometricAugmentationBase2D: (
        "_commit_state",
        "_compute_matrix_lazily",
        "_lazy_matrix_args",
        "_param_generator",
        "_params",
        "_process_kwargs_to_params_and_flags",
        "_record_matrix_params",
        "_transform_matrix",
        "apply_non_transform_mask",
        "apply_transform",
        "apply_transform_mask",
        "compute_inverse_transformation",
        "compute_transformation",
        "flags",
        "forward_parameters",
        "generate_parameters",
        "generate_transformation_matrix",
        "inverse_inputs",
        "inverse_masks",
        "transform_inputs",
        "transform_masks",
        "transform_tensor",
        "validate_tensor",
    ),
    K.IntensityAugmentationBase2D: ("apply_transform_mask",),
    K.MixAugmentationBaseV2: ("transform_mask",),
    K.RandomCrop: ("compute_padding",),
    K.AugmentationSequential: (
        "_arguments_postproc",
        "_arguments_preproc",
        "_broadcast_single_mask",
        "_cast_mask",
        "_params",
        "_postproc_mask",
        "_preproc_mask",
        "_transform_matrices",
        "_update_transform_matrix_by_module",
        "_update_transform_matrix_for_valid_op",
        "_validate_args_datakeys",
        "clear_state",
        "extra_args",
        "forward_parameters",
        "get_forward_sequence",
        "transform_inputs",
        "transform_op",
    ),
    ResizedCropGenerator: ("device", "dtype", "log_ratio_sampler", "output_size", "ratio", "scale"),
    ResizeGenerator: ("device", "dtype", "output_size", "side"),
    K.VideoSequential: ("_input_shape_convert_back", "_input_shape_convert_in", "_temporal_channel"),
    ImageSequentialBase: ("transform_inputs", "transform_masks"),
    AugmentationSequentialOps: ("_get_op", "inverse", "preproc_datakeys", "transform"),
    MaskSequentialOps: ("inverse", "inverse_list", "transform", "transform_list"),
}

# What the modules find in the parameters that kornia draws.
PARAMETERS: Final[dict[type, tuple[str, ...]]] = {
    K.CenterCrop: ("batch_prob", "forward_input_shape"),
    K.RandomAffine: ("batch_prob", "forward_input_shape"),
    K.RandomCrop: ("batch_prob", "forward_input_shape", "output_size", "padding_size", "src"),
    K.RandomElasticTransform: ("batch_prob", "forward_input_shape", "noise"),
    K.RandomHorizontalFlip: ("batch_prob", "forward_input_shape"),
    K.RandomPerspective: ("batch_prob", "forward_input_shape"),
    K.RandomResizedCrop: ("batch_prob", "forward_input_shape", "src"),
    K.RandomRotation: ("batch_prob", "forward_input_shape"),
    K.RandomShear: ("batch_prob", "forward_input_shape"),
    K.RandomTranslate: ("batch_prob", "forward_input_shape"),
    K.RandomVerticalFlip: ("batch_prob", "forward_input_shape"),
    K.Resize: ("batch_prob", "forward_input_shape", "output_size"),
}

Params = dict[str, Any]


# --- modules ---------------------------------------------------------------------------------------------------------


class ModuleHooks(K.AugmentationBase2D):
    """kornia's modules, with names for what their calls leave behind."""

    def record_params(self, params: Params) -> None:
        """Leave behind what a forward call with ``params`` would."""
        self._commit_state(params=params)

    # Parameters and flags of a call, its keyword arguments in place of theirs. An alias, for where kornia's container
    # is compiled: a frame more around it moves the breaks of the graph, and PyTorch 2.13 fails to guard what is left.
    with_overrides = K.AugmentationBase2D._process_kwargs_to_params_and_flags


class MatrixHooks(ModuleHooks, K.GeometricAugmentationBase2D):
    """kornia's geometric modules, which leave a matrix behind as well."""

    def defer_matrix(self) -> None:
        """Images never need the matrix: make it when boxes, keypoints or a caller read it."""
        self._compute_matrix_lazily = True

    def record_call(self, params: Params, image: Tensor, drawn: Params, flags: dict[str, Any]) -> None:
        """Leave behind what a forward call with ``params`` would; the matrix is made, when read, of the other three."""
        self._commit_state(params=params, transform_matrix=None, lazy_matrix_args=(image, drawn, flags))
        self._record_matrix_params(params)

    def recorded_call(self) -> tuple[Tensor, Params, dict[str, Any]] | None:
        """Image, parameters and flags that `record_call` left, as long as no matrix was made of them."""
        recorded = self._lazy_matrix_args
        return recorded if recorded is not None and isinstance(recorded[0], Tensor) else None


class PointwiseHooks(ModuleHooks, K.IntensityAugmentationBase2D):
    """kornia's modules that move nothing, whose matrix is the identity."""

    def record_call(self, params: Params, image: Tensor) -> None:
        """Leave behind what a forward call on an image would."""
        self._commit_state(params=params, transform_matrix=None, lazy_matrix_args=(image, params, self.flags))


class MixHooks(K.MixAugmentationBaseV2):
    """kornia's modules that mix the samples of a batch."""

    def record_params(self, params: Params) -> None:
        """Leave behind what a forward call with ``params`` would."""
        self._commit_state(params=params)


def smoothed_displacement(
    noise: Tensor, kernel_size: tuple[int, int], sigma: tuple[float, float], alpha: tuple[float, float]
) -> Tensor:
    """How far `RandomElasticTransform` moves the points of its grid, ``(B, 2, H, W)`` across and down.

    The noise smoothed by a Gaussian (sizes and deviations down and across), times ``alpha``, as in kornia's
    `elastic_transform2d`, which resamples at once.
    """
    down, across = (
        get_gaussian_kernel1d(size, noise.new_full((1, 1), deviation))
        for size, deviation in zip(kernel_size, sigma, strict=True)
    )
    planes = (
        filter2d_separable(noise[:, axis : axis + 1], across, down, border_type="constant") * alpha[axis]
        for axis in (0, 1)
    )
    return torch.cat(list(planes), dim=1)


def param_generator(module: Any) -> Any:
    return module._param_generator


def set_param_generator(module: Any, generator: nn.Module) -> None:
    module._param_generator = generator


# --- containers ------------------------------------------------------------------------------------------------------


class ContainerHooks(K.AugmentationSequential):
    """kornia's container, whose private hooks call methods with names of their own."""

    _transform_matrices: list[Any]

    @property
    def recorded_matrices(self) -> list[Any]:
        """One entry for each module of the last call that has a matrix."""
        return self._transform_matrices

    @recorded_matrices.setter
    def recorded_matrices(self, entries: list[Any]) -> None:
        self._transform_matrices = entries

    def record_matrix(self, module: nn.Module) -> bool:
        """Whether a matrix was recorded for the module that has just been applied; if not, kornia does it."""
        return False

    def as_tensor(self, arg: Any) -> Any:
        """What kornia is shown of an argument where it looks at shapes: a tensor of that shape for what is none."""
        return arg

    def receive(self, arg: Any) -> Any:
        """Any argument as it comes in, before kornia looks into it."""
        return arg

    def receive_mask(self, mask: Any, image_batch: int | None) -> Any:
        """A mask as it enters the modules."""
        raise NotImplementedError

    def return_mask(self, mask: Any, given: Any) -> Any:
        """A mask as it leaves the container, where ``given`` came in."""
        raise NotImplementedError

    def return_arguments(self, given: list[Any], results: list[Any], data_keys: list[DataKey]) -> list[Any]:
        """All data as they leave the container, by way of `return_mask`."""
        return cast(list[Any], super()._arguments_postproc(given, results, data_keys))

    def _update_transform_matrix_for_valid_op(self, module: nn.Module) -> None:
        if torch.compiler.is_exporting() or not self.record_matrix(module):
            super()._update_transform_matrix_for_valid_op(module)

    def _validate_args_datakeys(self, *args: Any, **kwargs: Any) -> None:
        super()._validate_args_datakeys(*map(self.as_tensor, args), **kwargs)

    def _arguments_preproc(self, *args: Any, **kwargs: Any) -> list[Any]:
        return cast(list[Any], super()._arguments_preproc(*map(self.receive, args), **kwargs))

    def _preproc_mask(self, arg: Any, dtype: torch.dtype | None, image_batch: int | None = None) -> Any:
        return self.receive_mask(arg, image_batch)

    def _postproc_mask(self, arg: Any, like: Any) -> Any:
        return self.return_mask(arg, like)

    def _arguments_postproc(self, in_args: list[Any], out_args: list[Any], data_keys: list[DataKey]) -> list[Any]:
        return self.return_arguments(in_args, out_args, data_keys)


def repeat_single_mask(mask: Tensor, image_batch: int | None) -> Tensor:
    """A mask for all images of the batch, once for each."""
    return cast(Tensor, K.AugmentationSequential._broadcast_single_mask(mask, image_batch))


def cast_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask in a type that kornia's modules take; an error where that would round a label."""
    return cast(Tensor, K.AugmentationSequential._cast_mask(mask, dtype))


def update_matrix(container: Any, module: nn.Module) -> None:
    """What kornia's container does about its matrix after each module."""
    container._update_transform_matrix_by_module(module)


def set_params(container: Any, params: Any) -> None:
    container._params = params


def operation_of(ops: Any, key: DataKey) -> Any:
    """The class that applies a module to data of this key."""
    return ops._get_op(key)


def frames_as_batch(video: Any, clip: Tensor) -> Tensor:
    """A clip as the batch of its frames, as a `VideoSequential` hands it to its modules."""
    return cast(Tensor, video._input_shape_convert_in(clip, frame_count(video, clip)))


def batch_as_frames(video: Any, frames: Tensor, count: int) -> Tensor:
    return cast(Tensor, video._input_shape_convert_back(frames, count))


def frame_count(video: Any, clip: Tensor) -> int:
    return clip.shape[video._temporal_channel]

"""What only the Numba backend has: threads, forked workers, 16-bit conversions, streamed stores, odd memory layouts."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("numba")

from tritonsoft import cpu, reference


@pytest.fixture(autouse=True)
def _restore_threads():
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def always_threaded(monkeypatch):
    monkeypatch.setattr(cpu, "_INLINE_WORK", 0)


def _inputs():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 2, 61, 83, generator=generator)
    labels = torch.randint(0, 19, (3, 61, 83), generator=generator).to(torch.uint8)
    labels[:, 20:50, 5:70] = 3  # runs of one class and rows that repeat
    labels[0, :5] = 255
    boxes = torch.tensor([[0, 0, 83, 61], [90.5, -7.25, 3.5, 50], [10, 10, 20, 20.5]])
    return image, labels, boxes


def _crop_resize(image, boxes, size, dtype=torch.float32, filter="area"):
    out = torch.full((*image.shape[:2], *size), float("nan"), dtype=dtype)
    cpu.crop_resize(out, image, boxes, filter, 0.5)
    return out


def _soft(labels, boxes, size, num_classes=19, dtype=torch.float32, filter="area"):
    out = torch.full((labels.shape[0], num_classes, *size), float("nan"), dtype=dtype)
    cpu.soft_crop_resize(out, labels, boxes, 255, filter)
    return out


@pytest.mark.parametrize("streamed", [False, True])
def test_same_bits_whatever_the_thread_count(always_threaded, monkeypatch, streamed):
    monkeypatch.setattr(cpu, "_STREAM_BYTES", 0 if streamed else 1 << 40)
    image, labels, boxes = _inputs()
    results = []
    for num_threads in (1, 2, 3, 7):
        torch.set_num_threads(num_threads)
        results.append((_crop_resize(image, boxes, (29, 37)), _soft(labels, boxes, (29, 37))))
    for crop, soft in results[1:]:
        assert torch.equal(crop, results[0][0])
        assert torch.equal(soft, results[0][1])
    expected = reference.soft_crop_resize(labels, boxes, (29, 37), 19, 255, "area", torch.float32)
    torch.testing.assert_close(results[0][1], expected)


def test_two_python_threads_at_once(always_threaded):
    torch.set_num_threads(3)
    image, labels, boxes = _inputs()
    expected = _crop_resize(image, boxes, (29, 37)), _soft(labels, boxes, (29, 37))
    failures = []

    def call():
        for _ in range(30):
            if not torch.equal(_crop_resize(image, boxes, (29, 37)), expected[0]):
                failures.append("image")
            if not torch.equal(_soft(labels, boxes, (29, 37)), expected[1]):
                failures.append("labels")

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_its_own_threads():
    # In a process of its own: forking pytest itself would also fork whatever its plugins run.
    program = """
import os, torch
from tritonsoft import cpu
cpu._INLINE_WORK = 0
torch.set_num_threads(3)
labels = torch.randint(0, 19, (2, 64, 64), dtype=torch.uint8)
def soft():
    out = torch.empty(2, 19, 16, 16)
    cpu.soft_crop_resize(out, labels, None, 255, "area")
    return out
expected = soft()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(soft(), expected) and torch.equal(soft(), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(soft(), expected)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


class _SoftLabels(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        torch.set_num_threads(2)
        return _soft(torch.full((1, 64, 64), index, dtype=torch.uint8), None, (16, 16))[0]


def test_forked_data_loader_workers(always_threaded):
    torch.set_num_threads(2)
    _soft(_inputs()[1], None, (16, 16))  # the parent has used its threads
    loader = torch.utils.data.DataLoader(_SoftLabels(), num_workers=2, multiprocessing_context="fork", timeout=120)
    for index, soft in enumerate(loader):
        assert torch.equal(soft[0, index], torch.ones(16, 16))
        assert soft.sum() == 16 * 16


def test_small_calls_start_no_thread():
    torch.set_num_threads(4)
    cpu._pool.reset()
    _soft(torch.zeros(1, 8, 8, dtype=torch.uint8), None, (4, 4))
    assert cpu._pool._executor is None


def test_an_error_in_a_helper_thread_reaches_the_caller(always_threaded):
    torch.set_num_threads(3)

    def job(first, end):
        raise ValueError("from a job")

    with pytest.raises(ValueError, match="from a job"):
        cpu._pool.run(job, 100, 100)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_value_is_read_exactly(dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = bits[~bits.isnan()].view(1, 1, 1, -1)
    assert torch.equal(_crop_resize(values, None, values.shape[2:], filter="nearest"), values.float())
    nans = bits[bits.isnan()].view(1, 1, 1, -1)
    assert _crop_resize(nans, None, nans.shape[2:], filter="nearest").isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_results_round_to_nearest_even(dtype):
    exact = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    exact = exact[exact.isfinite()].sort().values
    middle = (exact[1:].double() + exact[:-1].double()).div(2).float()  # exact in float32: the ties
    values = torch.cat([exact, middle, middle.nextafter(torch.tensor(float("inf"))), torch.randn(1 << 16) * 1e5])
    values = torch.cat([values, torch.tensor([float("inf"), float("-inf"), float("nan"), 65519.0, 65520.0, 3.4e38])])
    values = values[(values == 0) | (values.abs() >= torch.finfo(torch.float32).tiny)].view(1, 1, 1, -1)
    out = _crop_resize(values, None, values.shape[2:], dtype=dtype, filter="nearest")
    torch.testing.assert_close(out, values.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_streamed_stores_at_any_alignment(monkeypatch, offset, dtype):
    monkeypatch.setattr(cpu, "_STREAM_BYTES", 0)
    _, labels, boxes = _inputs()
    memory = torch.full((3 * 19 * 29 * 37 + 16,), -1.0, dtype=dtype)
    out = memory[offset : offset + 3 * 19 * 29 * 37].view(3, 19, 29, 37)
    cpu.soft_crop_resize(out, labels, boxes, 255, "triangle")
    assert torch.equal(out, _soft(labels, boxes, (29, 37), dtype=dtype, filter="triangle"))
    assert (memory[:offset] == -1).all()
    assert (memory[offset + out.numel() :] == -1).all()


def test_layouts_give_the_same_bits():
    image, labels, boxes = _inputs()
    expected = _crop_resize(image, boxes, (29, 37)), _soft(labels, boxes, (29, 37))
    wide = torch.zeros(3, 2, 70, 90).to(memory_format=torch.channels_last)[:, :, 4:65, 2:85].copy_(image)
    strided = torch.zeros(3, 2, 61, 166)[..., ::2].copy_(image)
    for view in (image.to(memory_format=torch.channels_last), wide, strided):
        assert torch.equal(_crop_resize(view, boxes, (29, 37)), expected[0])
        out = torch.full((3, 29, 37, 2), float("nan")).permute(0, 3, 1, 2)
        cpu.crop_resize(out, view, boxes, "area", 0.5)
        torch.testing.assert_close(out, expected[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(_soft(labels.mT.contiguous().mT, boxes, (29, 37)), expected[1])
    assert torch.equal(_soft(labels[:1].expand(3, -1, -1), None, (29, 37))[2], _soft(labels[:1], None, (29, 37))[0])


def test_a_flipped_box_flips_the_bits():
    image, labels, boxes = _inputs()
    flipped = boxes[:, [2, 3, 0, 1]]
    assert torch.equal(_soft(labels, flipped, (29, 37)), _soft(labels, boxes, (29, 37)).flip(2, 3))
    assert torch.equal(_crop_resize(image, flipped, (29, 37)), _crop_resize(image, boxes, (29, 37)).flip(2, 3))


def test_many_taps_keep_their_precision():
    labels = torch.full((1, 2048, 2048), 1, dtype=torch.uint8)
    labels[0, ::3, ::7] = 0
    out = _soft(labels, None, (1, 3), num_classes=2)
    expected = reference.soft_crop_resize(labels, None, (1, 3), 2, 255, "area", torch.float64)
    torch.testing.assert_close(out.double(), expected, rtol=2**-23, atol=0)


def test_a_pixel_without_weight_is_not_read():
    image = torch.ones(1, 1, 4, 8)
    image[..., 4:] = float("inf")
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    assert torch.equal(_crop_resize(image, box, (2, 2)), torch.ones(1, 1, 2, 2))
    assert torch.equal(_crop_resize(image, None, (4, 2))[..., 0], torch.ones(1, 1, 4))


def test_vast_boxes_need_little_memory():
    image, labels, _ = _inputs()
    boxes = torch.tensor([[-(2.0**24), -(2.0**24), 2.0**24, 2.0**24]]).expand(3, 4)
    taps = cpu._taps(cpu._ends(boxes, (61, 83))[1], 83, 64, "triangle", cpu.np.float32)
    assert taps.weight.size <= 3 * 4 * 83
    assert (_crop_resize(image, boxes, (8, 8)) - 0.5).abs().max() < 1e-3
    assert _soft(labels, boxes, (8, 8)).sum() < 1e-3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("ignore_index", [255, -1, 2, 300, -(10**30)])
def test_labels_in_range(dtype, ignore_index):
    limits = torch.iinfo(dtype)
    labels = torch.randint(0, 5, (2, 33, 70)).to(dtype)
    for view in (labels, labels.mT, labels[:, :, ::3], labels[:1].expand(4, -1, -1)):
        assert cpu.labels_in_range(view, 5, ignore_index)
    for value in (limits.min, limits.max, 5, 254, -1, ignore_index):
        if limits.min <= value <= limits.max:
            labels[1, 32, 69] = value
            assert cpu.labels_in_range(labels, 5, ignore_index) == (0 <= value < 5 or value == ignore_index)
    assert cpu.labels_in_range(torch.tensor([[[limits.max]]], dtype=dtype), limits.max + 1, ignore_index)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_without_a_class_carry_no_mass(dtype):
    limits = torch.iinfo(dtype)
    values = torch.tensor([limits.min, limits.max, 0, 1, 4, 5, 6], dtype=dtype)
    labels = values[None, None].expand(1, 3, -1)
    out = torch.full((1, 5, 3, 7), float("nan"))
    cpu.soft_crop_resize(out, labels, None, 1, "nearest")
    expected = (values[None] == torch.arange(5)[:, None]) & (values != 1)
    assert torch.equal(out[0, :, 0], expected.float())


def test_import_compiles_nothing():
    program = """
from numba.core import compiler
def refuse(*args, **kwargs): raise AssertionError("compiled at import")
compiler.compile_extra = refuse
import tritonsoft.cpu
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_calls_after_the_main_thread_has_ended():
    code = """
import threading, time, torch, tritonsoft as ts
torch.set_num_threads(2)
labels = torch.zeros(1, 512, 512, dtype=torch.uint8)
def late():
    threading.main_thread().join()
    time.sleep(0.2)
    print(ts.soft_resize(labels, (256, 256), 3, backend="numba").sum().item())
threading.Thread(target=late).start()
"""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "65536.0", result.stderr

"""What only the CPU has: threads, forked workers, compiled functions on disk, memory shared with the caller or reused,
16-bit conversions, streamed stores, odd layouts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

import tritonsoft as ts
from tritonsoft.backends import numba as cpu
from tritonsoft.backends import reference
from tritonsoft.backends.numba.taps import tables_of_boxes


@pytest.fixture(autouse=True)
def _restore_threads():
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(params=["OpenMP threads", "own threads"])
def always_threaded(request, monkeypatch):
    monkeypatch.setattr(cpu.threads, "MIN_SAVED_NANOSECONDS", 0)
    if request.param == "own threads":
        monkeypatch.setattr(cpu.threads.pool, "_team", None)
    elif cpu.threads.pool._team is None:
        pytest.skip("torch has no OpenMP threads to lend")
    else:
        monkeypatch.setattr(cpu.threads.pool, "_team_is_running", lambda num_threads: True)


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
    cpu.soft_crop_resize(out, labels, boxes, 255, filter, validate=False)
    return out


@pytest.mark.parametrize("streamed", [False, True])
def test_same_bits_whatever_the_thread_count(always_threaded, monkeypatch, streamed):
    monkeypatch.setattr(cpu.elements, "STREAM_BYTES", 0 if streamed else 1 << 40)
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
from tritonsoft.backends import numba as cpu
cpu.threads.MIN_SAVED_NANOSECONDS = 0
torch.set_num_threads(3)
labels = torch.randint(0, 19, (2, 64, 64), dtype=torch.uint8)
def soft():
    out = torch.empty(2, 19, 16, 16)
    cpu.soft_crop_resize(out, labels, None, 255, "area", validate=False)
    return out
torch.rand(1 << 20).sum()  # starts torch's threads
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


@pytest.fixture
def no_other_thread(monkeypatch):
    """Fails if a call asks for other threads."""

    def refuse(*arguments):
        raise AssertionError("asked for threads")

    torch.set_num_threads(4)
    monkeypatch.setattr(cpu.threads, "_Call", refuse)


def test_small_calls_need_no_other_thread(no_other_thread):
    labels = torch.zeros(2, 256, 512, dtype=torch.uint8)
    soft = _soft(labels, None, (64, 128))
    logits = torch.randn(2, 19, 64, 128, requires_grad=True)
    ts.soft_cross_entropy(logits, soft, backend="numba").backward()
    _crop_resize(torch.rand(2, 3, 128, 128), None, (64, 64))


def test_a_small_crop_of_a_large_map_needs_no_other_thread(no_other_thread):
    boxes = torch.tensor([[1000.0, 2000.0, 1064.0, 2064.0]])
    _soft(torch.zeros(1, 4096, 4096, dtype=torch.uint8), boxes, (64, 64))
    _crop_resize(torch.zeros(1, 3, 4096, 4096), boxes, (64, 64))


def test_large_calls_share_their_rows(monkeypatch):
    torch.set_num_threads(2)
    callers = []
    monkeypatch.setattr(cpu.threads._Call, "__init__", lambda *arguments: callers.append(arguments) or 1 / 0)
    for call in (
        lambda: _soft(torch.zeros(2, 2048, 2048, dtype=torch.uint8), None, (1024, 1024)),
        lambda: _crop_resize(torch.zeros(4, 3, 1024, 1024), None, (512, 512)),
        lambda: ts.soft_cross_entropy(torch.zeros(2, 19, 512, 512), torch.zeros(2, 19, 512, 512), backend="numba"),
    ):
        with pytest.raises(ZeroDivisionError):
            call()
    assert len(callers) == 3


@pytest.fixture
def own_pool(monkeypatch):
    """Own threads alone, none of which has been started."""
    pool = cpu.threads._Pool()
    pool._team = None
    torch.set_num_threads(2)
    return pool


_LARGE = float("inf")  # nanoseconds of work


def test_a_call_waits_for_no_thread_that_has_not_started(own_pool, monkeypatch):
    monkeypatch.setattr(cpu.threads, "start_new_thread", lambda *arguments: None)
    sizes = []
    caller = threading.Thread(
        target=lambda: sizes.extend(own_pool.run(lambda first, end: end - first, 100, _LARGE)), daemon=True
    )
    caller.start()
    caller.join(60)
    assert sum(sizes) == 100


def test_a_call_does_not_wait_for_threads_that_others_keep_busy(own_pool):
    in_helper, go_on = threading.Event(), threading.Event()

    def job(first, end):
        if threading.get_ident() != first_caller.ident:
            in_helper.set()
        go_on.wait(120)

    first_caller = threading.Thread(target=lambda: own_pool.run(job, 100, _LARGE))
    first_caller.start()
    assert in_helper.wait(60)
    threads = own_pool.run(lambda first, end: threading.get_ident(), 100, _LARGE)
    assert set(threads) == {threading.get_ident()}
    go_on.set()
    first_caller.join(60)
    assert not first_caller.is_alive()


def test_ranges_that_have_been_taken_are_waited_for(own_pool):
    caller, in_helper, rows = threading.get_ident(), threading.Event(), []

    def job(first, end):
        if threading.get_ident() != caller:
            in_helper.set()
            time.sleep(0.2)
        else:
            in_helper.wait(60)
        rows.extend(range(first, end))

    own_pool.run(job, 100, _LARGE)
    assert sorted(rows) == list(range(100))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")
def test_an_interrupt_waits_for_the_ranges_of_other_threads(own_pool):
    """They know tensors by their addresses, so memory must outlast them."""
    caller, in_helper, finished, interrupts = threading.get_ident(), threading.Event(), [], []

    def interrupt(*_):
        interrupts.append(len(finished))
        raise KeyboardInterrupt

    def job(first, end):
        if threading.get_ident() != caller:
            in_helper.set()
            time.sleep(0.5)
            finished.append(first)
        else:
            in_helper.wait(60)
            if not interrupts:
                signal.setitimer(signal.ITIMER_REAL, 0.1)  # the caller has no range left by then

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            own_pool.run(job, 2, _LARGE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupts[0] == 0
    assert len(finished) == 1
    assert not own_pool._open


def test_waiting_threads_keep_no_call_alive(own_pool):
    class Job:
        def __call__(self, first, end):
            if threading.get_ident() == caller:
                in_helper.wait(60)
            else:
                in_helper.set()

    caller, in_helper, job = threading.get_ident(), threading.Event(), Job()
    own_pool.run(job, 100, _LARGE)
    job = weakref.ref(job)
    for _ in range(600):
        if job() is None:
            break
        time.sleep(0.1)  # the helper is on its way back
    assert job() is None


def test_threads_of_torch_that_sleep_are_not_asked(monkeypatch):
    pool = cpu.threads._Pool()
    if pool._team is None:
        pytest.skip("torch has no OpenMP threads to lend")
    torch.set_num_threads(2)
    pool._team_is_running(2)  # knows them now, and has woken them up
    for _ in range(600):
        if not pool._team_is_running(2):
            break
        time.sleep(0.1)
    monkeypatch.setattr(pool, "_team", lambda *arguments: 1 / 0)
    assert sum(pool.run(lambda first, end: end - first, 100, _LARGE)) == 100


def test_an_error_in_a_helper_thread_reaches_the_caller(always_threaded):
    torch.set_num_threads(3)

    caller = threading.get_ident()
    in_helper = threading.Event()

    def job(first, end):
        if threading.get_ident() != caller:
            in_helper.set()
            raise ValueError("from a job")
        in_helper.wait(60)

    with pytest.raises(ValueError, match="from a job"):
        cpu.threads.pool.run(job, 100, 100)


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


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 2e-7), (np.float64, 4e-16)])
def test_exponential_of_vectors(dtype, error):
    from tritonsoft.backends.numba.threads import jit, unsigned
    from tritonsoft.backends.numba.vectors import LANES, exp, load, store

    @jit
    def exponentials(values, results):
        for n in range(unsigned(0), unsigned(values.size), unsigned(LANES)):
            store(results, n, exp(load(values, n, LANES)))

    values = -np.geomspace(1e-9, 86.9, 1 << 16).astype(dtype)
    values[:8] = 0.0, -0.0, 1e-6, -87.0, -88.0, -1e30, -np.inf, np.nan
    results = np.full_like(values, 7)
    exponentials(values, results)
    expected = np.exp(values.astype(np.float64))
    assert np.isnan(results[7])
    # A single below 2^-125 is nothing.
    np.testing.assert_allclose(results[:7], expected[:7], rtol=error, atol=0 if dtype is np.float64 else 1.7e-38)
    np.testing.assert_allclose(results[8:], expected[8:], rtol=error)


@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_streamed_stores_at_any_alignment(monkeypatch, offset, dtype):
    monkeypatch.setattr(cpu.elements, "STREAM_BYTES", 0)
    _, labels, boxes = _inputs()
    memory = torch.full((3 * 19 * 29 * 37 + 16,), -1.0, dtype=dtype)
    out = memory[offset : offset + 3 * 19 * 29 * 37].view(3, 19, 29, 37)
    cpu.soft_crop_resize(out, labels, boxes, 255, "triangle", validate=False)
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


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_the_size_along_x_by_pairs_has_the_bits_of_any_other_way(layout, mirrored):
    image = torch.rand(2, 3, 9, 46).to(memory_format=layout)
    boxes = torch.tensor([[4.0, 1.0, 40.0, 8.0], [0.0, 0.0, 36.0, 9.0]])
    pairs = ts.crop_resize(image, boxes, (4, 18), backend="numba")
    if mirrored:
        boxes = boxes[:, [2, 1, 0, 3]]
        pairs = pairs.flip(3)
    elsewhere = ts.crop_resize(image[:, :1] if mirrored else image.contiguous(), boxes, (4, 18), backend="numba")
    assert torch.equal(pairs[:, : elsewhere.shape[1]], elsewhere)
    expected = ts.crop_resize(image.double(), boxes, (4, 18), backend="reference")
    assert (pairs - expected).abs().max() < 1e-6


@pytest.mark.parametrize("filter", ["area", "triangle", "nearest", "bilinear"])
@pytest.mark.parametrize("width", [2600, 2200.7, 1500.3, 700.9, -2600.0])
def test_noise_in_several_tiles(filter, width):
    """Short runs are added pixel by pixel, at the sides of a tile and of the line of the first class too."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (1, 6, 2600), generator=generator).to(torch.uint8)
    labels[:, :, 900:1400] = 3
    left = 0.0 if abs(width) == 2600 else 37.4
    ends = (left + width, left) if width > 0 else (left, left - width)
    boxes = torch.tensor([[ends[1], 0.0, ends[0], 6.0]], dtype=torch.float64)
    out = _soft(labels, boxes, (3, 1300), 5, filter=filter)
    expected = reference.soft_crop_resize(labels, boxes, (3, 1300), 5, 255, filter, torch.float32)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)


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
    boxes = torch.tensor([[-(2.0**24), -(2.0**24), 2.0**24, 2.0**24]]).expand(3, 4).contiguous()
    _, taps, _ = tables_of_boxes(boxes.double(), (61, 83), (64, 64), "triangle", torch.float32, torch.float32)
    assert taps.weight.size <= 3 * 4 * 83
    assert (_crop_resize(image, boxes, (8, 8)) - 0.5).abs().max() < 1e-3
    assert _soft(labels, boxes, (8, 8)).sum() < 1e-3


def _in_range(labels, num_classes, ignore_index):
    out = torch.empty(len(labels), num_classes, 1, 1)
    return cpu.soft_crop_resize(out, labels, None, ignore_index, "area", validate=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("ignore_index", [255, -1, 2, 5, 300, -(2**40), 2**63 - 1])
def test_labels_in_range(dtype, ignore_index):
    limits = torch.iinfo(dtype)
    labels = torch.randint(0, 5, (2, 33, 70)).to(dtype)
    for view in (labels, labels.mT, labels[:, :, ::3], labels[:1].expand(4, -1, -1)):
        assert _in_range(view, 5, ignore_index)
    for value in (limits.min, limits.max, 5, 6, 254, -1, ignore_index):
        if limits.min <= value <= limits.max:
            labels[1, 32, 69] = value
            assert _in_range(labels, 5, ignore_index) == (0 <= value < 5 or value == ignore_index)
    if dtype.itemsize <= 2:
        assert _in_range(torch.tensor([[[limits.max]]], dtype=dtype), limits.max + 1, ignore_index)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_without_a_class_carry_no_mass(dtype):
    limits = torch.iinfo(dtype)
    values = torch.tensor([limits.min, limits.max, 0, 1, 4, 5, 6], dtype=dtype)
    labels = values[None, None].expand(1, 3, -1)
    out = torch.full((1, 5, 3, 7), float("nan"))
    cpu.soft_crop_resize(out, labels, None, 1, "nearest", validate=False)
    expected = (values[None] == torch.arange(5)[:, None]) & (values != 1)
    assert torch.equal(out[0, :, 0], expected.float())


def test_import_compiles_nothing():
    program = """
from numba.core import compiler
def refuse(*args, **kwargs): raise AssertionError("compiled at import")
compiler.compile_extra = refuse
import tritonsoft.backends.numba
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_calls_after_the_main_thread_has_ended():
    code = """
import threading, time, torch, tritonsoft as ts
torch.set_num_threads(2)
image = torch.ones(1, 1, 512, 512)
def late():
    threading.main_thread().join()
    time.sleep(0.2)
    print(ts.resize(image, (256, 256), backend="numba").sum().item())
threading.Thread(target=late).start()
"""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "65536.0", result.stderr


# --- compiled functions on disk --------------------------------------------------------------------------------------

_TAPS = """
import json, os, sys, warnings
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    import numpy as np
    from tritonsoft.backends.numba import taps, threads
    from tritonsoft.geometry import FILTERS
    like = np.empty(0, np.float32)
    results = [
        float((taps._tabulate(np.array([[0.0, size]]), 64, 8, FILTERS.index("area"), like)[2] ** 2).sum())
        for size in (20, 24)
    ]
messages = [str(each.message) for each in warned if issubclass(each.category, RuntimeWarning)]
hits = sum(taps._tabulate.stats.cache_hits.values())
print(json.dumps([results, messages, hits, taps._tabulate.stats.cache_path]))
"""
_ROOT = Path(__file__).parent.parent


def _taps(cache, program=_TAPS, root=_ROOT):
    """What a process computes, warns of, and finds in a cache, by the function that makes taps."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", program]  # which imports from where it runs
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def filled_cache(tmp_path_factory):
    cache = tmp_path_factory.mktemp("numba")
    results, messages, hits, _ = _taps(cache)
    assert (messages, hits) == ([], 0)
    assert _taps(cache)[:3] == [results, [], 1]
    return cache, results


def _zeroed_middle(file):
    contents = bytearray(file.read_bytes())
    middle = len(contents) // 2
    contents[middle : middle + 512] = bytes(512)
    file.write_bytes(contents)


_DAMAGES = {
    "empty files": ("*.nbc", lambda file: file.write_bytes(b"")),
    "zeros": ("*.nbc", lambda file: file.write_bytes(bytes(file.stat().st_size))),
    "zeros in the middle": ("*.nbc", _zeroed_middle),
    "half an index": ("*.nbi", lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])),
    "a folder for an index": ("*.nbi", lambda file: (file.unlink(), file.mkdir())),
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_broken_cache_is_compiled_anew_and_said_once(filled_cache, tmp_path, damage):
    filled, expected = filled_cache
    cache = tmp_path / "numba"
    shutil.copytree(filled, cache)
    pattern, spoil = _DAMAGES[damage]
    files = list(cache.rglob(pattern))
    assert files
    for file in files:
        spoil(file)
    results, messages, hits, path = _taps(cache)
    assert (results, hits, len(messages)) == (expected, 0, 1)
    assert path in messages[0]
    assert "NUMBA_CACHE_DIR" in messages[0]
    if "folder" not in damage:  # that one stays broken
        assert _taps(cache)[:3] == [expected, [], 1]


def test_a_full_cache_is_said_once_and_leaves_nothing_behind(filled_cache, tmp_path):
    full = """
import errno, numba.core.caching
def fail(*arguments): raise OSError(errno.ENOSPC, "No space left on device")
numba.core.caching.IndexDataCacheFile._save_data = fail
"""
    results, messages, _, path = _taps(tmp_path, full + _TAPS)
    assert (results, len(messages)) == (filled_cache[1], 1)
    assert path in messages[0]
    assert "No space left" in messages[0]
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".nbi", ".nbc")]


def test_a_change_that_numba_does_not_see_is_compiled(tmp_path):
    """Constants of another file, of the same size and age."""
    shutil.copytree(
        _ROOT / "tritonsoft", tmp_path / "tritonsoft", ignore=shutil.ignore_patterns("kernels", "__pycache__")
    )
    expected = _taps(tmp_path / "numba", root=tmp_path)[0]
    file = tmp_path / "tritonsoft" / "geometry.py"
    before, text = file.stat(), file.read_text()
    file.write_text(text.replace('= ("area", "triangle",', '= ("triangle", "area",'))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.read_text() != text
    assert file.stat().st_size == before.st_size
    assert _taps(tmp_path / "numba", root=tmp_path)[:3] == [expected, [], 0]


def test_kernels_are_made_from_files_that_the_stamp_covers():
    for file in Path(cpu.__file__).parent.glob("*.py"):
        for imported in re.findall(r"^(?:from|import) (tritonsoft[.\w]*)", file.read_text(), re.MULTILINE):
            assert imported.startswith("tritonsoft.backends.numba") or imported == "tritonsoft.geometry"


def test_a_cache_that_would_not_look_at_the_stamp_is_not_used(monkeypatch):
    monkeypatch.setattr(cpu.cache._Cache, "_impl_class", cpu.cache.CompileResultCacheImpl)
    assert isinstance(cpu.cache.cache_of(cpu.taps._weight.py_func), cpu.cache.NullCache)


def test_without_sources_there_is_no_cache(monkeypatch):
    monkeypatch.setattr(cpu.cache, "source_stamp", lambda: "")
    assert isinstance(cpu.cache.cache_of(cpu.taps._weight.py_func), cpu.cache.NullCache)


def test_numba_that_may_not_compile_is_not_chosen():
    code = """
import pytest, torch, tritonsoft as ts
backend, reason = ts.backend_info()["cpu"]
assert backend == "reference" and "NUMBA_DISABLE_JIT" in reason, (backend, reason)
labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
assert ts.soft_resize(labels, (4, 4), 2).sum() == 16
with pytest.raises(ValueError, match="NUMBA_DISABLE_JIT"):
    ts.soft_resize(labels, (4, 4), 2, backend="numba")
with pytest.raises(RuntimeError, match="NUMBA_DISABLE_JIT"):
    import tritonsoft.backends.numba
"""
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "NUMBA_DISABLE_JIT": "1", "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("moment", ["importing", "compiling"])
def test_a_fork_while_another_thread_first_calls(tmp_path, moment):
    code = f"""
import os, sys, threading, torch, tritonsoft as ts
import torch._dynamo  # as torch does by itself in the first call of an operator
from tritonsoft.backends import select as backends
moment = threading.Event()
labels = torch.ones(1, 4, 4, dtype=torch.uint8)  # to remap them is compiled soonest
def call():
    return ts.remap_labels(labels, {{1: 3}}, backend="numba").sum().item()
if "{moment}" == "importing":
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "tritonsoft.backends.numba.remapping":
                moment.set()
    sys.meta_path.insert(0, Finder())
else:
    import numba.core.event as event, tritonsoft.backends.numba
    class Listener(event.Listener):
        def on_start(self, event): moment.set()
        def on_end(self, event): pass
    event.register("numba:compile", Listener())
thread = threading.Thread(target=call)
thread.start()
assert moment.wait(120)
child = os.fork()
if child == 0:
    os._exit(0 if call() == 48 else 1)
assert os.waitpid(child, 0)[1] == 0
thread.join()
assert call() == 48
"""
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=600)


# --- memory of the caller --------------------------------------------------------------------------------------------


def test_tensors_of_the_caller_stay_resizable():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 16, 16, generator=generator, requires_grad=True)
    labels = torch.randint(0, 5, (2, 16, 16), generator=generator).to(torch.uint8)
    boxes = torch.tensor([[1.0, 2.0, 9.0, 10.0]] * 2, dtype=torch.float64)
    logits = torch.randn(2, 5, 8, 8, generator=generator, requires_grad=True)
    weight, use = torch.ones(5), {"backend": "numba"}
    soft = ts.soft_resize(labels, (8, 8), 5, **use)
    sparse = ts.soft_resize(labels, (8, 8), 5, top_k=2, **use)
    grad = torch.ones(2, 3, 8, 8)
    ts.crop_resize(image, boxes, (8, 8), **use).backward(grad)
    ts.crop_resize_pair(image, labels, boxes, (8, 8), 5, **use)
    losses = [
        ts.soft_cross_entropy(logits, soft, weight=weight, **use),
        ts.soft_cross_entropy(logits, sparse, weight=weight, **use),
        ts.area_cross_entropy(logits, labels, boxes, weight=weight, **use),
        ts.soft_dice_loss(logits, soft, **use),
    ]
    sum(losses).backward()
    tensors = [image, labels, boxes, logits, weight, soft, *vars(sparse).values(), grad, image.grad, logits.grad]
    for tensor in (each for each in tensors if isinstance(each, torch.Tensor)):
        assert tensor.untyped_storage().resizable()
    labels.resize_(4, 16, 16)
    assert labels.shape == (4, 16, 16)


def test_arrays_of_tensors_keep_them_alive():
    tensor = torch.arange(1 << 20, dtype=torch.int32)
    gone = weakref.ref(tensor)
    array = cpu.elements.flat(tensor)[5:]
    del tensor
    assert gone() is not None
    assert array[0] == 5
    del array
    assert gone() is None


@pytest.mark.parametrize("dtype", cpu.elements._NUMPY_TYPES)
def test_arrays_are_the_memory_of_tensors(dtype):
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    for view in (tensor, tensor[:, 1:, ::2], tensor.mT, tensor[:1].expand(5, -1, -1), tensor[:0]):
        array = cpu.elements.flat(view)
        assert view.numel() == 0 or array.ctypes.data == view.data_ptr()
        assert array.itemsize == view.element_size()
        strides = [stride * view.element_size() for stride in view.stride()]
        copy = np.lib.stride_tricks.as_strided(array, view.shape, strides).copy()
        assert torch.equal(torch.from_numpy(copy.view(np.uint8)).view(dtype).view(view.shape), view)

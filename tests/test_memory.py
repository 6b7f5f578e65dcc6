"""The memory of large CPU outputs, pooled for the next ones."""

import os
import pickle
import subprocess
import sys
import threading
import time

import pytest
import torch

import tritonsoft as ts
from tritonsoft import memory


@pytest.fixture
def pool(monkeypatch):
    """A pool of its own for a test."""
    pool = memory.BufferPool()
    monkeypatch.setattr(memory, "pool", pool)
    return pool


def _large_output(num_mebibytes=8, dtype=torch.float32):
    return memory.empty((1, 1, num_mebibytes << 10, (1 << 10) // dtype.itemsize), dtype, torch.device("cpu"))


def test_memory_of_an_output_is_reused(pool):
    labels = torch.randint(0, 19, (2, 512, 512)).to(torch.uint8)
    first = ts.soft_resize(labels, (256, 256), 19, backend="numba")
    expected, address = first.clone(), first.data_ptr()
    del first
    second = ts.soft_resize(labels, (256, 256), 19, backend="numba")
    assert second.data_ptr() == address
    assert torch.equal(second, expected)
    third = ts.soft_resize(labels, (256, 256), 19, backend="numba")
    assert third.data_ptr() != address
    del second
    half = ts.soft_resize(labels, (256, 512), 19, dtype=torch.float16, backend="numba")  # as many bytes
    assert half.data_ptr() == address


def test_reused_memory_is_a_tensor_of_its_own(pool):
    for _ in range(2):
        out = _large_output()
        assert not out._is_view()
        assert out.storage_offset() == 0
        assert out.untyped_storage().nbytes() == out.nbytes
        assert out.data_ptr() % 64 == 0
        del out


@pytest.mark.parametrize(
    "hold",
    [
        lambda out: out[0, 0, 5:7],
        lambda out: out.detach(),
        lambda out: out.view(torch.int32),
        lambda out: out.numpy(),
        lambda out: out.numpy()[..., ::7].T,
        lambda out: memoryview(out.numpy()),
        lambda out: out.untyped_storage(),
        lambda out: torch.utils.dlpack.to_dlpack(out),
        lambda out: torch.nn.Parameter(out),
        lambda out: (torch.ones(1, requires_grad=True) * out).sum(),  # autograd saved it
    ],
)
def test_memory_that_is_held_is_not_reused(pool, hold):
    out = _large_output().fill_(1)
    address = out.data_ptr()
    holder = hold(out)
    del out
    other = _large_output().fill_(2)
    assert other.data_ptr() != address
    if isinstance(holder, torch.Tensor) and holder.requires_grad and holder.ndim == 0:
        holder.backward()  # frees what was saved
        assert holder.item() == 8 << 18
    del holder
    assert _large_output().data_ptr() == address


def test_shared_memory_moves_out_of_a_block(pool):
    out = _large_output().fill_(1)
    address = out.data_ptr()
    out.share_memory_()
    other = _large_output().fill_(2)
    assert other.data_ptr() == address
    assert (out == 1).all()
    assert (pickle.loads(pickle.dumps(other)) == 2).all()


def test_two_threads_never_share_memory(pool):
    failures = []

    def call(number):
        for _ in range(100):
            out = _large_output(4).fill_(number)
            time.sleep(0)  # lets another thread run
            if not (out == number).all():
                failures.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert not failures
    assert len(pool._blocks) <= 8  # each has the last one still while it takes the next


def test_the_pool_keeps_no_more_than_its_limit(pool):
    ts.memory.set_pool_limit(20 << 20)
    outputs = [_large_output().fill_(number) for number in range(5)]
    assert sum(block.size for block, _ in pool._blocks) <= 20 << 20
    newest = outputs[-1].data_ptr()
    assert all((out == number).all() for number, out in enumerate(outputs))
    outputs.clear()
    _large_output(21)  # is not kept, nor drives others out
    assert sum(block.size for block, _ in pool._blocks) <= 20 << 20
    addresses = {_large_output().data_ptr() for _ in range(3)}
    assert newest in addresses


def test_a_smaller_limit_frees_memory_at_once(pool):
    first, second = _large_output(), _large_output()
    address = second.data_ptr()
    del first, second
    ts.memory.set_pool_limit(10 << 20)
    assert [view() for _, view in pool._blocks] == [None]
    assert _large_output().data_ptr() == address  # the one used last stays


def test_nothing_is_kept_with_a_limit_of_zero(pool):
    ts.memory.set_pool_limit(0)
    held = _large_output().fill_(1)
    assert not pool._blocks
    assert (held == 1).all()


def test_an_emptied_pool_leaves_tensors_alone(pool):
    held, gone = _large_output().fill_(1), _large_output()
    address = gone.data_ptr()
    del gone
    ts.memory.empty_pool()
    assert not pool._blocks
    other = _large_output().fill_(2)
    del other
    assert (held == 1).all()
    assert held.data_ptr() != address


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (-1, ValueError, "num_bytes must be at least 0, got -1"),
        (1e9, TypeError, "num_bytes must be an int, got float"),
        (True, TypeError, "num_bytes must be an int, got bool"),
        (None, TypeError, "num_bytes must be an int, got NoneType"),
    ],
)
def test_a_bad_limit_is_refused(pool, limit, error, message):
    with pytest.raises(error, match=message):
        ts.memory.set_pool_limit(limit)


def test_the_pool_can_be_emptied_while_others_use_it(pool):
    failures = []

    def call(number):
        try:
            for _ in range(100):
                assert (_large_output(4).fill_(number) == number).all()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        ts.memory.empty_pool()
    assert not failures


def test_a_much_larger_block_is_not_used(pool):
    address = _large_output(16).data_ptr()
    small = _large_output(8)
    assert small.data_ptr() != address
    assert _large_output(15).data_ptr() == address


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_forgets_its_parents_blocks():
    program = """
import os, torch
from tritonsoft import memory
torch.set_num_threads(1)  # torch's own operators would wait for threads that a child has not
def output(): return memory.empty((1, 1, 2048, 1024), torch.float32, torch.device("cpu"))
held, free = output().fill_(1), output()
del free
memory.pool._lock.acquire()  # as another thread might at the moment of the fork
child = os.fork()
if child == 0:
    mine = output().fill_(2)
    os._exit(0 if len(memory.pool._blocks) == 1 and (held == 1).all() and (mine == 2).all() else 1)
assert os.waitpid(child, 0)[1] == 0
memory.pool._lock.release()
assert (held == 1).all() and len(memory.pool._blocks) == 2
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)

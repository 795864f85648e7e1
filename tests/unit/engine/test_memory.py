"""Tests of the memory pool, of shared scratch memory, and of the memory budget."""

from __future__ import annotations

import itertools
import random
import re
import threading
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.engine_models import needs_runtime, needs_tensorrt
from vision.engine import library
from vision.engine.memory import (
    ALIGNMENT_BYTES,
    BudgetLine,
    MemoryBudget,
    MemoryPool,
    make_allocator,
    shared_scratch_bytes,
)
from vision.errors import DeviceError

MIB = 1 << 20


class PlainMemory:
    """Simulated GPU memory with unique addresses."""

    def __init__(self, total_bytes: int = 1 << 40) -> None:
        self.total_bytes = total_bytes
        self.held: dict[int, int] = {}
        self.waits: list[int | None] = []
        self.when_allocating: Callable[[], object] = lambda: None
        self._next = 1 << 20

    def allocate(self, size: int) -> int:
        self.when_allocating()
        if sum(self.held.values()) + size > self.total_bytes:
            return 0
        address = self._next
        self._next += size + 4096
        self.held[address] = size
        return address

    def free(self, address: int) -> None:
        del self.held[address]

    def synchronize(self, stream: int | None) -> None:
        self.waits.append(stream)

    def free_and_total_bytes(self) -> tuple[int, int]:
        return self.total_bytes - sum(self.held.values()), self.total_bytes


def test_freed_memory_is_reused() -> None:
    raw = PlainMemory()
    pool = MemoryPool(raw)
    first = pool.allocate(10 * MIB)
    assert pool.deallocate(first, 0)
    assert pool.allocate(10 * MIB) == first
    report = pool.report()
    assert (report.segments, report.reserved_bytes, report.used_bytes) == (1, 32 * MIB, 10 * MIB)
    assert (report.allocations, report.failures, report.peak_bytes) == (2, 0, 10 * MIB)


@pytest.mark.parametrize("alignment", [0, 1, 256, 512, 4096, 1 << 16])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 5 * MIB])
def test_addresses_are_aligned(alignment: int, size: int) -> None:
    pool = MemoryPool(PlainMemory())
    pool.allocate(1)
    address = pool.allocate(size, alignment)
    assert address % max(alignment, ALIGNMENT_BYTES) == 0


def test_request_of_size_0_allocates_nothing() -> None:
    pool = MemoryPool(PlainMemory())
    assert pool.allocate(0) == 0
    assert pool.report().allocations == 0


def test_request_larger_than_a_segment_gets_a_separate_segment() -> None:
    raw = PlainMemory()
    pool = MemoryPool(raw, segment_bytes=4 * MIB)
    pool.allocate(MIB)
    pool.allocate(103 * MIB)
    assert sorted(raw.held.values()) == [4 * MIB, 104 * MIB]


def test_free_neighbours_are_merged() -> None:
    raw = PlainMemory()
    pool = MemoryPool(raw, segment_bytes=8 * MIB)
    parts = [pool.allocate(2 * MIB) for _ in range(4)]
    for index in (0, 2, 3, 1):
        assert pool.deallocate(parts[index], 0)
    assert pool.allocate(8 * MIB) == parts[0]
    assert len(raw.held) == 1


def test_smallest_sufficient_gap_is_used() -> None:
    pool = MemoryPool(PlainMemory(), segment_bytes=16 * MIB)
    large, wall, small, _ = (pool.allocate(size * MIB) for size in (4, 1, 2, 1))
    assert wall
    pool.deallocate(large, 0)
    pool.deallocate(small, 0)
    assert pool.allocate(2 * MIB) == small


def test_freed_memory_is_reused_only_by_its_stream() -> None:
    raw = PlainMemory()
    pool = MemoryPool(raw)
    first = pool.allocate(MIB, stream=7)
    pool.deallocate(first, 7)
    other = pool.allocate(MIB, stream=8)
    assert other != first
    assert pool.allocate(MIB, stream=7) == first
    assert raw.waits == [], "work on one stream is in order, so no wait is needed"


@pytest.mark.parametrize(("freed_on", "waits"), [(7, []), (8, [8]), (None, [None])])
def test_freeing_on_another_stream_waits_for_the_first(freed_on: int | None, waits: list[int | None]) -> None:
    raw = PlainMemory()
    pool = MemoryPool(raw)
    assert pool.deallocate(pool.allocate(MIB, stream=7), freed_on)
    assert raw.waits == waits


def test_foreign_address_is_not_freed() -> None:
    pool = MemoryPool(PlainMemory())
    address = pool.allocate(MIB)
    assert not pool.deallocate(address + 256)
    assert pool.deallocate(address)
    assert not pool.deallocate(address), "twice"


def test_failed_request_is_recorded_with_sizes() -> None:
    pool = MemoryPool(PlainMemory(64 * MIB))
    pool.allocate(10 * MIB)
    assert pool.allocate(100 * MIB) == 0
    assert re.findall(r"\d+\.\d MiB", pool.last_failure) == [
        "100.0 MiB",
        "32.0 MiB",
        "64.0 MiB",
        "32.0 MiB",
        "10.0 MiB",
    ]
    assert pool.report().failures == 1
    assert pool.allocate(MIB), "it goes on"


def test_little_memory_is_used_completely() -> None:
    raw = PlainMemory(40 * MIB)
    pool = MemoryPool(raw)
    assert pool.allocate(20 * MIB, stream=1)
    assert pool.allocate(6 * MIB, stream=2), "no room for a whole segment, but for this"
    assert sorted(raw.held.values()) == [6 * MIB, 32 * MIB]


def test_unused_segments_of_other_streams_are_freed_before_a_failure() -> None:
    raw = PlainMemory(40 * MIB)
    pool = MemoryPool(raw)
    pool.deallocate(pool.allocate(20 * MIB, stream=1), 1)
    assert pool.allocate(30 * MIB, stream=2)
    assert raw.waits == [None], "stream 1 may not have come so far"
    assert list(raw.held.values()) == [30 * MIB]


def test_close_frees_everything_and_reports_memory_in_use() -> None:
    raw = PlainMemory()
    pool = MemoryPool(raw)
    address = pool.allocate(3 * MIB)
    with pytest.raises(DeviceError) as caught:
        pool.close()
    assert caught.value.code == "pool-in-use"
    pool.deallocate(address, 0)
    pool.close()
    pool.close()
    assert raw.held == {}


def test_finalizer_inside_an_allocation_runs_after_it() -> None:
    """Garbage collection can free TensorRT objects during any allocation, in the allocating thread."""
    raw = PlainMemory()
    pool = MemoryPool(raw, segment_bytes=2 * MIB)
    old = pool.allocate(MIB, stream=1)
    freed: list[bool] = []
    raw.when_allocating = lambda: freed.append(pool.deallocate(old, 1))
    new = pool.allocate(2 * MIB, stream=1)
    assert new != old
    assert freed == [True]
    assert pool.report().used_bytes == 2 * MIB
    raw.when_allocating = lambda: None
    assert pool.allocate(MIB, stream=1) == old


def test_threads_get_separate_memory() -> None:
    pool = MemoryPool(PlainMemory(), segment_bytes=4 * MIB)
    held: list[tuple[int, int]] = []
    lock = threading.Lock()
    overlaps: list[str] = []

    def work(seed: int) -> None:
        numbers = random.Random(seed)
        mine: list[tuple[int, int]] = []
        for _ in range(300):
            if mine and numbers.random() < 0.5:
                part = mine.pop(numbers.randrange(len(mine)))
                with lock:
                    held.remove(part)
                pool.deallocate(part[0], 0)
                continue
            size = numbers.randrange(1, MIB)
            part = (pool.allocate(size), size)
            with lock:
                if any(part[0] < start + length and start < part[0] + size for start, length in held):
                    overlaps.append(f"{part} in {held}")
                held.append(part)
            mine.append(part)
        for part in mine:
            with lock:
                held.remove(part)
            pool.deallocate(part[0], 0)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert overlaps == []
    assert pool.report().used_bytes == 0
    pool.close()


class PoolMachine(RuleBasedStateMachine):
    """State machine that checks, for any order of calls, that parts lie in segments, do not overlap, and add up."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = PlainMemory(256 * MIB)
        self.pool = MemoryPool(self.raw, segment_bytes=4 * MIB)
        self.parts: dict[int, tuple[int, int]] = {}  # address -> size, stream

    @rule(size=st.integers(1, 20 * MIB), power=st.integers(0, 16), stream=st.integers(0, 2))
    def allocate(self, size: int, power: int, stream: int) -> None:
        address = self.pool.allocate(size, 1 << power, stream)
        if address:
            assert address % max(1 << power, ALIGNMENT_BYTES) == 0
            assert address not in self.parts
            self.parts[address] = (size, stream)
        else:
            assert "requested" in self.pool.last_failure

    @precondition(lambda self: bool(self.parts))
    @rule(data=st.data(), same_stream=st.booleans())
    def deallocate(self, data: st.DataObject, same_stream: bool) -> None:
        address = data.draw(st.sampled_from(sorted(self.parts)))
        _, stream = self.parts.pop(address)
        assert self.pool.deallocate(address, stream if same_stream else None)

    @invariant()
    def parts_lie_in_segments_and_not_in_each_other(self) -> None:
        ordered = sorted(self.parts)
        for address, following in itertools.pairwise(ordered):
            assert address + self.parts[address][0] <= following
        for address in ordered:
            size = self.parts[address][0]
            assert any(start <= address and address + size <= start + length for start, length in self.raw.held.items())

    @invariant()
    def sums_are_right(self) -> None:
        report = self.pool.report()
        assert report.reserved_bytes == sum(self.raw.held.values())
        assert report.segments == len(self.raw.held)
        rounded = sum(-(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for size, _ in self.parts.values())
        assert report.used_bytes == rounded <= report.peak_bytes

    def teardown(self) -> None:
        for address, (_, stream) in self.parts.items():
            self.pool.deallocate(address, stream)
        self.pool.close()
        assert self.raw.held == {}


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


# ------------------------------------------------------------------------------------------------ calls by TensorRT


@needs_tensorrt
@pytest.mark.parametrize("stream", [0, 77])
def test_tensorrt_reaches_the_pool_with_the_right_stream(stream: int) -> None:
    """The real bindings pass either (flags, stream) or (stream, flags), depending on their version."""
    trt = library.trt
    raw = PlainMemory()
    pool = MemoryPool(raw)
    allocator = make_allocator(pool)
    memory = trt.IGpuAllocator.allocate_async(allocator, 1000, 256, 0, stream)
    assert pool.report().used_bytes == 1024
    assert trt.IGpuAllocator.deallocate_async(allocator, memory, stream)
    assert pool.report().used_bytes == 0
    assert raw.waits == [], "it was allocated on this stream"


@needs_runtime
def test_runtime_and_builder_take_the_allocator() -> None:
    trt = library.trt
    allocator = make_allocator(MemoryPool(PlainMemory()))
    setattr(trt.Runtime(library.logger()), "gpu_allocator", allocator)  # noqa: B010
    setattr(trt.Builder(library.logger()), "gpu_allocator", allocator)  # noqa: B010


@needs_tensorrt
def test_every_allocator_method_uses_the_pool() -> None:
    pool = MemoryPool(PlainMemory())
    allocator = make_allocator(pool)
    one = allocator.allocate(10, 256, 0)
    two = allocator.allocate_async(10, 256, 0, 9)
    assert one
    assert two
    assert allocator.reallocate(one, 256, 20) == 0, "not in place"
    assert allocator.deallocate(one) is True
    assert allocator.deallocate_async(two, 9) is True
    assert allocator.deallocate(one) is False
    assert allocator.allocate(0, 0, 0) == 0
    assert pool.report().used_bytes == 0


@needs_tensorrt
def test_allocator_reports_failures() -> None:
    pool = MemoryPool(PlainMemory(MIB))
    assert make_allocator(pool).allocate(2 * MIB, 0, 0) == 0
    assert "2.0 MiB" in pool.last_failure


def test_pool_report_is_one_line() -> None:
    pool = MemoryPool(PlainMemory(64 * MIB))
    kept, gone = pool.allocate(3 * MIB), pool.allocate(2 * MIB)
    pool.deallocate(gone)
    assert kept
    line = str(pool.report())
    assert re.findall(r"\d+\.\d MiB", line) == ["3.0 MiB", "5.0 MiB", "32.0 MiB"]
    assert not pool.allocate(256 * MIB)
    assert str(pool.report()).startswith(f"{line}, 1 ")


# ------------------------------------------------------------------------------------------------ scratch and budget


@pytest.mark.parametrize(
    ("contexts", "size"),
    [([100], 256), ([1000, 5000, 300], 5120), ([1024, 4096], 4096)],
)
def test_contexts_of_one_stream_share_the_largest_scratch_memory(contexts: list[int], size: int) -> None:
    assert shared_scratch_bytes(contexts) == size


def budget() -> MemoryBudget:
    return MemoryBudget(
        (
            BudgetLine("weights", "device", 7 * MIB),
            BudgetLine("activations per slot", "device", 50 * MIB, 3),
            BudgetLine("other per slot", "device", 24 * MIB, 3),
            BudgetLine("results per slot", "host", MIB, 3),
        )
    )


def test_budget_adds_up_by_place() -> None:
    assert budget().total_bytes("device") == (7 + 3 * (50 + 24)) * MIB
    assert budget().total_bytes("host") == 3 * MIB


def test_budget_table_has_aligned_columns_and_totals() -> None:
    lines = budget().table().splitlines()
    assert lines[0].split() == ["memory", "where", "each", "count", "total"]
    assert any(
        line.split() == ["activations", "per", "slot", "device", "50.0", "MiB", "3", "150.0", "MiB"] for line in lines
    )
    assert lines[-2].split() == ["total", "device", "229.0", "MiB"]
    assert lines[-1].split() == ["total", "host", "3.0", "MiB"]
    assert len({line.index("device") for line in lines if "device" in line}) == 1, "columns are aligned"


def test_budget_above_free_memory_names_the_largest_part() -> None:
    budget().require(229 * MIB, 8192 * MIB)
    with pytest.raises(DeviceError) as caught:
        budget().require(228 * MIB, 8192 * MIB)
    assert caught.value.code == "memory-budget"
    assert re.findall(r"\d+\.\d MiB", str(caught.value)) == ["229.0 MiB", "150.0 MiB", "228.0 MiB", "8192.0 MiB"]
    assert "max_batch" in caught.value.hint


def test_jetson_budget_counts_both_kinds_of_memory() -> None:
    budget().require(10 * MIB, 232 * MIB, shared_with_host=True)
    with pytest.raises(DeviceError) as caught:
        budget().require(10 * MIB, 231 * MIB, shared_with_host=True)
    assert caught.value.code == "memory-budget"


def test_budget_line_total_is_bytes_times_count() -> None:
    assert BudgetLine("x", "host", 5, 3).total_bytes == 15

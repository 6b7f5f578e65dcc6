"""The benchmark's rivals give right answers, and its results are written down as they are."""

import csv
import dataclasses
import functools
import importlib.util
import os
from pathlib import Path

import pytest
import torch

import tritonsoft as ts
from bench import floor, goals, measure, report
from bench.cases import Case, cases
from bench.report import Machine, Row
from bench.rivals import Rival

# Of every kind of case the first, those of a GPU too, small and on the CPU.
SMALL: dict[object, Case] = {}
for device in ("cpu", "cuda"):
    for case in cases(device):
        source = (360, 480) if case.content == "CamVid" else (48, 80)
        kind = (case.task, case.has_boxes, case.only_image, case.content, case.num_classes > 32, case.dtype.itemsize)
        SMALL.setdefault(kind, dataclasses.replace(case, device="cpu", batch=2, source=source))
MACHINE = Machine("Test Device, 2 cores", 2, "numba", 10.0, *["1.0"] * 8, "abc", "2026-01-01")


@pytest.mark.parametrize("case", SMALL.values(), ids=lambda case: case.title)
def test_rivals_are_right(case: Case) -> None:
    half = case.dtype == torch.float16
    for rival in case.rivals:
        if rival.missing("cpu") is not None or rival.compiled or (half and rival.only_on == "cpu"):
            continue
        try:
            result = rival.prepare()(*case.arguments())
        except NotImplementedError:
            if half:  # torch lacks some kernels in half precision on a CPU
                continue
            raise
        answer, error = measure.judge(rival, case, result, case.expected)
        assert answer != "WRONG", f"{rival.name} is off by {error}"


def test_gradients_of_half_precision_are_in_its_range() -> None:
    """A GPU's cases take means over millions of pixels."""
    for task in ("cross entropy", "area cross entropy", "dice"):
        case = Case(task, "cpu", torch.float16, 1, (1024, 1024), 2, 3)
        for rival in case.rivals:
            if rival.missing("cpu") is None and not rival.compiled:
                answer, error = measure.judge(rival, case, rival.prepare()(*case.arguments()), case.expected)
                assert answer != "WRONG", f"{rival.name} is off by {error}"


def test_a_wrong_answer_is_seen() -> None:
    case = next(iter(SMALL.values()))
    judge = functools.partial(measure.judge, Rival("wrong", lambda: None), case, expected=case.expected)
    (right,) = case.expected("area")
    assert judge(right)[0] == "exact"
    unwritten = right.clone()
    unwritten[-1, -1, -1, -1] = float("nan")
    assert judge(unwritten)[0] == judge(right[:, 1:])[0] == judge(right + 0.001)[0] == "WRONG"


def test_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timed = {"milliseconds": 2.0, "lower_quartile": 1.0, "upper_quartile": 3.0, "share_of_floor": 0.5, "ratio": 1.0}
    rows = [
        Row("cpu", "a case", "tritonsoft", 10**6, 10**7, "exact", 0.0, peak_bytes=7_000_000, **timed),
        Row("cpu", "a case", "slow", 10**6, 10**7, "approximate", 0.25, **{**timed, "milliseconds": 5.0, "ratio": 2.5}),
        Row("cpu", "a case", "bad", 10**6, 10**7, "WRONG", 0.5),
        Row("cpu", "a case", "absent", 10**6, 10**7, "missing", note="absent is not installed"),
    ]
    path = report.csv_path(tmp_path, MACHINE)
    assert path.name == "test-device-2-cores.csv"
    report.write_csv(path, rows, MACHINE)
    written = list(csv.DictReader(path.open(newline="")))
    assert [row["ratio"] for row in written] == ["1", "2.5", "", ""]
    assert [row["milliseconds"] for row in written] == ["2", "5", "", ""]
    assert {row["commit"] for row in written} == {"abc"}

    other = Row("cpu", "another case", "tritonsoft", 10**6, 10**7, "exact", 0.0, **timed)
    report.add_to_csv(path, [other], dataclasses.replace(MACHINE, commit="def"))
    report.add_to_csv(
        path, [dataclasses.replace(rows[0], milliseconds=4.0)], dataclasses.replace(MACHINE, commit="ghi")
    )
    added = [(row["case"], row["milliseconds"], row["commit"]) for row in csv.DictReader(path.open(newline=""))]
    assert added == [("a case", "4", "ghi"), ("another case", "2", "def")]

    lines = [report.cells(row) for row in rows]
    assert lines[0] == ("tritonsoft", "exact", "2.00", "100%", "", "", "1.00", "7", "50%")
    assert lines[1][1] == "approximate: off by 0.25"
    assert lines[2] == ("bad", "WRONG: off by 0.5", *[""] * 7)
    assert lines[3][1] == "missing: absent is not installed"
    report.print_machine(MACHINE)
    report.print_table(rows)
    rich = capsys.readouterr().out
    report.print_plain("a case", report.COLUMNS, report.WIDTHS, lines)
    for text in (rich, capsys.readouterr().out):
        assert "missing: absent is not installed" in text
        assert "WRONG: off by 0.5" in text


def test_a_call_beside_busy_processes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("numba", reason="only its threads are chosen from")
    from bench import test_busy
    from tritonsoft.backends.numba.threads import pool

    num_threads = torch.get_num_threads()
    with test_busy.processes(2), test_busy.way("one_thread"):
        assert torch.get_num_threads() == 1
    for way, expected in {"openmp": True, "own_threads": False}.items():
        with test_busy.way(way):
            assert pool._team_is_running(2) is expected
    assert torch.get_num_threads() == num_threads
    report.print_busy([report.Busy("cpu", "a call", 2, 3.0, 2.0, None, 1.0, 4.0, 2.5, 1.5)])
    printed = capsys.readouterr().out
    assert "beside 2 spinning processes" in printed
    assert "1.50" in printed


def test_ways_to_shrink_a_data_set_give_what_ours_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("PIL", "safetensors"):
        pytest.importorskip(package, reason=f"pictures and labels need {package}")
    import numpy as np
    from PIL import Image

    from bench import test_data_sets as ways
    from tritonsoft.data import ShrunkDataset, pair_files

    for kind, shape in (("images", (32, 48, 3)), ("labels", (32, 48))):
        for number in range(2):
            (tmp_path / kind).mkdir(exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 5, shape, np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.png")
    pairs, _ = pair_files(tmp_path / "images", tmp_path / "labels")
    small = {pair.name: Image.new("RGB", (12, 8)) for pair in pairs}
    for way in ways.SHRINKING:
        package = ways.PACKAGES.get(way)
        if package is None or importlib.util.find_spec(package) is not None:
            ways.shrink_all(way, pairs, 5, 255, tmp_path / "out" / way, small)
    image, labels = ShrunkDataset(tmp_path / "out" / ways.OURS)[0]
    for way, call in ways.OF_PACKAGE.items():
        if importlib.util.find_spec(ways.PACKAGES[way]) is not None:
            theirs, soft = call(pairs[0], 5)
            torch.testing.assert_close(image.permute(1, 2, 0), torch.from_numpy(theirs), rtol=0, atol=1)
            # Ours keeps four of the five classes.
            error = (labels.to_dense() - torch.from_numpy(soft) / 255).abs().max()
            assert error <= 1 / 255 + labels.rest.max()
    report.print_data_sets(
        [
            report.DataSetTime("cpu", "pictures", "shrink", "tritonsoft", 2, 3.0, 1.0, 2e3, 1e3, 4e3),
            report.DataSetTime("cpu", "pictures", "shrink", "absent", note="absent is not installed"),
        ]
    )
    assert "absent: absent is not installed" in capsys.readouterr().out


def test_the_pages_show_what_the_results_hold() -> None:
    for package in ("typer", "rich"):
        pytest.importorskip(package, reason=f"the figures' command needs {package}")
    from bench import plot

    assert plot.with_chosen_rows(plot.README.read_text()) == plot.README.read_text(), "run make figures"
    assert plot.with_sections(plot.BENCHMARKS.read_text()) == plot.BENCHMARKS.read_text(), "run make figures"
    assert plot.with_goals(plot.GPU.read_text()) == plot.GPU.read_text(), "run make figures"


def test_loops_read_fill_and_copy() -> None:
    pytest.importorskip("numba", reason="they are compiled by Numba")
    from bench import memory_loops

    source = torch.randn(100_003)
    out = torch.full_like(source, torch.nan)
    memory_loops.copy(source, out)
    assert torch.equal(out, source)
    memory_loops.fill(out, 0.25)
    assert torch.equal(out, torch.full_like(out, 0.25))
    numbers = torch.arange(-5, 100_003)
    assert memory_loops.read(numbers) == int(numbers.sum())


def test_triton_kernels_read_fill_and_copy() -> None:
    pytest.importorskip("triton")
    from bench import memory_kernels

    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not (is_interpreted or torch.cuda.is_available()):
        pytest.skip("no device for Triton")
    device = torch.device("cpu" if is_interpreted else "cuda")
    source = torch.randn(2 * memory_kernels.BLOCK + 5, device=device)
    out, sums = torch.full_like(source, torch.nan), torch.empty(3, device=device)
    memory_kernels.copy(source, out).run(device)
    assert torch.equal(out, source)
    memory_kernels.fill(out, 0.25).run(device)
    assert torch.equal(out, torch.full_like(out, 0.25))
    memory_kernels.read(source, sums).run(device)
    expected = torch.stack([part.sum() for part in source.split(memory_kernels.BLOCK)])
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-3)


def test_the_floor_takes_reads_and_writes_at_their_own_rates(tmp_path: Path) -> None:
    rates = [("read", 8.0), ("fill", 2.0), ("copy", 3.0)]
    rows = [report.MemoryRate("cpu", access, 0, 0, None, None, None, rate, "by hand") for access, rate in rates]
    report.write_csv(report.csv_path(tmp_path, MACHINE, "-rates"), rows, MACHINE)
    recorded = floor.recorded_rates("test-device-2-cores", tmp_path)
    assert recorded == floor.Rates(8e9, 2e9, 3e9)
    assert floor.seconds(floor.Traffic(16 * 10**9, 10**9), recorded) == pytest.approx(2.5)
    assert {case.traffic().written > 0 for case in SMALL.values()} == {True}
    labels = Case("shrink labels", "cpu", torch.float16, 2, (48, 80), 2, 3)
    assert labels.traffic() == (2 * 48 * 80, 2 * 3 * 24 * 40 * 2)
    assert dataclasses.replace(labels, task="cross entropy").traffic() == (2 * 2 * 3 * 24 * 40 * 2, 2 * 3 * 24 * 40 * 2)


def test_a_calls_device_time_is_all_that_follows_the_mark() -> None:
    events = [
        ("mark", 5.0, 9.0),
        ("a", 15.0, 1.0),
        ("warm", 1.0, 7.0),
        ("mark", 20.0, 9.0),
        ("b", 31.0, 2.0),
        ("a", 30.0, 1.0),
    ]
    assert measure.sums_after(events, "mark") == [1.0, 3.0]
    assert measure.sums_after([("mark", 0.0, 1.0), ("mark", 2.0, 1.0)], "mark") == [0.0, 0.0]


def test_a_gpus_calls_run_and_write_what_their_floor_counts() -> None:
    from bench.gpu_calls import Inputs, calls

    found = {call.name: call for call in calls(Inputs("cpu", 2, 48, 80))}
    assert len(found) == len(list(calls(Inputs("cpu", 2, 48, 80))))  # no two of one name
    for name, call in found.items():
        result = call.make()()
        if isinstance(result, ts.SparseLabels):
            result = (result.index, result.mass, result.rest)
        if call.traffic.written:
            tensors = (result,) if isinstance(result, torch.Tensor) else result
            assert call.traffic.written == sum(tensor.nbytes for tensor in tensors), name
    with (floor.RESULTS / "nvidia-h100-80gb-hbm3-kernels.csv").open(newline="") as file:
        assert {row["kernel"] for row in csv.DictReader(file)} <= set(found)


def test_loops_are_counted_by_their_source() -> None:
    pytest.importorskip("triton")
    from bench import machine_code

    loops = [(16, "row in range(rows)"), (32, "column in range(columns)"), (64, "row in range(rows)")]
    trips = {"row in range(rows)": 3.0, "column in range(columns)": 2.0}
    assert machine_code._trips_of(loops, trips) == [(16, 3.0), (32, 2.0), (64, 3.0)]
    assert machine_code._trips_of(loops, [1, 2, 3]) == [(16, 1), (32, 2), (64, 3)]
    for wrong in ([1, 2], {"row in range(rows)": 3.0}, {**trips, "gone": 1.0}):
        with pytest.raises(ValueError, match="the loops in the machine code are"):
            machine_code._trips_of(loops, wrong)


def test_figures_are_drawn_from_the_results(tmp_path: Path) -> None:
    pytest.importorskip("typer", reason="the figures' command needs typer")
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    from bench import plot

    drawn = [(plot.draw_rivals, rows) for _, rows in plot.results()]
    drawn += [(plot.draw_scaling, rows) for _, rows in plot.results("-scaling")]
    assert len(drawn) >= 2
    for number, (draw, rows) in enumerate(drawn):
        draw(rows, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 10_000


def test_the_table_holds_the_fastest_right_rival_and_the_usual_way() -> None:
    pytest.importorskip("typer", reason="the figures' command needs typer")
    from bench import plot

    shared = {"case": "shrink labels: a case", "share_of_floor": "0.5", "peak_bytes": "1000000", "usual": "False"}
    rows = [
        {**shared, "rival": "tritonsoft", "answer": "exact", "milliseconds": "2", "ratio": "1"},
        {**shared, "rival": "fill", "answer": "no answer", "milliseconds": "1", "ratio": "0.5"},
        {**shared, "rival": "near", "answer": "approximate", "error": "0.25", "milliseconds": "3", "ratio": "1.5"},
        {**shared, "rival": "slow", "answer": "exact", "milliseconds": "9", "ratio": "4.5"},
        {**shared, "rival": "right", "answer": "exact, triangle", "milliseconds": "5", "ratio": "2.5"},
        {**shared, "rival": "absent", "answer": "missing", "milliseconds": "", "ratio": ""},
    ]
    rows = [row | {"device_milliseconds": "", "host_milliseconds": ""} for row in rows]  # a CPU's
    rows[2]["usual"] = "True"
    line = plot.table(rows).splitlines()[-1]
    assert "| a case | 2 ms | 50% | 1 MB | right: 2.5x the time, 1x the memory |" in line
    assert "| near: 1.5x the time, 1x the memory, off by up to 0.25 |" in line


def test_goals_beside_other_rows_are_held_against_them() -> None:
    row = {"case": "mix up: 8 x 2x2 -> 2x2, pairs", "rival": "a copy of the outputs", "ratio": "0.5"}
    (line,) = goals.between([row, {**row, "rival": "another"}, {**row, "ratio": ""}]).splitlines()[2:]
    assert line == "| mix up: 8 x 2x2 -> 2x2 | a copy of the outputs | 1.2x | 2x |"
    assert goals.between([{**row, "case": "dice: 8 x 2x2"}]) == ""
    known = {(case.task, rival.name) for device in ("cpu", "cuda") for case in cases(device) for rival in case.rivals}
    assert {(goal.task, goal.other) for goal in goals.BETWEEN} <= known


def test_predictions_stand_beside_what_a_gpu_has_measured(tmp_path: Path) -> None:
    for package in ("triton", "rich", "typer"):
        pytest.importorskip(package, reason=f"the table of costs needs {package}")
    from bench import kernel_cost

    case = next(case for case in cases("cuda") if case.factor == 2)
    timed = {"milliseconds": 0.1, "lower_quartile": 0.1, "upper_quartile": 0.1}
    rows = [Row("cuda", case.title, name, *case.traffic(), "exact", 0.0, **timed) for name in ("tritonsoft", "other")]
    h200 = dataclasses.replace(MACHINE, device_name="NVIDIA H200")
    report.write_csv(report.csv_path(tmp_path, h200), rows, h200)
    assert kernel_cost.measurements("H200", tmp_path) == {"soft C=19 k=2 street": 100.0}
    assert kernel_cost.measurements("B200", tmp_path) == {}


def test_the_cost_model_was_fitted_to_the_profiles() -> None:
    """What it is off by more than 30% is known: stores of part sectors, and conflicts of banks in shared memory."""
    pytest.importorskip("rich", reason="the model's table needs rich")
    from bench import cost_model

    profiles = cost_model.read_profiles()
    latencies = cost_model.fit(list(profiles.values()))
    assert latencies == cost_model.H100.latencies
    errors = {name: cost_model.off_by(*profile, latencies) for name, profile in profiles.items()}
    blind = {"soft C=150 k=1.5 odd width", "overlap", "overlap gradient"}
    assert {name for name, error in errors.items() if abs(error) > 0.3} == blind


def test_the_cost_model_knows_occupancy_and_its_limits() -> None:
    pytest.importorskip("rich", reason="the model's table needs rich")
    from bench import cost_model

    with cost_model.PROFILES.open(newline="") as file:
        for row in csv.DictReader(file):
            warps = float(row["theoretical_occupancy_percent"]) / 100 * 16
            assert float(row["compiled_warps_per_scheduler"]) == warps
    assert cost_model.warps_per_scheduler(32, 1, 0, 228 * 1024) == 8  # 32 programs
    assert cost_model.warps_per_scheduler(32, 4, 56 * 1024, 228 * 1024) == 4  # four take all the shared memory

    device = cost_model.Device(1, 1e9, 1e9, 1e9, cost_model.Latencies(100, 0))
    launch = cost_model.Profiled(50, 0, 70, 2, 1, 32, warps=4, warps_per_scheduler=1, read=128, written=0)
    # One warp a scheduler: 50 cycles to issue, 20 of latencies, two waits for memory, 4 for the cache and 128 to move.
    assert cost_model.predict(launch, device) == pytest.approx((70 + 200 + 4 + 128) * 1e-9)
    # So many that memory is always busy.
    many = launch._replace(warps=4000, warps_per_scheduler=1000, read=128_000)
    assert cost_model.predict(many, device) == pytest.approx(cost_model.floor(128_000, 0, device), rel=0.01)

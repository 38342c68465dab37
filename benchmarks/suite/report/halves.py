"""Tables of a dtype other than float32: beside float32, and beside peers in the same dtype."""

from __future__ import annotations

from benchmarks.suite.models import COMPILED
from benchmarks.suite.networks import NAT, NAT_IN_FLOAT32, SWIN
from benchmarks.suite.op import IN_FLOAT32, OURS
from benchmarks.suite.report.results import Results
from benchmarks.suite.report.tables import Table, digits, ms, of_peer, peer_names, times


def operator(results: Results, which: str) -> Table:
    """Medians in ms of ours, of ours in float32 and of peers, and the two ratios."""
    found = results.operator("op", which)
    peers = peer_names(found)
    rows = []
    for one in found:
        ours = [ms(one.seconds(OURS)), ms(one.seconds(IN_FLOAT32)), times(one.ratio(OURS, IN_FLOAT32))]
        rows.append([one.name, *ours, *(of_peer(one, peer) for peer in peers), times(one.over_peer)])
    return Table(["", OURS, IN_FLOAT32, "ours / float32", *peers, "best peer / ours"], rows)


def models(results: Results) -> Table:
    """NAT-Tiny in both dtypes, and Swin-T: ms."""
    rows = []
    for case in results.cases("models"):
        found = results.comparison("models", case)
        names = [f"{name}, {COMPILED}" for name in (NAT, NAT_IN_FLOAT32, SWIN)]
        ratios = [times(found.ratio(names[0], other)) for other in names[1:]]
        rows.append([case, *(ms(found.seconds(name)) for name in names), *ratios])
    return Table(["", NAT, NAT_IN_FLOAT32, SWIN, "NAT-Tiny / in float32", "NAT-Tiny / Swin-T"], rows)


def training(results: Results) -> Table:
    """Steps of NAT-Tiny under autocast and in float32: ms."""
    rows = []
    for case in results.cases("training"):
        found = results.comparison("training", case)
        seconds = [ms(found.seconds(name)) for name in (NAT, NAT_IN_FLOAT32)]
        rows.append([case, *seconds, times(found.ratio(NAT, NAT_IN_FLOAT32))])
    return Table(["", NAT, NAT_IN_FLOAT32, "NAT-Tiny / in float32"], rows)


def memory(results: Results) -> Table:
    """Peaks in MB, and their ratio."""
    cases, rows = results.cases("memory"), []
    for name, case in cases.items():
        other = cases.get(name.replace(OURS, IN_FLOAT32))
        if other is not None and IN_FLOAT32 not in name:
            peaks = [case["peak"], other["peak"]]
            label = name.replace(f", {OURS}", "")
            rows.append([label, *(digits(peak / 1e6) for peak in peaks), times(peaks[0] / peaks[1])])
    return Table(["", "MB", "in float32, MB", "ours / float32"], rows)


def packed_share(results: Results) -> float | None:
    """The peak of a forward pass over its output and as many bytes as float32 takes beside its own output.

    Inputs are three tensors of the output's size.
    """
    found: dict[bool, tuple[float, float]] = {}
    for name, case in results.cases("memory").items():
        if not name.endswith(", backward"):
            found[name.endswith(IN_FLOAT32)] = case["peak"], case["inputs"] / 3
    if len(found) < 2:
        return None
    (peak, out), (peak_in_float32, out_in_float32) = found[False], found[True]
    return peak / (out + max(0.0, peak_in_float32 - out_in_float32))

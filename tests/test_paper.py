import pytest

from gengap import paper

NETWORKS = ["F1", "F2", "C1", "C2", "C3", "C4"]

# LB / SB as worked out by hand from Tables 3 and 4, epsilon 1e-3 and 5e-4; F2's first is 223.48
RATIOS_3 = {
    "F1": (167, 70),
    "F2": (223, 104),
    "C1": (25, 32),
    "C2": (107, 85),
    "C3": (8.7, 12),
    "C4": (33, 27),
}
RATIOS_4 = {"F1": (84, 183), "F2": (81, 126), "C1": (63, 42), "C2": (26, 19), "C3": (14, 22), "C4": (12, 11)}
GAPS = {"F1": 0.22, "F2": 4.57, "C1": 2.78, "C2": 1.98, "C3": 3.13, "C4": 5.27}


@pytest.mark.parametrize("table", [paper.TABLE_2, paper.TABLE_3, paper.TABLE_4, paper.TABLE_7])
def test_tables_hold_all_six_networks_and_both_methods(table):
    assert list(table) == NETWORKS
    assert all(list(columns) == ["SB", "LB"] for columns in table.values())


@pytest.mark.parametrize(("table", "ratios"), [(paper.TABLE_3, RATIOS_3), (paper.TABLE_4, RATIOS_4)])
@pytest.mark.parametrize("network", NETWORKS)
def test_ratio_of_large_to_small_batch_sharpness(table, ratios, network):
    for epsilon, expected in zip((1e-3, 5e-4), ratios[network], strict=True):
        ratio = table[network]["LB"][epsilon][0] / table[network]["SB"][epsilon][0]
        assert round(ratio, 0 if expected >= 10 else 1) == expected


@pytest.mark.parametrize("network", NETWORKS)
def test_generalisation_gap(network):
    row = paper.TABLE_2[network]
    assert row["SB"]["test"][0] - row["LB"]["test"][0] == pytest.approx(GAPS[network], abs=1e-9)


def test_cells_as_printed():
    assert paper.TABLE_2["F2"]["LB"]["train"] == (98.35, 2.08)
    assert paper.TABLE_2["C4"]["SB"]["test"] == (63.08, 0.5)
    assert paper.TABLE_3["C3"]["LB"][1e-3] == (258.75, 8.96)
    assert paper.TABLE_3["C2"]["SB"][5e-4] == (2.07, 0.86)
    assert paper.TABLE_4["C3"]["LB"][5e-4] == (86.96, 27.39)
    assert paper.TABLE_6["C4"]["LB"][1e-3] == (271.06, 29.69)
    assert paper.TABLE_7["C2"]["LB"]["test"] == (88.495, 0.63)


@pytest.mark.parametrize(
    ("table", "ratios"),
    [
        (paper.TABLE_6, {"C1": 0.33, "C2": 0.51, "C3": 0.40, "C4": 0.64}),
        (paper.TABLE_7, {"F1": 1.13, "F2": 2.99, "C1": 0.74, "C2": 0.68, "C3": 1.31, "C4": 0.84}),
    ],
)
def test_sharpness_of_a_remedy_against_plain_large_batch(table, ratios):
    for network, expected in ratios.items():
        ratio = table[network]["LB"][1e-3][0] / paper.TABLE_3[network]["LB"][1e-3][0]
        assert ratio == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(
    ("network", "curve", "expected"),
    [  # at epochs 1, 5, 10, 20, 50, 99
        ("F2", "SB_test", (47.1, 57.4, 60.8, 62.8, 63.8, 64.7)),
        ("F2", "LB_train", (11.0, 38.3, 51.7, 61.8, 79.0, 93.9)),
        ("C1", "SB_train", (44.9, 73.6, 82.5, 91.8, 97.5, 98.5)),
        ("C1", "LB_test", (49.0, 65.5, 72.2, 76.3, 77.5, 77.1)),
    ],
)
def test_curves_of_figure_2(network, curve, expected):
    x, y = paper.figure("fig2_curves")[network][curve]
    assert x == tuple(range(1, 100))
    assert [y[epoch - 1] for epoch in (1, 5, 10, 20, 50, 99)] == pytest.approx(expected, abs=0.051)


def test_every_curve_has_as_many_x_as_y():
    names = ["fig2_curves", "fig3_linear", "fig4_batchsize", "fig5_warmstart", "fig6_sharp_vs_xent"]
    for name in [*names, "fig7_curvilinear"]:
        for curves in paper.figure(name).values():
            assert curves and all(len(x) == len(y) > 20 for x, y in curves.values())


def test_linear_path_starts_at_small_batch_and_ends_at_large():
    alpha, accuracy = paper.figure("fig3_linear")["C1"]["test_acc"]
    assert accuracy[alpha.index(0)] == 80.52
    assert accuracy[alpha.index(1)] == 77.26


def test_an_unknown_figure_is_refused_by_name():
    with pytest.raises(ValueError, match=r"fig99.*fig2_curves"):
        paper.figure("fig99")


def test_a_caller_cannot_change_what_the_next_one_reads():
    paper.figure("fig2_curves")["C1"].clear()
    assert "SB_test" in paper.figure("fig2_curves")["C1"]

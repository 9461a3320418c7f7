"""Results of cells as data: tables, charts, lists and dictionaries. Each is strict JSON, and nothing of it shows elsewhere."""

import base64
import datetime
import unittest

from interpreter import InterpreterTest, main

PLOT = "import datetime as dt, matplotlib.pyplot as plt, numpy as np, pandas as pd\n"


class Tables(InterpreterTest):
    def columns(self, code):
        result = self.only_result(f"import datetime as dt, decimal, numpy as np, pandas as pd\n{code}")
        self.assertIn("<table", result["html"])
        self.assertTrue(result["text"])
        return result["data"]

    def test_a_column_that_is_not_text_costs_no_other(self):
        data = self.columns("pd.DataFrame({'a': [1, 2], 'b': [b'\\xff\\x00', b'x'], 'c': [object, print]})")
        self.assertEqual((data["a"], data["b"]), ([1, 2], ["\\xff\x00", "x"]))
        self.assertEqual(len(data["c"]), 2)

    def test_a_value_whose_own_methods_fail_costs_itself_only(self):
        data = self.columns(
            "import numbers\n"
            "class Bad: pass\n"
            "numbers.Real.register(Bad)\n"
            "pd.DataFrame({'a': [1, Bad()], 'b': [2, 3]})"
        )
        self.assertEqual(data, {"a": [1, None], "b": [2, 3]})

    def test_columns_of_one_name_are_all_there(self):
        data = self.columns("pd.DataFrame([[1, 2, 3, 4]], columns=['a', 'a', 'a.1', 1])")
        self.assertEqual(data, {"a": [1], "a.1": [2], "a.1.1": [3], "1": [4]})

    def test_dates_keep_their_zone(self):
        data = self.columns(
            "pd.DataFrame({'aware': pd.to_datetime(['2024-01-01T00:00+01:00', None]),"
            " 'berlin': pd.date_range('2024-07-01', periods=2, tz='Europe/Berlin'),"
            " 'naive': [pd.Timestamp('2024-01-01'), pd.NaT],"
            " 'mixed': pd.Series([pd.Timestamp('2024-01-01T00:00+01:00'), dt.date(2024, 1, 2)], dtype=object),"
            " 'span': [pd.Timedelta('1D 2h'), dt.timedelta(seconds=-1)],"
            " 'numpy': pd.Series([np.datetime64('2024-01-01T01:02:03'), dt.time(1, 2)], dtype=object)})"
        )
        self.assertEqual(data["aware"], ["2024-01-01T00:00:00+01:00", None])
        self.assertEqual(data["berlin"], ["2024-07-01T00:00:00+02:00", "2024-07-02T00:00:00+02:00"])
        self.assertEqual(data["naive"], ["2024-01-01T00:00:00", None])
        self.assertEqual(data["mixed"], ["2024-01-01T00:00:00+01:00", "2024-01-02"])
        self.assertEqual(data["span"], ["P1DT2H0M0S", "P-1DT23H59M59S"])
        self.assertEqual(data["numpy"], ["2024-01-01T01:02:03", "01:02:00"])

    def test_numbers_that_json_has_none_for_are_null(self):
        data = self.columns(
            "pd.DataFrame({'f': [1.5, float('nan')], 'i': [float('inf'), -0.0], 'n': pd.array([1, None], dtype='Int64'),"
            " 'c': [1j, None], 'd': [decimal.Decimal('1.25'), decimal.Decimal('NaN')], 'l': [[1, float('nan')], {'k': (1,)}],"
            " 'k': pd.Categorical(['x', None]), 'b': [True, np.bool_(False)], 'a': [np.arange(2), np.float32(0.5)]})"
        )
        self.assertEqual(data["f"], [1.5, None])
        self.assertEqual(data["i"], [None, 0])
        self.assertEqual(data["n"], [1, None])
        self.assertEqual(data["c"][0], "1j")
        self.assertEqual(data["d"], [1.25, None])
        self.assertEqual(data["l"], [[1, None], {"k": [1]}])
        self.assertEqual(data["k"], ["x", None])
        self.assertEqual(data["b"], [True, False])
        self.assertEqual(data["a"], [[0, 1], 0.5])

    def test_warnings_that_are_exceptions_leave_the_data(self):
        data = self.columns("import warnings; warnings.simplefilter('error')\npd.DataFrame({'a': [b'\\xff', 1]})")
        self.assertEqual(data, {"a": ["\\xff", 1]})
        self.run_cell("warnings.simplefilter('default')")

    def test_a_table_that_is_too_large_has_no_data(self):
        result = self.only_result("pd.DataFrame({'a': [list(range(200_000))]})")
        self.assertNotIn("data", result)
        self.assertIn("<table", result["html"])


class Charts(InterpreterTest):
    def chart(self, code):
        result = self.only_result(f"{PLOT}{code}\nplt.show()")
        self.assertTrue(base64.b64decode(result["png"]).startswith(b"\x89PNG"))
        return result["chart"]

    def points(self, code):
        chart = self.chart(code)
        return [element["points"] for element in chart["elements"]]

    def test_a_missing_date_costs_its_point_only(self):
        index = "pd.to_datetime(['2024-01-01', None, '2024-01-03'])"
        chart = self.chart(f"plt.plot({index}, [1, 2, 3])")
        self.assertEqual(chart["x_scale"], "datetime")
        self.assertEqual(chart["elements"][0]["points"], [["2024-01-01T00:00:00", 1], ["2024-01-03T00:00:00", 3]])

    def test_dates_are_dates_however_they_are_plotted(self):
        wanted = [["2024-01-01T00:00:00", 1], ["2024-01-02T00:00:00", 2]]
        index = "pd.date_range('2024-01-01', periods=2)"
        for code in [
            f"plt.plot({index}, [1, 2])",
            f"pd.DataFrame({{'v': [1, 2]}}, index={index}).plot(ax=plt.gca())",
            f"pd.Series([1, 2], index={index}).plot()",
            "plt.plot([dt.date(2024, 1, 1), dt.date(2024, 1, 2)], [1, 2])",
            "plt.plot(np.array(['2024-01-01', '2024-01-02'], dtype='datetime64[D]'), [1, 2])",
            f"plt.scatter({index}, [1, 2])",
            f"plt.plot({index}, [1, 2]); plt.xticks([])",
        ]:
            with self.subTest(code):
                chart = self.chart(code)
                self.assertEqual((chart["x_scale"], chart["y_scale"]), ("datetime", "linear"))
                self.assertEqual(chart["elements"][0]["points"], wanted)
                for tick in chart["x_ticks"]:
                    datetime.datetime.fromisoformat(tick)
                self.assertEqual(len(chart["x_ticks"]), len(chart["x_tick_labels"]))

    def test_dates_of_a_chart_keep_their_zone(self):
        points = self.points("plt.plot(pd.date_range('2024-07-01', periods=2, tz='Europe/Berlin'), [1, 2])")
        self.assertEqual(points[0][0], ["2024-07-01T00:00:00+02:00", 1])

    def test_a_scatter_leaves_out_what_is_missing(self):
        points = self.points("plt.scatter([1, float('nan'), 3], [1, 2, float('nan')])")
        self.assertEqual(points, [[[1, 1]]])
        self.assertEqual(self.points("plt.scatter([1, None, 3], [4, 5, 6])"), [[[1, 4], [3, 6]]])

    def test_numbers_that_json_has_none_for_are_left_out(self):
        self.assertEqual(self.points("plt.plot([1, 2, 3], [1, float('inf'), float('nan')])"), [[[1, 1]]])
        bars = self.chart("plt.bar(['a', 'b'], [1, float('nan')])")
        self.assertEqual(bars["elements"], [{"label": "a", "group": "Group 0", "value": 1}])

    def test_categories_have_their_names(self):
        chart = self.chart("plt.plot([1, 2], ['A', 'B'])")
        self.assertEqual((chart["x_scale"], chart["y_scale"]), ("linear", "categorical"))
        self.assertEqual(chart["elements"][0], {"label": "Line 0", "points": [[1, "A"], [2, "B"]]})

    def test_labels_units_and_series_are_as_clients_read_them(self):
        chart = self.chart(
            "plt.plot([1], [2], label='v'); plt.axhline(1); plt.xlabel('time (s)'); plt.ylabel('length [m]'); plt.yscale('log')"
        )
        self.assertEqual((chart["type"], chart["title"]), ("line", None))
        self.assertEqual((chart["x_unit"], chart["y_unit"], chart["y_scale"]), ("s", "m", "log"))
        self.assertEqual(chart["elements"], [{"label": "v", "points": [[1, 2]]}])

    def test_bars_over_dates_are_named_by_them(self):
        chart = self.chart("plt.bar(pd.date_range('2024-01-01', periods=2), [1, 2])")
        self.assertEqual([bar["label"] for bar in chart["elements"]], ["2024-01-01T00:00:00", "2024-01-02T00:00:00"])

    def test_bars_that_lie_are_the_same_chart_as_bars_that_stand(self):
        lying = self.chart("plt.barh(['a', 'b'], [1, 2]); plt.xlabel('count'); plt.ylabel('name')")
        standing = self.chart("plt.bar(['a', 'b'], [1, 2]); plt.xlabel('name'); plt.ylabel('count')")
        self.assertEqual(lying, standing)

    def test_several_axes_are_a_chart_of_charts(self):
        chart = self.chart("f, (a, b) = plt.subplots(1, 2); a.plot([1], [1]); b.pie([1, 3], labels=['x', 'y'])")
        self.assertEqual([element["type"] for element in chart["elements"]], ["line", "pie"])
        self.assertEqual([part["angle"] for part in chart["elements"][1]["elements"]], [90, 270])


class Values(InterpreterTest):
    def test_lists_and_dictionaries_are_json_too(self):
        self.assertEqual(self.only_result("[1, 'a', float('nan'), (2,)]")["json"], [1, "a", None, [2]])
        self.assertEqual(self.only_result("{1: {'a': None}}")["json"], {"1": {"a": None}})
        self.assertNotIn("json", self.only_result("[object()]"))
        self.assertNotIn("json", self.only_result("a = []; a.append(a); a.append(a); a"))

    def test_what_a_cell_displays_is_strict_json(self):
        shown = self.only_result("import IPython.display as d\nd.JSON({'a': float('nan'), 'b': [float('inf'), 1]})")
        self.assertEqual(shown["json"], {"a": None, "b": [None, 1]})
        shown = self.only_result("a = []; a += [a, a]; display({'text/plain': 'x', 'application/x': a}, raw=True)")
        self.assertEqual(shown["extra"]["application/x"], ["[[...], [...]]"] * 2)
        shown = self.only_result("display({'text/plain': 'x', 'application/x': {1: {2, 3}, 'o': object}}, raw=True)")
        self.assertEqual(shown["extra"]["application/x"]["1"], [2, 3])

    def test_text_is_shown_without_its_quotes(self):
        self.assertEqual(self.only_result("'plain'")["text"], "plain")
        self.assertEqual(self.only_result('"it\'s"')["text"], "it's")


if __name__ == "__main__":
    main()

"""The bench harness: sweeps of samplers over exact problems, their statistics, plots and reports.

    samplers bench --problem sudoku4 --samplers 'masked/*' --nfe 2,4,8 --out runs/first

Each module may import those that stand before it:
    user_model.py   what a sweep measures samplers on: an exact problem, or a model of the user
    request.py      what is asked for
    source.py       a fingerprint of a sampler's code
    cells.py        the plan: which runs a request makes
    records.py      what a line of cells.jsonl holds
    store.py        the file that remembers them
    merge.py        the files of several shards made one
    sweep.py        running them
    estimates.py    seeds combined, intervals, numbers as text
    collect.py      cells combined to points, sections, the Pareto front
    tables.py, plot.py, heatmap.py, report.py, live.py   what is shown
    tune.py, tune_report.py   the search for two options of a sampler
"""

from .cells import Cell, plan
from .collect import Point, front, points
from .report import write_report
from .request import DEMO, Request
from .store import Store
from .sweep import Outcome, run

__all__ = ["DEMO", "Cell", "Outcome", "Point", "Request", "Store", "front", "plan", "points", "run", "write_report"]

"""The bench harness: sweeps of samplers over exact problems, their statistics, plots and reports.

    samplers bench --problem sudoku4 --samplers 'masked/*' --nfe 2,4,8 --out runs/first

sweep.py plans and runs and remembers; collect.py combines seeds and finds the Pareto front; plot.py and report.py show.
"""

from .collect import Point, front, points
from .report import write_report
from .sweep import DEMO, Cell, Outcome, Request, Store, plan, run

__all__ = ["DEMO", "Cell", "Outcome", "Point", "Request", "Store", "front", "plan", "points", "run", "write_report"]

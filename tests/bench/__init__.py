"""Measures, as ratios against a floor in the same run; machines are shared and noisy, so no test times anything."""

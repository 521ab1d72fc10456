"""SAM 2 and SAM 2.1: the one place that imports the packages ``sam2`` and ``training``."""

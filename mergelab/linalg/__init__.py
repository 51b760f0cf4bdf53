"""Linear algebra on low-rank and dense matrices, selection, random draws, threads and memory; knows no adapter."""

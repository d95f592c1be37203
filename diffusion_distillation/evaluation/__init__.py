"""Evaluation: features of images, metrics that compare sets of them, and the tables of a run or a ladder."""

"""Evaluation: metrics, parity plots and the report of a model on labelled data.

``farfield evaluate MODEL DATA`` compares everything for which the data have labels, among them charges, dipoles and
Born charges that the model never saw.
"""
